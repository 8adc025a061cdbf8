"""The focal length of a camera that nobody calibrated, from the faces that it saw.

A face nearby bulges: its nose is much nearer to the camera than its ears. The same face far away,
through a longer lens, has the same size and is flat. How deep faces are is known, so that the best
of several focal lengths is the one with which a plausible head explains the landmarks best. It is a
weak clue, and the detector errs the same way in all frames; hence the result is drawn towards
what cameras usually have, and says how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.faces import FaceModel
from gha_core.fitting.initial_pose import initial_pose
from gha_core.fitting.observations import LandmarkModel, Observations
from gha_core.fitting.residuals import Conditions, State, pull
from gha_core.fitting.tracker import WORN, Fitter, Settings, first_state

SPREAD = 0.35  # standard deviation of the logarithm of focal lengths about the usual one
STEPS = np.linspace(-0.8, 0.8, 5)  # logarithms of those that are tried over the usual one
VIEWS = 12.0  # the detector's habits are the same in all frames, which count as so many
HABITS = 0.1  # what the detector's habits with this face may add to the deviation
ROUNDS = 12  # steps of a fit, twice


@dataclass(frozen=True)
class FocalLength:
    """pixels; deviation: standard deviation, relative; usual: px, what was known beforehand."""

    pixels: float
    deviation: float
    usual: float


@threadpool_limits.wrap(limits=1, user_api="blas")
def estimate_focal_length(
    model: FaceModel, observations: Observations, settings: Settings | None = None
) -> FocalLength:
    """Of the only camera of ``observations``, whose focal length is the usual one.

    Raises:
        StageError: no head pose explains the landmarks.
    """
    settings = settings or Settings()
    landmarks = LandmarkModel.of(model)
    usual = float(observations.intrinsics[0, 0, 0])
    fitter = Fitter(landmarks, settings, model, model.metres_per_unit)
    tried = [through(observations, usual * float(np.exp(step))) for step in STEPS]
    states = [_fitted(fitter, seen, model.metres_per_unit) for seen in tried]
    middle = Conditions.at(states[len(states) // 2], landmarks, observations)
    energies = np.empty(len(STEPS))
    for index, (state, seen) in enumerate(zip(states, tried, strict=True)):
        # The same landmarks count as much through each lens.
        own = Conditions.at(state, landmarks, seen)
        own = replace(own, trust=middle.trust, drift=middle.drift)
        energies[index] = pull(state, landmarks, seen, own, settings.robust).energy
        energies[index] += _prior(state, fitter, seen)
    return _weighed(usual, energies * min(1.0, VIEWS / len(observations.timesteps)))


def _weighed(usual: float, energies: NDArray[np.float64]) -> FocalLength:
    """Mean and deviation of the logarithm, given the energies at STEPS and what is usual."""
    # What the picture shows is perspective, which goes with 1 / focal length. A fit that got stuck
    # is too high and has little say.
    above = energies - energies.min()
    evidence = np.polynomial.Polynomial.fit(np.exp(-STEPS), above, 2, w=1 / (1 + above))
    grid = np.linspace(STEPS[0], STEPS[-1], 200)
    exponent = -evidence(np.exp(-grid)) - 0.5 * (grid / SPREAD) ** 2
    share = np.exp(exponent - exponent.max())
    share /= share.sum()
    mean = float(share @ grid)
    deviation = float(np.hypot(np.sqrt(share @ (grid - mean) ** 2), HABITS))
    return FocalLength(usual * float(np.exp(mean)), deviation, usual)


def through(observations: Observations, pixels: float) -> Observations:
    """The same points, seen by the only camera through another focal length."""
    camera = observations.cameras[0]
    K = camera.K.copy()
    K[0, 0], K[1, 1] = pixels, pixels * K[1, 1] / K[0, 0]
    return replace(observations, cameras=(replace(camera, K=K),))


def _fitted(fitter: Fitter, observations: Observations, metres_per_unit: float) -> State:
    """From the start, so that no focal length profits from the fit of another."""
    landmarks = fitter.landmarks
    start = initial_pose(observations, landmarks, metres_per_unit)
    identity = np.zeros(landmarks.identity.shape[2])
    state = first_state(observations, landmarks, start, identity, {})
    state = fitter.together(state, observations, False, ROUNDS, 4.0)
    return fitter.together(state, observations, False, ROUNDS)


def _prior(state: State, fitter: Fitter, observations: Observations) -> float:
    settings = fitter.settings
    strength = settings.identity_prior * float(observations.views.sum())
    person = 0.5 * strength * float(state.identity @ state.identity)
    worn = WORN * settings.expression_sparsity
    return person + fitter.expressions.energy(state.expression, worn)
