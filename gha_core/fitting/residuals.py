"""Reprojection residuals, and the quadratic that they look like near a state.

Landmarks couple to cameras only through their position, so each landmark's residuals over all
cameras collapse to a 3x3 matrix and a 3-vector, and the cost of a step does not grow with the
number of cameras.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gha_core.faces.drift import expected_drift
from gha_core.fitting import rotations
from gha_core.fitting.observations import LandmarkModel, Observations

Floats = NDArray[np.float64]

POSE = 6  # axis-angle and translation come first among a timestep's unknowns
SIGMA = 0.01  # noise of a landmark, head lengths
INDEPENDENT = 0.15  # landmarks err together; this share of them counts as independent
OBLIQUE = 0.6  # tangent of the angle at which a view of the face counts half
BATCH = 64

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
class Residuals:
    """Residuals at a state: [T, C, L, 2] in head lengths, and the data's energy.

    Attributes:
        weight: [T, C, L] with the robust down-weighting; 0 where nothing was seen.
        plane: [T, C, L, 2] and depth [T, C, L]: the points in normalised camera coordinates.
        unit: [T, C] pixels per head length.
    """

    values: Floats
    weight: Floats
    plane: Floats
    depth: Floats
    unit: Floats
    energy: float


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
    """What depends on the view so slowly that it stays fixed during a minimisation.

    Attributes:
        trust: [T, C, L] weight of each landmark: confidence, how squarely it faces the camera, and
            how frontal the whole face is.
        drift: [T, C, L, 2] expected error of the detector, head lengths.
    """

    trust: Floats
    drift: Floats

    @staticmethod
    def at(state: State, landmarks: LandmarkModel, observations: Observations) -> Conditions:
        matrices, extrinsics = state.matrices, observations.extrinsics
        facing, frontal = _facing(state, landmarks, observations)
        return Conditions(
            facing * landmarks.weights * (observations.confidence * frontal)[..., None],
            expected_drift(landmarks.drift, matrices, state.translation, extrinsics),
        )


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
    state: State,
    landmarks: LandmarkModel,
    observations: Observations,
    conditions: Conditions,
    robust: float,
) -> Residuals:
    """Residuals at ``state``, Geman-McClure down-weighted beyond ``robust`` head lengths."""
    head = landmarks.shape(state.identity, state.expression)
    world = state.scale * head @ state.matrices.swapaxes(-1, -2) + state.translation[:, None]
    extrinsics, K = observations.extrinsics, observations.intrinsics
    turn = extrinsics[None, :, :, :3]
    local = world[:, None] @ turn.swapaxes(-1, -2) + extrinsics[None, :, None, :, 3]
    depth = np.maximum(local[..., 2], 1e-3)
    plane = local[..., :2] / depth[..., None]
    pixels = plane @ K[None, :, :2, :2].swapaxes(-1, -2) + K[None, :, None, :2, 2]
    seen = observations.points[:, :, landmarks.points]
    missing = np.isnan(seen[..., 0])
    centre = np.einsum("cij,tj->tci", extrinsics[..., :3], state.translation) + extrinsics[..., 3]
    unit = K[None, :, 0, 0] * state.scale / np.maximum(centre[..., 2], 1e-3)
    error = (pixels - seen) / unit[..., None, None] + conditions.drift
    values = np.where(missing[..., None], 0.0, error)
    base = np.where(missing, 0.0, conditions.trust) / SIGMA**2 * INDEPENDENT
    squared = (values**2).sum(-1)
    calm = 1 + squared / robust**2
    energy = float(0.5 * (base * squared / calm).sum())
    return Residuals(values, base / calm**2, plane, depth, unit, energy)


def linearise(
    state: State,
    landmarks: LandmarkModel,
    observations: Observations,
    found: Residuals,
    unknown: Unknown,
) -> Quadratic:
    """The normal equations of ``found``; what is not ``unknown`` stays out of them (F = 6 without
    the expressions, S = 0 without identity and scale)."""
    bases = [landmarks.expression[..., :0]]
    if unknown != "pose":
        bases.append(landmarks.expression)
    with_shared = unknown == "all"
    if with_shared:
        bases.append(landmarks.identity)
    constant = np.concatenate(bases, axis=2)
    expressions = 0 if unknown == "pose" else landmarks.expression.shape[2]
    matrices = state.matrices
    # In head space the shape's derivatives are constant; poses are carried there instead.
    rows = _rows(found, observations, matrices * state.scale)
    H = np.empty((*rows[0].shape[0:1], rows[0].shape[2], 3, 3))
    g = np.empty(H.shape[:-1])
    weighted = [row * found.weight[..., None] for row in rows]
    for i in range(3):
        g[..., i] = sum((w[..., i] * found.values[..., k]).sum(1) for k, w in enumerate(weighted))
        for j in range(i + 1):
            H[..., i, j] = H[..., j, i] = sum(
                (w[..., i] * row[..., j]).sum(1) for w, row in zip(weighted, rows, strict=True)
            )
    factor = _transposed_root(H)
    shape = landmarks.shape(state.identity, state.expression)
    turning = np.einsum("tji,tjk->tik", matrices, rotations.left_jacobian(state.rotation))
    count, points = g.shape[:2]
    size = POSE + constant.shape[2] + (1 if with_shared else 0)
    full, gradient = np.empty((count, size, size)), np.empty((count, size))
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        columns = np.empty((part.stop - start, points, 3, size), np.float32)
        columns[..., :3] = -rotations.cross(shape[part]) @ turning[part, None]
        columns[..., 3:POSE] = matrices[part, None].swapaxes(-1, -2) / state.scale
        columns[..., POSE : POSE + constant.shape[2]] = constant
        if with_shared:
            columns[..., -1] = shape[part] / state.scale
        slopes = columns.reshape(len(columns), -1, size)
        gradient[part] = (g[part].astype(np.float32).reshape(len(slopes), 1, -1) @ slopes)[:, 0]
        scaled = (factor[part].astype(np.float32) @ columns).reshape(len(columns), -1, size)
        full[part] = scaled.swapaxes(-1, -2) @ scaled
    own = POSE + expressions
    return Quadratic(
        frames=full[:, :own, :own],
        frames_gradient=gradient[:, :own],
        mixed=full[:, :own, own:],
        shared=full[:, own:, own:].sum(0),
        shared_gradient=gradient[:, own:].sum(0),
    )


def _rows(found: Residuals, observations: Observations, carry: Floats) -> list[Floats]:
    """Two arrays [T, C, L, 3]: derivatives of x and y residuals by position in a space that
    ``carry`` [T, 3, 3] takes to the world."""
    turn = observations.extrinsics[None, :, :, :3] @ carry[:, None]  # [T, C, 3, 3]
    inverse = 1 / (found.depth * found.unit[..., None])
    across = [
        (turn[:, :, None, axis] - found.plane[..., axis, None] * turn[:, :, None, 2])
        * inverse[..., None]
        for axis in range(2)
    ]
    K = observations.intrinsics[None, :, None, :, :, None]
    return [K[..., k, 0, :] * across[0] + K[..., k, 1, :] * across[1] for k in range(2)]


def _transposed_root(matrices: Floats) -> Floats:
    """U [..., 3, 3], upper triangular with U.T @ U = matrices (Cholesky), which may be singular."""
    root = np.zeros_like(matrices)
    tiny = 1e-12 + 1e-9 * np.trace(matrices, axis1=-2, axis2=-1)
    for i in range(3):
        left = matrices[..., i, i] + tiny - (root[..., :i, i] ** 2).sum(-1)
        root[..., i, i] = np.sqrt(np.maximum(left, tiny))
        for j in range(i + 1, 3):
            known = (root[..., :i, i] * root[..., :i, j]).sum(-1)
            root[..., i, j] = (matrices[..., i, j] - known) / root[..., i, i]
    return root
