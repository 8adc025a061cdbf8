"""What the tracker sees, and the face model reduced to the points that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera
from gha_core.faces import FaceModel
from gha_core.landmarks import points

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
# Few points carry all that is known about where the eyes look and whether they are closed, and
# they come from a model of their own.
EYE_WEIGHT = 4.0
EYE_POINTS = (*points.RIGHT_EYE, *points.LEFT_EYE, *points.RIGHT_IRIS, *points.LEFT_IRIS)
LIP_WEIGHT = 2.0
FOLD = 0.05  # head lengths; wider than lids and lips
LIP_POINTS = (*points.LIPS_INNER, *points.LIPS_OUTER)


@dataclass(frozen=True)
class Observations:
    """The detector's points in all timesteps and cameras.

    Attributes:
        sequences, timesteps: T names and numbers, sorted by (sequence, timestep).
        cameras: C undistorted cameras. Only those that training may use.
        points: [T, C, P, 2] pixels; NaN where a view has no detection.
        confidence: [T, C] of the detections, 0..1; 0 where there is none.
        is_train: [T] whether the identity may be learned from the timestep.
    """

    sequences: tuple[str, ...]
    timesteps: tuple[int, ...]
    cameras: tuple[Camera, ...]
    points: Floats
    confidence: Floats
    is_train: Bools

    @property
    def views(self) -> NDArray[np.int64]:
        """[T] number of cameras with a detection."""
        return (self.confidence > 0).sum(1)

    def select(self, keep: NDArray[np.int64]) -> Observations:
        """The timesteps ``keep`` (indices, ascending)."""
        return Observations(
            sequences=tuple(self.sequences[index] for index in keep),
            timesteps=tuple(self.timesteps[index] for index in keep),
            cameras=self.cameras,
            points=self.points[keep],
            confidence=self.confidence[keep],
            is_train=self.is_train[keep],
        )

    @cached_property
    def intrinsics(self) -> Floats:
        """[C, 3, 3]."""
        return np.stack([camera.K for camera in self.cameras])

    @cached_property
    def extrinsics(self) -> Floats:
        """[C, 3, 4] world to camera."""
        return np.stack([camera.w2c[:3] for camera in self.cameras])


@dataclass(frozen=True)
class LandmarkModel:
    """A face model restricted to its L landmarks, in head space.

    Attributes:
        points: [L] which of the detector's points they are.
        mean: [L, 3]; identity: [L, 3, I]; expression: [L, 3, E].
        normals: [L, 3] of the mean head's face about each.
        weights: [L] how much each counts.
        drift: [L, 2, 6] the detector's error by view.
    """

    points: NDArray[np.int64]
    mean: Floats
    identity: Floats
    expression: Floats
    normals: Floats
    weights: Floats
    drift: Floats

    @staticmethod
    def of(model: FaceModel) -> LandmarkModel:
        basis = model.landmarks(model.identity_basis).double().numpy()
        moves = model.landmarks(model.expression_basis).double().numpy()
        chosen = model.landmark_indices.numpy()
        emphasis = np.where(np.isin(chosen, EYE_POINTS), EYE_WEIGHT, 1.0)
        emphasis = np.where(np.isin(chosen, LIP_POINTS), LIP_WEIGHT, emphasis)
        weights = model.landmark_confidence.double().numpy()
        return LandmarkModel(
            points=chosen,
            mean=model.landmarks(model.mean).double().numpy(),
            identity=np.ascontiguousarray(basis.transpose(1, 2, 0)),
            expression=np.ascontiguousarray(moves.transpose(1, 2, 0)),
            normals=_outward(model),
            weights=weights * emphasis,
            drift=model.landmark_drift.double().numpy(),
        )

    def shape(self, identity: Floats, expression: Floats) -> Floats:
        """[I] and [T, E] coefficients to [T, L, 3] in head space."""
        moved = expression @ self.expression.reshape(-1, expression.shape[-1]).T
        return self.mean + self.identity @ identity + moved.reshape(-1, *self.mean.shape)


def _outward(model: FaceModel) -> Floats:
    """[L, 3] unit normals of the face, its folds smoothed: by their own triangles, the rims of lids
    and lips face up or down, and would be taken for hidden where they are in full view."""
    skin = (model.regions["face"] & ~model.regions["mouth_interior"]).numpy()
    faces = model.faces.numpy()
    corners = model.mean.double().numpy()[faces[skin[faces].all(1)]]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    places = model.landmarks(model.mean).double().numpy()
    apart = ((places[:, None] - corners.mean(1)) ** 2).sum(-1)
    normals = np.exp(-apart / (2 * FOLD**2)) @ area
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)
