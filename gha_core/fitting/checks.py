"""Whether a fit can be believed where residuals cannot tell: one side only, or long clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gha_core.faces import FaceModel
from gha_core.fitting import rotations
from gha_core.fitting.observations import LandmarkModel, Observations
from gha_core.fitting.residuals import Conditions, State, residuals
from gha_core.fitting.tracker import Track

Floats = NDArray[np.float64]

_LEAST = 8  # timesteps of a sequence, of whose halves something can be said


@dataclass(frozen=True)
class Drift:
    """How the fit of a sequence changes from its first half to its second.

    Attributes:
        shape: head lengths (RMS) by which the landmarks' mean places on the head differ. Of one
            person, filmed by one lens, they stay where they are.
        residual: mean residual of the second half over that of the first.
        distance: mean distance from the cameras of the second half over that of the first. With one
            camera a lens that zooms and a head that approaches are hard to tell apart.
    """

    shape: float
    residual: float
    distance: float


def drifts(model: FaceModel, track: Track, observations: Observations) -> dict[str, Drift]:
    """By sequence, of those that are long enough; timesteps that failed do not count."""
    landmarks = LandmarkModel.of(model)
    state = _state(track)
    conditions = Conditions.at(state, landmarks, observations)
    found = residuals(state, landmarks, observations, conditions)
    weight = conditions.trust
    centres = np.stack([camera.centre for camera in observations.cameras])
    away = np.linalg.norm(track.translation[:, None] - centres, axis=-1).mean(1)
    names = np.array(observations.sequences)
    result = {}
    for name in dict.fromkeys(observations.sequences):
        own = np.flatnonzero((names == name) & ~track.failed)
        if len(own) >= _LEAST:
            halves = np.array_split(own, 2)
            first, second = (_means(found[half], weight[half]) for half in halves)
            both = np.minimum(first[1], second[1])
            apart = ((second[0] - first[0]) ** 2).sum(-1)
            relative = [float(np.mean(track.relative[half])) for half in halves]
            distance = [float(np.mean(away[half])) for half in halves]
            result[name] = Drift(
                float(np.sqrt((both * apart).sum() / max(both.sum(), 1e-12))),
                relative[1] / max(relative[0], 1e-12),
                distance[1] / max(distance[0], 1e-12),
            )
    return result


def squarest_views(track: Track, observations: Observations) -> Floats:
    """[T] angle (rad) between the face and the camera, of those with a detection, that sees it
    most squarely; NaN without any."""
    forward = rotations.exponential(track.rotation)[:, :, 2]
    centres = np.stack([camera.centre for camera in observations.cameras])
    ray = centres - track.translation[:, None]
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    cosine = np.einsum("ti,tci->tc", forward, ray)
    best = np.where(observations.confidence > 0, cosine, -np.inf).max(1)
    return np.where(np.isfinite(best), np.arccos(np.clip(best, -1, 1)), np.nan)


def _means(values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """[C, L, 2] mean over time of [T, C, L, 2] with weights [T, C, L], and the weights' sum."""
    total = weight.sum(0)
    return (weight[..., None] * values).sum(0) / np.maximum(total, 1e-12)[..., None], total


def _state(track: Track) -> State:
    reference = np.tile(np.eye(3), (len(track.rotation), 1, 1))
    return State(
        reference, track.rotation, track.translation, track.expression, track.identity, track.scale
    )
