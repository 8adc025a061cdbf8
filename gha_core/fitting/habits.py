"""How a detector errs on one person: beyond what it does to everybody, always alike.

It puts the brows of this face a little too high, the jaw line a little too far inside. A fit that
does not know mistakes some of that for an expression, in every timestep. What all training
timesteps agree on and no shape of a head explains is such a habit, and is taken off.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gha_core.fitting.observations import LandmarkModel, Observations
from gha_core.fitting.residuals import Conditions, State, residuals

Floats = NDArray[np.float64]

DOUBT = 2.0  # habits are drawn to none as by so many timesteps in which there is none


def with_habits(
    landmarks: LandmarkModel, state: State, observations: Observations, robust: float
) -> LandmarkModel:
    """The landmarks with this person's part of the detector's drift, learned from a fit of the
    timesteps ``observations``; ``robust`` (head lengths) as in the fit."""
    conditions = Conditions.at(state, landmarks, observations)
    found = residuals(state, landmarks, observations, conditions)
    squared = (found**2).sum(-1)
    trust = (conditions.trust / (1 + squared / robust**2) ** 2)[..., None]
    upright = _upright(found, state, observations)
    habit = -(trust * upright).sum((0, 1)) / (trust.sum((0, 1)) + DOUBT)
    drift = landmarks.drift.copy()
    drift[..., 0] += habit
    return replace(landmarks, drift=drift)


def _upright(values: Floats, state: State, observations: Observations) -> Floats:
    """[T, C, L, 2] vectors in the image, turned so that the head's up is the image's."""
    turn = observations.extrinsics[:, :, :3]
    up = np.einsum("cij,tj->tci", turn, state.matrices[:, :, 1])[..., :2]
    up /= np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-9)
    sine, cosine = up[..., 0, None], -up[..., 1, None]
    x, y = values[..., 0], values[..., 1]
    return np.stack([cosine * x + sine * y, cosine * y - sine * x], axis=-1)
