"""Driving an avatar with the motion of another sequence, another person, or a file."""

from gha_core.reenactment.cameras import at_size, frontal_camera
from gha_core.reenactment.motion import Motion, read_motion
from gha_core.reenactment.retargeting import retarget

__all__ = ["Motion", "at_size", "frontal_camera", "read_motion", "retarget"]
