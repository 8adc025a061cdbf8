"""Head poses that another tracker found, in place of our own.

The other model's head and ours are the same head in other coordinates, which nobody knows without
that model's files. Our own poses of the training timesteps tell them: of the rotation one constant
turn C, and of the position three constant vectors (:mod:`gha_core.capture.tracked` says why)::

    R = R_given C          t = t_given + a + R_root b + R_given c

by least squares with the weights of a Cauchy loss, for our poses have outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gha_core.fitting import rotations

Floats = NDArray[np.float64]
_ROUNDS = 12


@dataclass(frozen=True)
class GivenPoses:
    """Poses of T timesteps.

    Attributes:
        rotation: [T, 3, 3] head to world; root: [T, 3, 3] without the neck's turn.
        translation: [T, 3] world units.
        known: [T] False where there is none; the rest is then of no meaning.
    """

    rotation: Floats
    root: Floats
    translation: Floats
    known: NDArray[np.bool_]

    def select(self, keep: NDArray[np.int64]) -> GivenPoses:
        return GivenPoses(
            self.rotation[keep], self.root[keep], self.translation[keep], self.known[keep]
        )


@dataclass(frozen=True)
class Adopted:
    """Given poses in our head's coordinates.

    Attributes:
        rotation: [T, 3, 3]; translation: [T, 3].
        turned: [n] radians and moved: [n] world units, how far from our own poses of the timesteps
            they were fitted to.
    """

    rotation: Floats
    translation: Floats
    turned: Floats
    moved: Floats


def adopt(
    given: GivenPoses, rotation: Floats, translation: Floats, use: NDArray[np.bool_]
) -> Adopted:
    """The given poses as poses of our head.

    Args:
        rotation: [T, 3, 3] and translation: [T, 3] our own poses.
        use: [T] timesteps to learn the constants from, at least one of them known.
    """
    learn = use & given.known
    turns = given.rotation[learn].swapaxes(-1, -2) @ rotation[learn]
    weight = np.ones(len(turns))
    for _ in range(_ROUNDS):
        constant = _mean(turns, weight)
        off = np.linalg.norm(rotations.logarithm(turns @ constant.T), axis=-1)
        weight = _cauchy(off)
    eye = np.broadcast_to(np.eye(3), given.rotation.shape)
    design = np.concatenate([eye, given.root, given.rotation], axis=2)
    gap = (translation - given.translation)[learn]
    weight = np.ones(len(gap))
    for _ in range(_ROUNDS):
        root = np.sqrt(weight)[:, None, None]
        rows = (design[learn] * root).reshape(-1, 9)
        # Where the head hardly turns, the vectors cannot be told apart; the shortest ones do.
        vectors = np.linalg.lstsq(rows, (gap * root[..., 0]).ravel(), rcond=1e-4)[0]
        moved = np.linalg.norm(gap - design[learn] @ vectors, axis=-1)
        weight = _cauchy(moved)
    return Adopted(given.rotation @ constant, given.translation + design @ vectors, off, moved)


def _mean(matrices: Floats, weight: Floats) -> Floats:
    """[3, 3] weighted chordal mean."""
    u, _, v = np.linalg.svd((weight[:, None, None] * matrices).sum(0))
    return u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v


def _cauchy(distance: Floats) -> Floats:
    usual = float(np.median(distance)) or 1e-12
    return 1 / (1 + (distance / (2 * usual)) ** 2)
