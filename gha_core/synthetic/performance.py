"""What the demo person does: smooth random expressions, gaze, blinks and head motion.

A performance is a chain of key poses from a small library of plausible combinations of ARKit
actions (a smile squints, a shout stretches), joined by minimum-jerk ramps; blinks, saccades and
head motion run on top on their own clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# action -> typical strength. "Both" stands for the Left and the Right action; each key pose is
# drawn with its own overall strength, some jitter per action and a slight left-right imbalance.
POSES: dict[str, dict[str, float]] = {
    "neutral": {},
    "smile": {"mouthSmileBoth": 0.75, "cheekSquintBoth": 0.5, "eyeSquintBoth": 0.3},
    "laugh": {
        "mouthSmileBoth": 0.85, "jawOpen": 0.4, "cheekSquintBoth": 0.7, "eyeSquintBoth": 0.5,
        "mouthUpperUpBoth": 0.3, "browOuterUpBoth": 0.2,
    },
    "shout": {
        "jawOpen": 0.85, "mouthStretchBoth": 0.4, "mouthLowerDownBoth": 0.4, "browInnerUp": 0.4,
        "eyeWideBoth": 0.5,
    },
    "surprise": {
        "browInnerUp": 0.8, "browOuterUpBoth": 0.8, "eyeWideBoth": 0.7, "jawOpen": 0.35,
        "mouthFunnel": 0.2,
    },
    "anger": {
        "browDownBoth": 0.9, "noseSneerBoth": 0.5, "mouthPressBoth": 0.5, "eyeSquintBoth": 0.4,
    },
    "sad": {"browInnerUp": 0.8, "mouthFrownBoth": 0.7, "mouthShrugLower": 0.4},
    "disgust": {"noseSneerBoth": 0.8, "mouthUpperUpBoth": 0.5, "browDownBoth": 0.5},
    "kiss": {"mouthPucker": 0.85, "mouthFunnel": 0.1},
    "oh": {"mouthFunnel": 0.6, "jawOpen": 0.35, "mouthPucker": 0.3, "browInnerUp": 0.2},
    "aa": {"jawOpen": 0.5, "mouthLowerDownBoth": 0.35, "mouthUpperUpBoth": 0.2},
    "ee": {"mouthStretchBoth": 0.45, "jawOpen": 0.12, "mouthSmileBoth": 0.3,
           "mouthLowerDownBoth": 0.5, "mouthUpperUpBoth": 0.35},
    "mm": {"mouthPressBoth": 0.5, "mouthRollLower": 0.4, "mouthRollUpper": 0.35},
    "ff": {"mouthRollLower": 0.5, "mouthUpperUpBoth": 0.4, "jawOpen": 0.08},
    "ll": {"jawOpen": 0.3, "mouthLowerDownBoth": 0.2, "tongueOut": 0.15},
    "wink": {"eyeBlinkLeft": 1.0, "cheekSquintLeft": 0.7, "mouthSmileLeft": 0.6},
    "smirk": {"mouthSmileRight": 0.7, "mouthDimpleRight": 0.5, "browOuterUpRight": 0.5},
    "puff": {"cheekPuff": 0.8, "mouthPressBoth": 0.4},
    "aside": {"mouthLeft": 0.6, "jawLeft": 0.3, "browDownLeft": 0.4, "browOuterUpRight": 0.4},
}  # fmt: skip

# Which poses a sequence is made of; others draw from the whole library.
REPERTOIRES: dict[str, tuple[str, ...]] = {
    "EMO": ("smile", "shout", "laugh", "surprise", "anger", "sad", "disgust", "oh", "wink"),
    "SEN": ("aa", "mm", "ee", "oh", "ff", "kiss", "smile", "ll", "aside", "puff", "smirk"),
}


@dataclass(frozen=True)
class Performance:
    """One sequence of motion.

    Attributes:
        expression: [T, E] coefficients in 0..1, in the order of the names it was asked with.
        rotation: [T, 3] yaw, pitch, roll of the head in radians.
        sway: [T, 3] translation of the head in metres.
    """

    expression: Array
    rotation: Array
    sway: Array


def perform(
    sequence: str, names: tuple[str, ...], timesteps: int, fps: float, rng: np.random.Generator
) -> Performance:
    """Motion for ``sequence``: the part of its name before the first ``-`` picks the repertoire.

    Args:
        names: the face model's expression names (ARKit), whose order the coefficients follow.
    """
    time = np.arange(timesteps) / fps
    actions = _key_poses(sequence, time, rng)
    _look_around(actions, time, rng)
    _blink(actions, time, rng)
    expression = np.zeros((timesteps, len(names)))
    for column, name in enumerate(names):
        if name in actions:
            expression[:, column] = np.clip(actions[name], 0.0, 1.0)
    rotation = np.stack(
        [
            _wander(time, np.radians(degrees), rng)
            for degrees in (14.0, 7.0, 5.0)  # yaw, pitch, roll
        ],
        axis=1,
    )
    sway = np.stack([_wander(time, metres, rng) for metres in (0.008, 0.005, 0.010)], axis=1)
    return Performance(expression, rotation, sway)


def _key_poses(sequence: str, time: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Poses with holds; every pose of the repertoire comes once before any comes twice."""
    repertoire = REPERTOIRES.get(sequence.split("-")[0], tuple(POSES))
    actions: dict[str, Array] = {}
    bag: list[str] = []
    start = 0.10
    previous: dict[str, float] = {}
    while start < time[-1] + 0.5:
        if not bag:
            bag = [str(name) for name in rng.permutation(repertoire)]
        target = _draw(POSES[bag.pop()], rng)
        ramp, hold = rng.uniform(0.16, 0.28), rng.uniform(0.03, 0.16)
        blend = _minimum_jerk((time - start) / ramp)
        for name in previous.keys() | target.keys():
            change = target.get(name, 0.0) - previous.get(name, 0.0)
            actions[name] = actions.get(name, np.zeros_like(time)) + change * blend
        start, previous = start + ramp + hold, target
    return actions


