"""Reprojection residuals, and the quadratic that they look like near a state.

Landmarks couple to cameras only through their position, so each landmark's residuals over all
cameras collapse to a 3x3 matrix and a 3-vector, and the cost of a step does not grow with the
number of cameras.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gha_core.faces.drift import expected_drift
from gha_core.fitting import rotations
from gha_core.fitting.observations import LandmarkModel, Observations

Floats = NDArray[np.float64]
Numbers = NDArray[np.floating]

POSE = 6  # axis-angle and translation come first among a timestep's unknowns
SIGMA = 0.01  # noise of a landmark, head lengths
INDEPENDENT = 0.15  # landmarks err together; this share of them counts as independent
OBLIQUE = 0.6  # tangent of the angle at which a view of the face counts half
BATCH = 4  # timesteps at once, and
CACHED = 40_000  # points in all cameras at once, so that they stay in the cache

Unknown = Literal["pose", "frames", "all"]
"""What a step may change: poses; poses and expressions; identity and scale, too."""


@dataclass(frozen=True)
class State:
    """All unknowns.

    Attributes:
        reference: [T, 3, 3]; rotation: [T, 3] axis-angle, R = exp(rotation) @ reference.
        translation: [T, 3] metres; expression: [T, E]; identity: [I]; scale: metres per unit.
    """

    reference: Floats
    rotation: Floats
    translation: Floats
    expression: Floats
    identity: Floats
    scale: float

    @property
    def matrices(self) -> Floats:
        """[T, 3, 3] head to world."""
        return rotations.exponential(self.rotation) @ self.reference

    def moved(self, frames: Floats, shared: Floats) -> State:
        """The state after a step: ``frames`` [T, 6 + E], ``shared`` [I + 1] (identity, scale)."""
        return replace(
            self,
            rotation=self.rotation + frames[:, :3],
            translation=self.translation + frames[:, 3:POSE],
            expression=np.clip(self.expression + frames[:, POSE:], 0, 1),
            identity=self.identity + shared[:-1],
            scale=self.scale + shared[-1],
        )


@dataclass(frozen=True)
class Pull:
    """What all cameras together say about where each landmark should be.

    Attributes:
        energy: of the data.
        gradient: [T, L, 3] by the landmark's place in head space; curvature: [T, 6, L] the upper
            triangle of its Gauss-Newton Hessian, row by row.
    """

    energy: float
    gradient: Floats
    curvature: Floats


@dataclass(frozen=True)
class Quadratic:
    """Gauss-Newton normal equations; minimise g.x + x.H.x / 2.

    Attributes:
        frames: [T, F, F] and frames_gradient [T, F] with F = 6 + E: of each timestep.
        mixed: [T, F, S] and shared [S, S], shared_gradient [S]: of identity and scale.
    """

    frames: Floats
    frames_gradient: Floats
    mixed: Floats
    shared: Floats
    shared_gradient: Floats


@dataclass(frozen=True)
class Conditions:
    """What was seen, and what depends on the view so slowly that it stays fixed during a
    minimisation.

    Attributes:
        trust: [T, C, L] weight of each landmark: confidence, how squarely it faces the camera, and
            how frontal the whole face is; 0 where nothing was seen.
        seen: [T, 2, C, L] pixels from the principal point; 0 where nothing was seen.
        drift: [T, 2, C, L] expected error of the detector, head lengths.
        unit: [T, C] pixels per head length.
    """

    trust: Floats
    seen: Floats
    drift: Floats
    unit: Floats

    @staticmethod
    def at(state: State, landmarks: LandmarkModel, observations: Observations) -> Conditions:
        matrices, extrinsics = state.matrices, observations.extrinsics
        facing, frontal = _facing(state, landmarks, observations)
        trust = facing * landmarks.weights * (observations.confidence * frontal)[..., None]
        seen = observations.points[:, :, landmarks.points]
        seen = seen - observations.intrinsics[:, None, :2, 2]
        missing = np.isnan(seen[..., 0])
        drift = expected_drift(landmarks.drift, matrices, state.translation, extrinsics)
        ahead = extrinsics[:, 2, :3]
        depth = state.translation @ ahead.T + extrinsics[:, 2, 3]
        return Conditions(
            np.where(missing, 0.0, trust),
            _planes(np.where(missing[..., None], 0.0, seen)),
            _planes(drift),
            observations.intrinsics[:, 0, 0] * state.scale / np.maximum(depth, 1e-3),
        )


def _planes(vectors: Floats) -> Floats:
    """[T, C, L, 2] to [T, 2, C, L]."""
    return np.ascontiguousarray(np.moveaxis(vectors, -1, 1))


def _facing(
    state: State, landmarks: LandmarkModel, observations: Observations
) -> tuple[Floats, Floats]:
    """[T, C, L] how squarely each landmark faces each camera, 0 where it is turned away (the
    detector still reports such points, but slides them along the silhouette), and [T, C] how
    frontal the face is seen: hair and habits pull all points of a turned face the same way."""
    turned = np.einsum("tij,lj->tli", state.matrices, landmarks.normals)
    centres = np.stack([camera.centre for camera in observations.cameras])
    ray = centres - state.translation[:, None]
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    cosine = np.einsum("tli,tci->tcl", turned, ray)
    ahead = np.clip(np.einsum("ti,tci->tc", state.matrices[:, :, 2], ray), 1e-3, 1)
    tangent = np.sqrt(1 - ahead**2) / ahead
    return np.clip((cosine - 0.1) / 0.5, 0, 1), 1 / (1 + (tangent / OBLIQUE) ** 4)


def residuals(
    state: State, landmarks: LandmarkModel, observations: Observations, conditions: Conditions
) -> Floats:
    """[T, C, L, 2] from where the landmarks were seen to where they are, head lengths; without
    meaning where nothing was seen."""
    view, every = _View.of(state, observations), slice(None)
    found, *_ = view.errors(every, landmarks.shape(state.identity, state.expression), conditions)
    return np.stack(found, -1)


def distances(
    state: State, landmarks: LandmarkModel, observations: Observations, conditions: Conditions
) -> Floats:
    """[T, C, L] how far the landmarks are from where they were seen, head lengths; NaN where they
    count for nothing."""
    found = np.linalg.norm(residuals(state, landmarks, observations, conditions), axis=-1)
    return np.where(conditions.trust > 0, found, np.nan)


def pull(
    state: State,
    landmarks: LandmarkModel,
    observations: Observations,
    conditions: Conditions,
    robust: float,
) -> Pull:
    """What the residuals at ``state`` come to, Geman-McClure down-weighted beyond ``robust`` head
    lengths."""
    head = landmarks.shape(state.identity, state.expression)
    view = _View.of(state, observations)
    cameras, points = conditions.trust.shape[1:]
    energy = 0.0
    gradient = np.empty((len(head), 3, points))
    curvature = np.empty((len(head), 6, points))
    for part in _batches(len(head), max(1, CACHED // (cameras * points))):
        (ex, ey), (x, y), slope = view.errors(part, head, conditions)
        base = conditions.trust[part] * (INDEPENDENT / SIGMA**2)
        squared = ex * ex
        squared += ey * ey
        calm = 1 + squared / robust**2
        weight = base / calm
        energy += 0.5 * float(np.vdot(weight, squared))
        weight /= calm
        # With M the matrix from head space to homogeneous pixels, (M_k - pixel_k M_z) * slope is a
        # residual's derivative; summed over cameras, what multiplies M's entries are these fields.
        weight *= slope
        along = ex * x
        along += ey * y
        first = np.stack([weight * ex, weight * ey, weight * along], 1)
        weight *= slope
        second = np.stack([weight, weight * x, weight * y, weight * (x * x + y * y)], 1)
        count = len(first)
        gradient[part] = view.first(part) @ first.reshape(count, -1, points)
        curvature[part] = view.second(part) @ second.reshape(count, -1, points)
    return Pull(energy, np.ascontiguousarray(gradient.swapaxes(1, 2)), curvature)


@dataclass(frozen=True)
class _View:
    """Head space in the cameras.

    Attributes:
        matrix: [T, 3, C, 3] and offset: [T, 3, C], from head space to homogeneous pixels from the
            principal point.
    """

    matrix: Floats
    offset: Floats

    @staticmethod
    def of(state: State, observations: Observations) -> _View:
        lens = observations.intrinsics.copy()
        lens[:, :2, 2] = 0
        camera = lens @ observations.extrinsics  # [C, 3, 4]
        matrix = camera[:, :, :3] @ (state.scale * state.matrices)[:, None]
        offset = np.einsum("cij,tj->tic", camera[..., :3], state.translation) + camera[..., 3].T
        return _View(np.ascontiguousarray(matrix.swapaxes(1, 2)), offset)

    def errors(
        self, part: slice, head: Floats, conditions: Conditions
    ) -> tuple[list[Floats], list[Floats], Floats]:
        """Of timesteps ``part`` of ``head`` [T, L, 3]: residuals by x and y, each [t, C, L] head
        lengths; pixels from the principal point, x and y, each [t, C, L]; and the residuals' slope
        [t, C, L]: head lengths per pixel, over depth."""
        matrix, (count, points) = self.matrix[part], head[part].shape[:2]
        places = matrix.reshape(count, -1, 3) @ head[part].swapaxes(1, 2)
        places = places.reshape(count, 3, -1, points)
        places += self.offset[part][..., None]
        inverse = 1 / np.maximum(places[:, 2], 1e-3)
        pixels = [places[:, 0] * inverse, places[:, 1] * inverse]
        size = 1 / conditions.unit[part][..., None]
        seen, drift = conditions.seen[part], conditions.drift[part]
        found = [(pixels[k] - seen[:, k]) * size + drift[:, k] for k in range(2)]
        return found, pixels, inverse * size

    def first(self, part: slice) -> Floats:
        """[t, 3, 3 C] what the fields of :func:`pull` are multiplied by in the gradient."""
        signed = self.matrix[part] * np.array([1, 1, -1])[:, None, None]
        return signed.reshape(len(signed), -1, 3).swapaxes(1, 2)

    def second(self, part: slice) -> Floats:
        """[t, 6, 4 C] the same in the curvature."""
        x, y, z = np.moveaxis(self.matrix[part], 1, 0)
        rows, columns = _UPPER

        def both(one: Floats, other: Floats) -> Floats:
            return one[..., rows] * other[..., columns]

        fields = [
            both(x, x) + both(y, y), -both(x, z) - both(z, x), -both(y, z) - both(z, y), both(z, z),
        ]  # fmt: skip
        return np.concatenate(fields, 1).swapaxes(1, 2)


_UPPER = np.triu_indices(3)


def linearise(state: State, landmarks: LandmarkModel, found: Pull, unknown: Unknown) -> Quadratic:
    """The normal equations of ``found``; what is not ``unknown`` stays out of them (F = 6 without
    the expressions, S = 0 without identity and scale)."""
    with_shared = unknown == "all"
    constant = landmarks.expression[..., : 0 if unknown == "pose" else None].astype(np.float32)
    identity = landmarks.identity[..., : None if with_shared else 0].astype(np.float32)
    matrices = state.matrices
    shape = landmarks.shape(state.identity, state.expression)
    turning = np.einsum("tji,tjk->tik", matrices, rotations.left_jacobian(state.rotation))
    count, points = shape.shape[:2]
    own, several = POSE + constant.shape[-1], identity.shape[-1] + with_shared
    persons = identity.reshape(3 * points, -1)
    frames, mixed = np.empty((count, own, own)), np.zeros((count, own, several))
    frames_gradient = np.empty((count, own))
    for part in _batches(count, BATCH):
        # In head space the shape's derivatives are constant; poses are carried there instead.
        columns = np.empty((part.stop - part.start, points, 3, own), np.float32)
        columns[..., :3] = -rotations.cross(shape[part]) @ turning[part, None]
        columns[..., 3:POSE] = matrices[part, None].swapaxes(-1, -2) / state.scale
        columns[..., POSE:] = constant
        slopes = columns.reshape(len(columns), -1, own)
        bent = _bent(found.curvature[part].astype(np.float32), columns).swapaxes(1, 2)
        frames[part] = bent @ slopes
        pulled = found.gradient[part].astype(np.float32).reshape(len(slopes), 1, -1)
        frames_gradient[part] = (pulled @ slopes)[:, 0]
        if with_shared:
            flat = bent.reshape(-1, 3 * points)
            mixed[part, :, :-1] = (flat @ persons).reshape(len(bent), own, -1)
            size = (shape[part] / state.scale).astype(np.float32).reshape(len(bent), -1, 1)
            mixed[part, :, -1:] = bent @ size
    shared, shared_gradient = np.zeros((several, several)), np.zeros(several)
    if with_shared:
        # The person's shape is the same in all timesteps, so that sums over them come first.
        scaled = shape / state.scale
        total = _bent(found.curvature.sum(0, keepdims=True), identity[None])[0]
        shared[:-1, :-1] = total.reshape(3 * points, -1).T @ persons
        grown = _bent(found.curvature, scaled[..., None])[..., 0]
        shared[:-1, -1] = shared[-1, :-1] = grown.sum(0) @ persons
        shared[-1, -1] = np.vdot(grown, scaled)
        shared_gradient[:-1] = found.gradient.sum(0).reshape(-1) @ persons
        shared_gradient[-1] = np.vdot(found.gradient, scaled)
    return Quadratic(frames, frames_gradient, mixed, shared, shared_gradient)


def _bent(curvature: Numbers, columns: Numbers) -> Numbers:
    """[t, 3 L, n]: symmetric matrices, [t, 6, L] their upper triangles, times [t, L, 3, n]."""
    xx, xy, xz, yy, yz, zz = np.moveaxis(curvature, 1, 0)[..., None]
    x, y, z = (columns[:, :, axis] for axis in range(3))
    rows = [xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z]
    return np.stack(rows, 2).reshape(len(columns), -1, columns.shape[-1])


def _batches(count: int, size: int) -> Iterator[slice]:
    """Slices of ``size`` and less that cover ``count``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
