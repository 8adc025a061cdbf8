"""Where the head is to begin with: one perspective-n-point per view, then agreement between views.

PnP with a head of unit size gives, for each view, the rotation and the position up to the head's
size: origin = centre of the camera + scale * v. Views with known places then determine the scale
and the origin by linear least squares, and disagree when a calibration is not what it should be.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.errors import StageError, locate
from gha_core.fitting import rotations
from gha_core.fitting.observations import LandmarkModel, Observations

Floats = NDArray[np.float64]

# Of the mean head, which view-wise poses may be off by; more means the cameras disagree.
MAX_TURN = np.radians(35)
MAX_OFFSET = 0.75  # head lengths between the origins that two views see
PLAUSIBLE_SIZE = (0.6, 1.6)  # head length over that of the mean person
_STRAY = 0.2  # median reprojection error over the spread of the points; else some are wild
_ROUNDS = 10
_NARROW = 1e-4  # variance of the rays' slopes
UNITS = (1 / 30, 30.0)  # beyond these the head's size is an error rather than another unit


@dataclass(frozen=True)
class InitialPose:
    """rotation [T, 3, 3] head to world, translation [T, 3] metres, scale metres per unit.

    With cameras in another unit than metres these are in that unit, too.
    """

    rotation: Floats
    translation: Floats
    scale: float


def usual_scale(scale: float, metres_per_unit: float) -> float:
    """The mean person's scale in the unit of the cameras: where a head of ``scale`` would be a
    giant's or a dwarf's in metres they are in another unit, and say nothing about people's size."""
    low, high = PLAUSIBLE_SIZE
    return metres_per_unit if low < scale / metres_per_unit < high else scale


