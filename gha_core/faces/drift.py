"""How the detector's points drift over the face as it turns away from the camera.

A detector that was trained on faces seen from the front slides contour points along the silhouette
and pulls a turned face towards its idea of one. Much of that depends on the view alone, so we
measure it with the correspondence and take it off again when fitting; several cameras that are all
wrong in their own direction would otherwise triangulate to a face that is too large.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEATURES = 6
_RIDGE = 0.3


def view_features(direction: Floats) -> Floats:
    """[..., 3] direction from the head to the camera in head space to [..., 6]: the quadratic
    polynomials in its sideways and upward parts."""
    unit = direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    x, y = unit[..., 0], unit[..., 1]
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def fit_drift(features: Floats, errors: Floats, weights: Floats) -> Floats:
    """Least-squares coefficients [L, 2, 6] of ``errors`` [R, L, 2] over ``features`` [R, 6] with
    ``weights`` [R]."""
    weighted = features * weights[:, None]
    normal = weighted.T @ features + _RIDGE * np.eye(FEATURES)
    solution = np.linalg.solve(normal, weighted.T @ errors.reshape(len(errors), -1))
    return np.stack(list(solution.reshape(FEATURES, *errors.shape[1:])), axis=-1)


def expected_drift(
    drift: Floats, matrices: Floats, translation: Floats, extrinsics: Floats
) -> Floats:
    """[T, C, L, 2] how far, in head lengths along the image's axes, the detector will be off.

    Args:
        drift: [L, 2, 6] for a head that is upright in the image.
        matrices: [T, 3, 3] and translation [T, 3]: head to world.
        extrinsics: [C, 3, 4] world to camera.
    """
    turn = extrinsics[:, :, :3]
    centres = -np.einsum("cji,cj->ci", turn, extrinsics[:, :, 3])
    to_camera = np.einsum("tji,tcj->tci", matrices, centres - translation[:, None])
    upright = np.einsum("tcf,ldf->tcld", view_features(to_camera), drift, optimize=True)
    up = np.einsum("cij,tj->tci", turn, matrices[:, :, 1])[..., :2]
    up /= np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-9)
    sine, cosine = up[..., 0, None], -up[..., 1, None]
    x, y = upright[..., 0], upright[..., 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)
