"""Solving the normal equations: timesteps that share unknowns, or that follow each other smoothly.

Expressions are kept within 0..1 by holding those that are at a bound and push outward (projected
Newton, Bertsekas 1982), and by taking those that a step would carry beyond only to the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solveh_banded

from gha_core.fitting.residuals import POSE, Quadratic

Floats = NDArray[np.float64]
Step = tuple[Floats, Floats]
"""Of the timesteps' unknowns [T, F] and of the common ones [S]."""

_ROUNDS = 4  # of settling what would leave its bounds


def bounded(expression: Floats, gradient: Floats, solve: Callable[[Floats], Step]) -> Step:
    """The step that ``solve`` finds while expressions [T, E] stay within 0..1.

    Args:
        gradient: [T, 6 + E] of the unknowns.
        solve: takes [T, 6 + E] the steps that are settled, NaN where they are free.
    """
    push = gradient[:, POSE:]
    outward = ((expression <= 0) & (push > 0)) | ((expression >= 1) & (push < 0))
    settled = np.full(gradient.shape, np.nan)
    settled[:, POSE:][outward] = 0.0
    for _ in range(_ROUNDS):
        step = solve(settled)
        wanted = expression + step[0][:, POSE:]
        beyond = ((wanted < 0) | (wanted > 1)) & np.isnan(settled[:, POSE:])
        if not beyond.any():
            break
        settled[:, POSE:][beyond] = (wanted.clip(0, 1) - expression)[beyond]
    return step


def solve_shared(quadratic: Quadratic, settled: Floats, damping: float) -> Step:
    """Steps [T, F] and [S] of independent timesteps with common unknowns (Schur complement).

    Args:
        settled: [T, F] steps that are known already, NaN where they are not.
    """
    H, g, mixed = _without(quadratic, settled, damping)
    right = np.concatenate([g[..., None], mixed], axis=2)
    eliminated = np.linalg.solve(H, right)
    several = len(quadratic.shared)
    if not several:
        return -eliminated[..., 0], np.zeros(0)
    flat = eliminated.reshape(-1, several + 1)
    shared = quadratic.shared - mixed.reshape(-1, several).T @ flat[:, 1:]
    shared += damping * np.diag(np.diag(quadratic.shared))
    gradient = quadratic.shared_gradient - mixed.reshape(-1, several).T @ flat[:, 0]
    known = np.nan_to_num(settled).ravel()
    gradient += quadratic.mixed.reshape(-1, several).T @ known
    step = -cho_solve(cho_factor(shared), gradient)
    return -(eliminated[..., 0] + eliminated[..., 1:] @ step), step


@dataclass(frozen=True)
class Smoothness:
    """Second differences in time that should be small.

    Attributes:
        triples: [n, 3] indices of timesteps that follow each other.
        stencils: [n, 3] weights, so that the sum over a triple is 0 on a straight line.
        precision: [F] 1 / variance of the second difference of each unknown.
    """

    triples: NDArray[np.int64]
    stencils: Floats
    precision: Floats

    def energy(self, values: Floats) -> float:
        """Of the unknowns ``values`` [T, F]."""
        return float(0.5 * (self._bend(values) ** 2 * self.precision).sum())

    def gradient(self, values: Floats) -> Floats:
        """[T, F]."""
        bend = self._bend(values) * self.precision
        result = np.zeros_like(values)
        for corner in range(3):
            np.add.at(result, self.triples[:, corner], self.stencils[:, corner, None] * bend)
        return result

    def _bend(self, values: Floats) -> Floats:
        return np.einsum("nk,nkf->nf", self.stencils, values[self.triples])


def smoothness(timesteps: NDArray[np.int64], precision: Floats) -> Smoothness:
    """For the ordered timesteps of one sequence. Where frames are missing the stencil is that of
    uneven steps; across long gaps nothing is smoothed."""
    steps = np.diff(timesteps)
    usual = np.median(steps) if len(steps) else 1
    first = np.arange(max(len(timesteps) - 2, 0))
    before, after = steps[first].astype(float), steps[first + 1].astype(float)
    total = before + after
    stencils = np.stack([after / total, -np.ones_like(total), before / total], 1)
    # A parabola's second difference grows with the product of the steps; keep its meaning.
    stencils *= (usual**2 / (before * after))[:, None]
    near = np.maximum(before, after) <= 3 * usual
    triples = np.stack([first, first + 1, first + 2], 1)
    return Smoothness(triples[near], stencils[near], precision)


def solve_smooth(
    quadratic: Quadratic, smooth: Smoothness, values: Floats, settled: Floats, damping: float
) -> Floats:
    """Steps [T, F] of one sequence whose neighbours in time are coupled (block-banded Cholesky).

    Args:
        values: [T, F] the unknowns now, which smoothness speaks of.
        settled: [T, F] steps that are known already, NaN where they are not.
    """
    H, g, _ = _without(quadratic, settled, damping)
    free = np.isnan(settled)
    g = g + np.where(free, smooth.gradient(values + np.nan_to_num(settled)), 0.0)
    count, size = g.shape
    reach = 3 * size
    bands = np.zeros((reach, count * size))
    column = np.arange(size)
    for i in range(size):
        bands[i, :].reshape(count, size)[:, : size - i] = H[:, column[i:], column[: size - i]]
    for i in range(3):
        for j in range(i + 1):
            amount = smooth.stencils[:, i] * smooth.stencils[:, j]
            late, early = smooth.triples[:, i], smooth.triples[:, j]
            part = amount[:, None] * smooth.precision * (free[late] & free[early])
            np.add.at(bands[(i - j) * size].reshape(count, size), early, part)
    return -solveh_banded(bands, g.ravel(), lower=True, check_finite=False).reshape(count, size)


def _without(
    quadratic: Quadratic, settled: Floats, damping: float
) -> tuple[Floats, Floats, Floats]:
    """The frames' equations with the settled unknowns taken out, damped (Levenberg-Marquardt)."""
    free = np.isnan(settled)
    known = np.nan_to_num(settled)
    H = np.where(free[:, :, None] & free[:, None, :], quadratic.frames, 0.0)
    diagonal = np.diagonal(H, axis1=1, axis2=2)
    index = np.arange(H.shape[1])
    H[:, index, index] = np.where(free, diagonal * (1 + damping) + 1e-9, 1.0)
    g = quadratic.frames_gradient + (quadratic.frames @ known[..., None])[..., 0]
    return H, np.where(free, g, -known), np.where(free[:, :, None], quadratic.mixed, 0.0)
