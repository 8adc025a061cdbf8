"""A driver's motion on another person's head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from gha_core.pose import HeadPose
from gha_core.reenactment.motion import Coefficients, Motion

_RESTING, _FULLY = 0.25, 0.99  # quantiles over a recording
# Who speaks hardly rests the mouth; a higher quantile would keep the avatar's closed.
_RESTING_MOUTH = 0.02
_MOUTH = ("cheek", "jaw", "mouth", "tongue")
_NOISE = 0.1  # who never goes this far beyond rest has not blinked
_COMPLETE = ("eyeBlinkLeft", "eyeBlinkRight")
_CLOSED = 0.5  # no lid is closed before this; who was not seen to go so far did not blink
# Coefficients that are two ends of one movement: less than nothing of one is some of the other.
_OPPOSITES = (
    ("eyeLookUpLeft", "eyeLookDownLeft"),
    ("eyeLookUpRight", "eyeLookDownRight"),
    ("eyeLookInLeft", "eyeLookOutLeft"),
    ("eyeLookInRight", "eyeLookOutRight"),
    ("jawLeft", "jawRight"),
    ("mouthLeft", "mouthRight"),
)


def retarget(driver: list[Motion], target: list[Motion]) -> list[Motion]:
    """A driver's motion for another person's head: their own size, place and facing, the driver's
    movement.

    The two captures may have different worlds (one video's is its camera's, y down), so only
    movement is carried over: rotation and translation relative to the driver's mean pose, in the
    frame of that mean head and in head lengths, on top of the target's mean pose. The expression
    coefficients, whose meaning (ARKit) is shared by all subjects, are the driver's.
    """
    size, origin = mean_pose(target), mean_pose(driver)
    facing, turned = (Rotation.from_rotvec(pose.rotation) for pose in (size, origin))
    moved = []
    for motion in driver:
        offset = motion.pose.translation - origin.translation
        offset = turned.inv().apply(offset) * (size.scale / motion.pose.scale)
        rotation = facing * turned.inv() * Rotation.from_rotvec(motion.pose.rotation)
        place = size.translation + facing.apply(offset)
        moved.append(replace(motion, pose=HeadPose(rotation.as_rotvec(), place, size.scale)))
    return moved


def mean_pose(motions: Sequence[Motion]) -> HeadPose:
    """Mean rotation and place, median scale."""
    return HeadPose(
        Rotation.from_rotvec([motion.pose.rotation for motion in motions]).mean().as_rotvec(),
        np.mean([motion.pose.translation for motion in motions], axis=0),
        float(np.median([motion.pose.scale for motion in motions])),
    )


def held_still(motions: Sequence[Motion], pose: HeadPose) -> list[Motion]:
    """``motions`` without their head movement."""
    return [replace(motion, pose=pose) for motion in motions]


@dataclass(frozen=True)
class Habit:
    """What the tracking sees in one person's face.

    Attributes:
        rest: [E] at rest. Zero, if it knew the face perfectly; what it does not know of it (heavy
            lids, a mouth whose corners point down) it takes for a slight expression, always.
        full: [E] where the person goes farthest.
    """

    rest: Coefficients
    full: Coefficients

    @staticmethod
    def of(motions: Sequence[Motion], names: Sequence[str]) -> Habit:
        """Of a recording. At rest is what a coefficient stays above most of the time, or always
        around the mouth; of movements with two ends, the middle."""
        expressions = np.array([motion.expression for motion in motions])
        levels = [_RESTING_MOUTH if name.startswith(_MOUTH) else _RESTING for name in names]
        lowest = np.array(
            [
                np.quantile(column, level)
                for column, level in zip(expressions.T, levels, strict=True)
            ]
        )
        for one, other in _pairs(names):
            middle = np.median(expressions[:, one] - expressions[:, other])
            lowest[one], lowest[other] = max(middle, 0), max(-middle, 0)
        full = np.quantile(expressions, _FULLY, axis=0)
        return Habit(lowest.astype(np.float32), full.astype(np.float32))


def in_the_habit_of(
    motions: Sequence[Motion], driver: Habit, target: Habit, names: Sequence[str]
) -> list[Motion]:
    """Expressions relative to the driver's face at rest, on top of the target's: what the tracking
    takes for an expression in the driver's features stays with the driver.

    A full expression stays full: 1 remains 1, rest becomes rest, in between it is linear. Less than
    rest becomes an expression only where it has an opposite (looking up and down). Blinks, which
    everyone does in full, go as far as the target's: how far tracking sees lids close differs.

    Args:
        names: of the coefficients.
    """
    expressions = np.array([motion.expression for motion in motions])
    beyond = (expressions - driver.rest) / np.maximum(1 - driver.rest, 0.2)
    gained = np.maximum(beyond, 0)
    for one, other in _pairs(names):
        axis = beyond[:, one] - beyond[:, other]
        gained[:, one], gained[:, other] = np.maximum(axis, 0), np.maximum(-axis, 0)
    room = 1 - target.rest
    for index, name in enumerate(names):
        span = driver.full[index] - driver.rest[index]
        if name in _COMPLETE and span > _NOISE:
            reach = target.full[index] - target.rest[index]
            room[index] = reach / span * max(1 - driver.rest[index], 0.2)
    moved = np.clip(target.rest + room * gained, 0, 1).astype(np.float32)
    return [replace(m, expression=e) for m, e in zip(motions, moved, strict=True)]


def farthest(full: Coefficients, names: Sequence[str]) -> Coefficients:
    """[E] how far each coefficient can go on one person's face: 1, and blinks as far as their own,
    for lids that close further come apart.

    Args:
        full: [E] where the person went farthest.
    """
    blinks = np.array([name in _COMPLETE for name in names])
    return np.where(blinks, np.clip(full, _CLOSED, 1), 1).astype(np.float32)


def _pairs(names: Sequence[str]) -> list[tuple[int, int]]:
    """Which of the coefficients are opposites, as indices."""
    place = {name: index for index, name in enumerate(names)}
    return [(place[a], place[b]) for a, b in _OPPOSITES if a in place and b in place]


def smoothed(motions: Sequence[Motion], rate: float, seconds: float) -> list[Motion]:
    """Poses and expressions under a Gaussian window in time, within each sequence.

    Args:
        rate: motions per second; seconds: the window's standard deviation.
    """
    result: list[Motion] = []
    for name in dict.fromkeys(motion.sequence for motion in motions):
        part = [motion for motion in motions if motion.sequence == name]
        origin = Rotation.from_rotvec(mean_pose(part).rotation)
        turns = Rotation.from_rotvec([motion.pose.rotation for motion in part])
        values = np.concatenate(
            [
                (origin.inv() * turns).as_rotvec(),
                [motion.pose.translation for motion in part],
                [motion.expression for motion in part],
            ],
            axis=1,
        )
        values = gaussian_filter1d(values, seconds * rate, axis=0, mode="nearest")
        for motion, row in zip(part, values, strict=True):
            rotation = (origin * Rotation.from_rotvec(row[:3])).as_rotvec()
            pose = HeadPose(rotation, row[3:6], motion.pose.scale)
            result.append(replace(motion, pose=pose, expression=row[6:].astype(np.float32)))
    return result
