"""Solving the normal equations: timesteps that share unknowns, or that follow each other smoothly.

Expressions are kept within 0..1 by holding those that are at a bound and push outward (projected
Newton, Bertsekas 1982).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solveh_banded

from gha_core.fitting.residuals import POSE, Quadratic

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def held(expression: Floats, gradient: Floats) -> Bools:
    """[T, 6 + E] the unknowns that are at a bound and would leave it."""
    push = gradient[:, POSE:]
    outward = ((expression <= 0) & (push > 0)) | ((expression >= 1) & (push < 0))
    return np.concatenate([np.zeros((len(expression), POSE), bool), outward], axis=1)


def solve_shared(quadratic: Quadratic, hold: Bools, damping: float) -> tuple[Floats, Floats]:
    """Steps [T, F] and [S] of independent timesteps with common unknowns (Schur complement)."""
    H, g, mixed = _without(quadratic, hold, damping)
    right = np.concatenate([g[..., None], mixed], axis=2)
    eliminated = np.linalg.solve(H, right)
    if not len(quadratic.shared):
        return -eliminated[..., 0], np.zeros(0)
    shared = quadratic.shared - np.einsum("tfs,tfr->sr", mixed, eliminated[..., 1:])
    shared += damping * np.diag(np.diag(quadratic.shared))
    gradient = quadratic.shared_gradient - np.einsum("tfs,tf->s", mixed, eliminated[..., 0])
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
    quadratic: Quadratic, smooth: Smoothness, values: Floats, hold: Bools, damping: float
) -> Floats:
    """Steps [T, F] of one sequence whose neighbours in time are coupled (block-banded Cholesky).

    Args:
        values: [T, F] the unknowns now, which smoothness speaks of.
    """
    H, g, _ = _without(quadratic, hold, damping)
    g = g + np.where(hold, 0.0, smooth.gradient(values))
    count, size = g.shape
    reach = 3 * size
    bands = np.zeros((reach, count * size))
    column = np.arange(size)
    for i in range(size):
        bands[i, :].reshape(count, size)[:, : size - i] = H[:, column[i:], column[: size - i]]
    free = (~hold).astype(float)
    for i in range(3):
        for j in range(i + 1):
            amount = smooth.stencils[:, i] * smooth.stencils[:, j]
            late, early = smooth.triples[:, i], smooth.triples[:, j]
            part = amount[:, None] * smooth.precision * free[late] * free[early]
            np.add.at(bands[(i - j) * size].reshape(count, size), early, part)
    return -solveh_banded(bands, g.ravel(), lower=True, check_finite=False).reshape(count, size)


def _without(quadratic: Quadratic, hold: Bools, damping: float) -> tuple[Floats, Floats, Floats]:
    """The frames' equations with the held unknowns taken out, damped (Levenberg-Marquardt)."""
    H = np.where(hold[:, :, None] | hold[:, None, :], 0.0, quadratic.frames)
    diagonal = np.diagonal(H, axis1=1, axis2=2)
    index = np.arange(H.shape[1])
    H[:, index, index] = np.where(hold, 1.0, diagonal * (1 + damping) + 1e-9)
    g = np.where(hold, 0.0, quadratic.frames_gradient)
    return H, g, np.where(hold[:, :, None], 0.0, quadratic.mixed)
