"""Where a driven avatar is looked at from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from gha_core.cameras import Camera
from gha_core.pose import HeadPose


def frontal_camera(cameras: list[Camera], poses: list[HeadPose]) -> Camera:
    """The camera that the face looks at most directly, over all poses."""

    def facing(camera: Camera) -> float:
        scores = []
        for pose in poses:
            towards = camera.centre - pose.translation
            scores.append(pose.matrix[:, 2] @ towards / np.linalg.norm(towards))
        return float(np.mean(scores))

    return max(sorted(cameras, key=lambda camera: camera.name), key=facing)


def at_size(camera: Camera, height: int, width: int | None = None) -> Camera:
    """``camera`` at ``height`` pixels, with the same field of view from top to bottom.

    Args:
        width: shows more or less at the sides; by default what the camera sees, rounded to even.
    """
    whole = max(2, 2 * round(camera.width * height / camera.height / 2))
    resized = camera.resized(whole, height)
    if width is None:
        return resized
    K = resized.K.copy()
    K[0, 2] += (width - whole) / 2
    return replace(resized, K=K, width=width)


def around(camera: Camera, head: HeadPose, yaw: float, pitch: float = 0.0) -> Camera:
    """``camera`` moved around the head, at its own distance and height in the picture.

    Args:
        yaw: rad to the subject's left; pitch: rad upwards, both about the head's centre.
    """
    turn = head.matrix @ Rotation.from_euler("xy", [-pitch, yaw]).as_matrix() @ head.matrix.T
    moved = np.eye(4)
    moved[:3, :3] = turn
    moved[:3, 3] = head.translation - turn @ head.translation
    return replace(camera, w2c=camera.w2c @ np.linalg.inv(moved))


def orbit(camera: Camera, head: HeadPose, swing: float, count: int, rate: float) -> list[Camera]:
    """A camera for each of ``count`` frames: to one side, to the other and back, in 8 seconds.

    Args:
        swing: rad to each side; rate: frames per second.
    """
    phases = 2 * np.pi * np.arange(count) / (8.0 * rate)
    return [
        around(camera, head, swing * np.sin(phase), swing * (1 - np.cos(phase)) / 8)
        for phase in phases
    ]


def seen_as(camera: Camera, driver: HeadPose, target: HeadPose) -> Camera:
    """``camera``, which sees a head at ``driver``, moved to where one at ``target`` looks the same.

    If these are the driver's and the target's mean poses, then motions carried over by
    :func:`gha_core.reenactment.retargeting.retarget` look the same to both cameras, too.
    """
    ratio = target.scale / driver.scale
    rotation = camera.w2c[:3, :3] @ driver.matrix @ target.matrix.T
    place = ratio * (camera.w2c[:3, :3] @ driver.translation + camera.w2c[:3, 3])
    w2c = np.eye(4)
    w2c[:3, :3] = rotation
    w2c[:3, 3] = place - rotation @ target.translation
    return replace(camera, w2c=w2c)
