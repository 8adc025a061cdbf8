"""Driving an avatar with motion that was tracked elsewhere."""

from gha_core.reenactment.motion import Motion, at_height, frontal_camera, read_motion, retarget

__all__ = ["Motion", "at_height", "frontal_camera", "read_motion", "retarget"]
