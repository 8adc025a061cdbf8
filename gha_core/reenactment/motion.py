"""Driving an avatar with tracked motion: of another sequence, or of another subject."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from gha_core.artifacts import schemas
from gha_core.artifacts.tables import read_rows
from gha_core.cameras import Camera
from gha_core.errors import ArtifactError
from gha_core.pose import HeadPose


@dataclass(frozen=True)
class Motion:
    """Pose and expression of one timestep of a driver.

    Attributes:
        expression: [E] float32 coefficients, in the face model's order.
    """

    sequence: str
    timestep: int
    pose: HeadPose
    expression: NDArray[np.float32]


def read_motion(tracking: Path, sequence: str | None = None) -> list[Motion]:
    """The tracked motion of one sequence (or of all), in order.

    Raises:
        ArtifactError: the artifact has no such sequence.
    """
    rows = list(read_rows(tracking / "tracking.parquet", schemas.TRACKING))
    known = sorted({row["sequence"] for row in rows})
    if sequence is not None and sequence not in known:
        raise ArtifactError(
            f"{tracking} has no sequence {sequence!r}. It has: {', '.join(known) or 'none'}."
        )
    return [
        Motion(
            row["sequence"],
            row["timestep"],
            HeadPose(np.array(row["rotation"]), np.array(row["translation"]), row["scale"]),
            np.array(row["expression"], np.float32),
        )
        for row in rows
        if sequence is None or row["sequence"] == sequence
    ]


def retarget(driver: list[Motion], target: list[Motion]) -> list[Motion]:
    """A driver's motion for another person's head: their own size, place and facing, the driver's
    movement.

    The two captures may have different worlds (one video's is its camera's, y down), so only
    movement is carried over: rotation and translation relative to the driver's mean pose, in the
    frame of that mean head and in head lengths, on top of the target's mean pose. The expression
    coefficients, whose meaning (ARKit) is shared by all subjects, are the driver's.
    """
    scale = float(np.median([motion.pose.scale for motion in target]))
    centre = np.mean([motion.pose.translation for motion in target], axis=0)
    origin = np.mean([motion.pose.translation for motion in driver], axis=0)
    facing, turned = _mean_rotation(target), _mean_rotation(driver)
    moved = []
    for motion in driver:
        offset = turned.inv().apply(motion.pose.translation - origin) * (scale / motion.pose.scale)
        rotation = facing * turned.inv() * Rotation.from_rotvec(motion.pose.rotation)
        pose = HeadPose(rotation.as_rotvec(), centre + facing.apply(offset), scale)
        moved.append(replace(motion, pose=pose))
    return moved


def _mean_rotation(motions: list[Motion]) -> Rotation:
    return Rotation.from_rotvec([motion.pose.rotation for motion in motions]).mean()


def frontal_camera(cameras: list[Camera], poses: list[HeadPose]) -> Camera:
    """The camera that the face looks at most directly, over all poses."""

    def facing(camera: Camera) -> float:
        scores = []
        for pose in poses:
            towards = camera.centre - pose.translation
            scores.append(pose.matrix[:, 2] @ towards / np.linalg.norm(towards))
        return float(np.mean(scores))

    return max(sorted(cameras, key=lambda camera: camera.name), key=facing)


def at_height(camera: Camera, size: int) -> Camera:
    """``camera`` at ``size`` pixels high, same field of view, width rounded to even."""
    width = max(2, 2 * round(camera.width * size / camera.height / 2))
    return camera.resized(width, size)