def _draw(pose: dict[str, float], rng: np.random.Generator) -> dict[str, float]:
    strength, drawn = rng.uniform(0.7, 1.15), {}
    for name, typical in pose.items():
        value = strength * typical * rng.uniform(0.8, 1.15)
        if name.endswith("Both"):
            tilt = rng.normal(0.0, 0.06)
            drawn[name[:-4] + "Left"] = float(np.clip(value * (1 + tilt), 0, 1))
            drawn[name[:-4] + "Right"] = float(np.clip(value * (1 - tilt), 0, 1))
        else:
            drawn[name] = float(np.clip(value, 0, 1))
    return drawn


def _look_around(actions: dict[str, Array], time: Array, rng: np.random.Generator) -> None:
    """Saccades: the gaze rests 0.25-0.8 s, then jumps within about 80 ms."""
    across, up = np.zeros_like(time), np.zeros_like(time)
    at, now = 0.0, np.zeros(2)
    while at < time[-1]:
        at += rng.uniform(0.25, 0.8)
        aim = np.array([rng.uniform(-0.7, 0.7), rng.uniform(-0.6, 0.45)]) * rng.choice([0.3, 1.0])
        blend = _minimum_jerk((time - at) / 0.08)
        across, up = across + (aim[0] - now[0]) * blend, up + (aim[1] - now[1]) * blend
        now = aim
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        # positive = the subject's left, where the left eye looks out and the right eye in
        actions[f"eyeLookOut{side}"] = np.maximum(sign * across, 0)
        actions[f"eyeLookIn{side}"] = np.maximum(-sign * across, 0)
        actions[f"eyeLookUp{side}"] = np.maximum(up, 0)
        actions[f"eyeLookDown{side}"] = np.maximum(-up, 0)


def _blink(actions: dict[str, Array], time: Array, rng: np.random.Generator) -> None:
    at = rng.uniform(0.2, 0.9)
    closed = np.zeros_like(time)
    while at < time[-1] + 0.3:
        # lids fall in about 100 ms, stay for a moment, and rise in about 170 ms
        fall, rise = _minimum_jerk((time - at) / 0.10), _minimum_jerk((time - at - 0.13) / 0.17)
        closed = np.maximum(closed, fall - rise)
        at += rng.uniform(0.8, 2.0)
    for side in ("Left", "Right"):
        name = f"eyeBlink{side}"
        actions[name] = np.maximum(actions.get(name, 0.0), closed)
        # A shut lid neither widens nor squints, or it would pass through the eye or the cheek.
        for other in (f"eyeWide{side}", f"eyeSquint{side}"):
            if other in actions:
                actions[other] = actions[other] * (1 - 0.8 * actions[name])


def _wander(time: Array, amplitude: float, rng: np.random.Generator) -> Array:
    """A slow smooth motion within about +-``amplitude``: three incommensurate sines."""
    total = np.zeros_like(time)
    for frequency, weight in ((0.21, 0.6), (0.43, 0.4), (0.87, 0.18)):
        phase = rng.uniform(0, 2 * np.pi)
        total += weight * np.sin(2 * np.pi * frequency * rng.uniform(0.85, 1.15) * time + phase)
    return amplitude * total


def _minimum_jerk(x: Array) -> Array:
    x = np.clip(x, 0.0, 1.0)
    return x**3 * (10 - 15 * x + 6 * x**2)