def initial_pose(
    observations: Observations,
    landmarks: LandmarkModel,
    metres_per_unit: float,
    scale: float | None = None,
) -> InitialPose:
    """Poses of all timesteps (each has at least one view).

    Args:
        metres_per_unit: of the mean person.
        scale: of this person, if it is known already; by default it is found from the views.

    Raises:
        StageError: the views contradict each other, or the head would be far too big or small:
            the calibration is in another convention or unit.
    """
    count, cameras = observations.confidence.shape
    turns = np.full((count, cameras, 3, 3), np.nan)
    reach = np.full((count, cameras, 3), np.nan)
    # Points that neither expressions nor the detector's habits move much.
    firm = np.linalg.norm(landmarks.expression, axis=1).max(1)
    seen = np.isfinite(observations.points[:, :, landmarks.points, 0])
    known = np.flatnonzero(seen.reshape(-1, len(firm)).any(axis=0))
    order = np.argsort(firm / (landmarks.weights + 1e-3))
    order = order[np.isin(order, known)]  # some detectors know few of the points
    steady = order[: max(len(order) // 3, 12)]
    shape, chosen = landmarks.mean[steady], landmarks.points[steady]
    for time, view in zip(*np.nonzero(observations.confidence > 0), strict=True):
        found = _pnp(shape, observations.points[time, view, chosen], observations.intrinsics[view])
        if found is None:
            continue
        to_world = observations.extrinsics[view][:, :3].T
        turns[time, view] = to_world @ found[0]
        reach[time, view] = to_world @ found[1]
    centres = np.stack([camera.centre for camera in observations.cameras])
    weight = np.where(np.isfinite(reach[..., 0]), observations.confidence, 0.0)
    if scale is None:
        scale = _common_scale(centres, reach, weight, metres_per_unit)
    rotation, translation = np.zeros((count, 3, 3)), np.zeros((count, 3))
    turned, apart = [], []
    for time in range(count):
        seen = np.flatnonzero(weight[time])
        if not len(seen):
            raise StageError(
                f"{locate(observations.sequences[time], observations.timesteps[time])}: no head "
                "pose explains the landmarks; are they of a face?"
            )
        rotation[time] = _middle_rotation(turns[time, seen])
        origins = centres[seen] + scale * reach[time, seen]
        translation[time] = np.median(origins, axis=0)
        apart.append(np.linalg.norm(origins - translation[time], axis=1) / scale)
        difference = rotations.logarithm(rotation[time].T @ turns[time, seen])
        turned.append(np.linalg.norm(difference, axis=1))
    if cameras > 1:
        _check_agreement(np.concatenate(turned), np.concatenate(apart))
    return InitialPose(rotation, translation, scale)


def _pnp(shape: Floats, pixels: Floats, K: Floats) -> tuple[Floats, Floats] | None:
    """Rotation [3, 3] and position [3] of the shape [n, 3] in the camera."""
    usable = np.isfinite(pixels).all(1)
    if usable.sum() < 6:
        return None
    shape, pixels = shape[usable], pixels[usable]
    # OpenCV's SQPnP raises where all rays are nearly parallel: a face far away through a long lens.
    narrow = float(np.var(pixels, axis=0).sum()) < _NARROW * K[0, 0] ** 2
    method = cv2.SOLVEPNP_EPNP if narrow else cv2.SOLVEPNP_SQPNP
    found, turn, place = cv2.solvePnP(shape, pixels, K, None, flags=method)
    usual = float(np.median(np.linalg.norm(pixels - np.median(pixels, axis=0), axis=1)))
    away = cv2.projectPoints(shape, turn, place, K, None)[0][:, 0] - pixels if found else np.inf
    if not np.median(np.linalg.norm(np.atleast_2d(away), axis=1)) < _STRAY * usual:
        # Wild points pull all others away; a consensus of few points costs more and is coarser.
        found, turn, place, _ = cv2.solvePnPRansac(
            shape, pixels, K, None, reprojectionError=_STRAY * usual, flags=method
        )
    if not found or place[2, 0] <= 0:
        return None
    return cv2.Rodrigues(turn)[0].astype(float), place.ravel().astype(float)


def _common_scale(centres: Floats, reach: Floats, weight: Floats, metres_per_unit: float) -> float:
    """The scale s at which centre + s * reach agree best over the views of each timestep; that of
    the mean person where there are no two views."""
    trust = np.where((weight > 0).sum(1, keepdims=True) >= 2, weight, 0.0)
    v, known = np.nan_to_num(reach), trust > 0
    # A camera that is not where it should be must not have a say in how large the head is.
    for _ in range(_ROUNDS):
        share = (trust / np.maximum(trust.sum(1, keepdims=True), 1e-12))[..., None]
        arms = v - (share * v).sum(1, keepdims=True)
        bases = centres - (share * centres).sum(1, keepdims=True)
        top = -float((share * arms * bases).sum())
        bottom = float((share * arms * arms).sum())
        if top <= 0 or bottom <= 1e-9:
            break
        apart = np.linalg.norm(bases + top / bottom * arms, axis=-1)
        trust = weight * known / (1 + (apart / np.median(apart[known])) ** 2)
    if bottom <= 1e-9:
        return metres_per_unit
    ratio = top / bottom / metres_per_unit
    if not np.isfinite(ratio) or ratio <= 1e-4:
        raise StageError(
            "The cameras contradict each other: no head of positive size fits what they see. Their "
            "extrinsics are probably in another convention; gha needs OpenCV world-to-camera "
            "matrices (x right, y down, z forward). Camera-to-world matrices must be inverted, "
            "OpenGL ones have y and z flipped."
        )
    if not UNITS[0] < ratio < UNITS[1]:
        hint = "millimetres" if 300 < ratio < 3000 else "another unit than metres"
        raise StageError(
            f"By the cameras' positions the head would be {ratio * metres_per_unit:.3g} m long. "
            f"The calibration is probably in {hint}; gha needs metres."
        )
    return ratio * metres_per_unit


def _middle_rotation(turns: Floats) -> Floats:
    """The one of [n, 3, 3] rotations that is nearest to the others, so that one bad view is not
    averaged in."""
    apart = np.linalg.norm(rotations.logarithm(turns[:, None].swapaxes(-1, -2) @ turns), axis=-1)
    return turns[int(np.median(apart, axis=1).argmin())]


def _check_agreement(turned: Floats, apart: Floats) -> None:
    turn, offset = float(np.median(turned)), float(np.median(apart))
    if turn > MAX_TURN or offset > MAX_OFFSET:
        raise StageError(
            f"The cameras contradict each other: each sees a face, but the head poses that they "
            f"see differ by {np.degrees(turn):.0f} degrees and {offset:.2f} head lengths. The "
            "extrinsics are probably in another convention, or belong to other cameras; gha needs "
            "OpenCV world-to-camera matrices in metres (x right, y down, z forward)."
        )
