"""Points in the world from their pixels in several calibrated views, some of them wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera

Array = NDArray[np.float64]

_MAX_PAIRS = 120
"""Pairs of views that are tried per point: all of them for up to 16 views."""


@dataclass(frozen=True)
class Triangulation:
    """Attributes:
    points: [L, 3] world, metres; NaN where fewer than two views agree.
    error: [L] median reprojection error over the inlier views, pixels; NaN where unknown.
    views: [L] number of inlier views; 0 where unknown.
    inliers: [V, L] which views agree with each point.
    distances: [V, L] reprojection error of every view, pixels; NaN where point or pixel is unknown.
    """

    points: Array
    error: Array
    views: NDArray[np.int32]
    inliers: NDArray[np.bool_]
    distances: Array


def triangulate(
    pixels: Array,
    cameras: Sequence[Camera],
    weights: Array | None = None,
    threshold: float = 4.0,
    iterations: int = 5,
) -> Triangulation:
    """Robust triangulation of L points seen by V undistorted cameras.

    Every pair of views proposes a point; the proposal that the views support best (truncated
    squared reprojection error, MSAC) is refined on its inliers by Gauss-Newton steps with Cauchy
    weights, that is, it minimises pixels and not the algebraic error of the linear solution.

    Args:
        pixels: [V, L, 2]; NaN where a view has no such point.
        cameras: V cameras, in the same order.
        weights: [V, L] or [V], >= 0: confidence of each observation; 0 ignores it. Default 1.
        threshold: reprojection error of an inlier, pixels.
        iterations: of the refinement.

    Warning:
        Two nearly parallel rays say little about depth; pairs that meet at less than 2 degrees
        propose nothing, and a point seen only by such pairs stays unknown.
    """
    pixels = np.asarray(pixels, float)
    count, length = pixels.shape[:2]
    weight = np.ones((count, length)) if weights is None else np.asarray(weights, float)
    weight = np.broadcast_to(weight[:, None] if weight.ndim == 1 else weight, (count, length))
    seen = np.isfinite(pixels).all(axis=-1) & (weight > 0)
    weight = np.where(seen, weight, 0.0)
    pixels = np.where(seen[..., None], pixels, 0.0)

    K = np.stack([camera.K for camera in cameras])
    w2c = np.stack([camera.w2c[:3] for camera in cameras])
    points = _best_proposal(pixels, weight, seen, K, w2c, threshold)
    for _ in range(iterations):
        points = _refine(points, pixels, weight, K, w2c, threshold)

    errors = np.where(seen, _errors(points, pixels, K, w2c), np.inf)
    inliers = errors < threshold
    views = inliers.sum(axis=0)
    known = (views >= 2) & np.isfinite(points).all(axis=-1)
    known &= _widest_angle(points, inliers, cameras) >= _MIN_ANGLE
    inliers &= known
    error = np.full(length, np.nan)
    if known.any():
        error[known] = np.nanmedian(np.where(inliers, errors, np.nan)[:, known], axis=0)
    return Triangulation(
        np.where(known[:, None], points, np.nan),
        error,
        np.where(known, views, 0).astype(np.int32),
        inliers,
        np.where(known & np.isfinite(errors), errors, np.nan),
    )


_MIN_ANGLE = np.radians(2.0)


def _best_proposal(
    pixels: Array, weight: Array, seen: NDArray[np.bool_], K: Array, w2c: Array, threshold: float
) -> Array:
    """[L, 3] the pairwise linear solution with the least truncated error over all views."""
    count, length = weight.shape
    pairs = list(combinations(range(count), 2))
    if len(pairs) > _MAX_PAIRS:  # evenly, so that near and far pairs are among them
        pairs = [pairs[i] for i in np.linspace(0, len(pairs) - 1, _MAX_PAIRS).astype(int)]
    best = np.full((length, 3), np.nan)
    cost = np.full(length, np.inf)
    # Unit rays in the world: the midpoint of two rays costs one 2x2 solve, a DLT an SVD.
    homogeneous = np.concatenate([pixels, np.ones((count, length, 1))], axis=-1)
    local = homogeneous @ np.linalg.inv(K).mT
    rays = local @ w2c[:, :, :3]
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    centres = -np.einsum("vji,vj->vi", w2c[:, :, :3], w2c[:, :, 3])
    for a, b in pairs:
        both = seen[a] & seen[b]
        if not both.any():
            continue
        cosine = (rays[a] * rays[b]).sum(axis=-1)
        wide = np.arccos(np.clip(np.abs(cosine), 0, 1)) >= _MIN_ANGLE
        both &= wide
        base = centres[b] - centres[a]
        along_a, along_b = rays[a] @ base, rays[b] @ base
        with np.errstate(divide="ignore", invalid="ignore"):
            span = 1 - cosine**2
            s = (along_a - cosine * along_b) / span
            t = (cosine * along_a - along_b) / span
        point = (centres[a] + s[:, None] * rays[a] + centres[b] + t[:, None] * rays[b]) / 2
        errors = np.minimum(_errors(point, pixels, K, w2c), threshold)
        total = (weight * np.where(np.isfinite(errors), errors, threshold) ** 2).sum(axis=0)
        better = both & (s > 0) & (t > 0) & (total < cost)
        best[better], cost[better] = point[better], total[better]
    return best


def _refine(
    points: Array, pixels: Array, weight: Array, K: Array, w2c: Array, threshold: float
) -> Array:
    """One Gauss-Newton step of every point on the views that are inliers at present."""
    local = np.matmul(points, w2c[:, :, :3].mT) + w2c[:, None, :, 3]
    depth = local[..., 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        residual = ((local / depth) @ K.mT)[..., :2] - pixels
        # d(pixel) / d(local), then to the world through the camera's rotation.
        flat = np.zeros((*depth.shape[:2], 2, 3))
        flat[..., 0, 0] = flat[..., 1, 1] = 1 / depth[..., 0]
        flat[..., :, 2] = -local[..., :2] / depth**2
    jacobian = K[:, None, :2, :2] @ flat @ w2c[:, None, :, :3]
    square = (residual**2).sum(axis=-1)
    robust = weight / (1 + square / (threshold / 2) ** 2)
    robust = np.where((square < threshold**2) & (depth[..., 0] > 0), robust, 0.0)
    use = robust[..., None] > 0
    residual = np.where(use, residual, 0.0)
    jacobian = np.where(use[..., None], jacobian, 0.0)
    weighted = robust[..., None, None] * jacobian.mT
    normal = (weighted @ jacobian).sum(axis=0)
    gradient = (weighted @ residual[..., None]).sum(axis=0)[..., 0]
    # Relative damping keeps points with one view left (or none) where they are.
    damping = 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-30
    step = np.linalg.solve(normal + damping * np.eye(3), gradient[..., None])[..., 0]
    enough = (robust > 0).sum(axis=0) >= 2
    return points - np.where(enough[:, None], step, 0.0)


def _errors(points: Array, pixels: Array, K: Array, w2c: Array) -> Array:
    """[V, L] reprojection error in pixels; infinite behind a camera and for unknown points."""
    projection = K @ w2c
    projected = np.matmul(points, projection[:, :, :3].mT) + projection[:, None, :, 3]
    depth = projected[..., 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = projected[..., :2] / depth[..., None] - pixels
        error = np.sqrt((away * away).sum(axis=-1))
    return np.where((depth > 0) & np.isfinite(error), error, np.inf)


def _widest_angle(
    points: Array, inliers: NDArray[np.bool_], cameras: Sequence[Camera]
) -> NDArray[np.float64]:
    """[L] the largest angle (rad) at which two inlier views see the point."""
    centres = np.stack([camera.centre for camera in cameras])
    directions = points[None] - centres[:, None]
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    cosines = np.einsum("vld,wld->vwl", directions, directions)
    both = inliers[:, None] & inliers[None]
    cosines = np.where(both & np.isfinite(cosines), cosines, 1.0)
    return np.arccos(np.clip(cosines.min(axis=(0, 1)), -1, 1))
