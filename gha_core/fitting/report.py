"""What a person should know of a tracking before they train on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gha_core.fitting import rotations
from gha_core.fitting.observations import LandmarkModel
from gha_core.fitting.tracker import Track

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

SEEN = 0.01  # head lengths; an expression that moves no landmark farther is guesswork
STILL = 0.05  # a coefficient that stays below never moved


def unobserved(landmarks: LandmarkModel, names: Sequence[str]) -> list[str]:
    """The expressions that landmarks do not show: at full strength none of them moves."""
    reach = np.linalg.norm(landmarks.expression, axis=1).max(0)
    return [name for name, far in zip(names, reach, strict=True) if far < SEEN]


def never_moved(expression: Floats, names: Sequence[str]) -> list[str]:
    """Of [T, E] coefficients those that stay at rest: an avatar will not learn them."""
    return [name for name, top in zip(names, expression.max(0), strict=True) if top < STILL]


def jitter(track: Track, sequences: Sequence[str], timesteps: Indices) -> dict[str, float]:
    """Median size of the second differences of the head's turn (degrees), of its place (mm, if the
    world is in metres) and of the expressions, over timesteps that follow each other evenly."""
    names, steps = np.array(sequences), np.diff(timesteps)
    even = (names[2:] == names[:-2]) & (steps[1:] == steps[:-1])
    if not even.any():
        return {}
    matrices = rotations.exponential(track.rotation)
    turns = rotations.logarithm(matrices[1:] @ matrices[:-1].swapaxes(-1, -2))
    bends = {
        "turn_degrees": np.degrees(np.diff(turns, axis=0)),
        "move_mm": 1000 * np.diff(track.translation, 2, axis=0),
        "expression": np.diff(track.expression, 2, axis=0),
    }
    return {
        name: float(np.median(np.linalg.norm(bend[even], axis=1))) for name, bend in bends.items()
    }


def worst_views(residual: Floats, most: int) -> list[tuple[int, int]]:
    """Up to ``most`` (timestep, camera) indices of [T, C] residuals, the largest first; at most one
    of each timestep."""
    known = np.where(np.isfinite(residual), residual, -np.inf)
    views = [(int(t), int(known[t].argmax())) for t in np.argsort(-known.max(1))[:most]]
    return [(t, c) for t, c in views if np.isfinite(known[t, c])]
