"""The demo's studio: calibrated cameras in an arc, defocused surroundings, lights that stay put.

World: metres, +y up, +z from the head towards the cameras, origin on the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera, look_at

Array = NDArray[np.float64]

HEAD_CENTRE = np.array([0.04, 1.24, -0.06])  # where the rig looks: the middle of a seated head
DISTANCE = 1.05  # m
# Height of the field of view at the head: head with hair fills three quarters of the square crop.
SQUARE = 0.345  # m across the shorter image side

# Serial, azimuth (degrees, positive = camera right of the subject's own left...+x), elevation.
RIG: tuple[tuple[str, float, float], ...] = (
    ("222200042", -60.0, 4.0),
    ("222200044", -46.0, -8.0),
    ("222200046", -32.0, 14.0),
    ("222200040", -18.0, -5.0),
    ("222200036", -9.0, 18.0),
    ("222200037", 4.0, 1.0),
    ("222200038", 17.0, -10.0),
    ("222200048", 31.0, 9.0),
    ("220700191", 47.0, -4.0),
    ("222200041", 60.0, 12.0),
)


@dataclass(frozen=True)
class Light:
    """A far light of some extent: ``radiance`` [3] linear RGB reaching a facing white surface."""

    direction: Array
    radiance: Array
    spread: float  # radians, half angle of the soft box


def rig(count: int, width: int, height: int, rng: np.random.Generator) -> list[Camera]:
    """``count`` cameras spread evenly over the whole arc; they converge on HEAD_CENTRE."""
    chosen = np.unique(np.round(np.linspace(0, len(RIG) - 1, count)).astype(int))
    cameras = []
    for index in chosen:
        serial, azimuth, elevation = RIG[index]
        turn, lift = np.radians([azimuth, elevation])
        away = np.array([np.sin(turn) * np.cos(lift), np.sin(lift), np.cos(turn) * np.cos(lift)])
        distance = DISTANCE * rng.uniform(0.97, 1.03)
        target = HEAD_CENTRE + rng.normal(0, 0.0015, 3)
        up = np.array([np.sin(np.radians(rng.normal(0, 1.0))), 1.0, 0.0])
        focal = min(width, height) * DISTANCE / SQUARE * rng.uniform(0.99, 1.01)
        centre = np.array([width, height]) / 2 + rng.normal(0, 0.008, 2) * width
        K = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
        w2c = look_at(HEAD_CENTRE + distance * away, target, up)
        cameras.append(Camera(serial, K, w2c, width, height))
    return sorted(cameras, key=lambda camera: camera.name)


def lights(rng: np.random.Generator) -> tuple[list[Light], Array]:
    """Key, fill and rim, and the [3] ambient radiance; the key's side changes with the seed."""
    side = rng.choice([-1.0, 1.0])
    warm, cool = np.array([1.0, 0.95, 0.89]), np.array([0.90, 0.96, 1.0])

    def towards(azimuth: float, elevation: float) -> Array:
        a, e = np.radians([azimuth, elevation])
        return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])

    key = Light(towards(side * rng.uniform(28, 40), rng.uniform(28, 38)), 1.34 * warm, 0.30)
    fill = Light(towards(-side * rng.uniform(40, 60), rng.uniform(0, 15)), 0.55 * cool, 0.55)
    rim = Light(towards(-side * rng.uniform(125, 145), rng.uniform(25, 40)), 0.9 * cool, 0.25)
    return [key, fill, rim], np.array([0.30, 0.315, 0.33])


def background(camera: Camera, rng: np.random.Generator) -> NDArray[np.float32]:
    """[H, W, 3] linear RGB: a cool grey wall, stands, panels and lamps, all far out of focus."""
    height, width = camera.height, camera.width
    scale = width / 288
    rows = np.linspace(0, 1, height)[:, None, None]
    top, bottom = np.array([0.20, 0.27, 0.31]), np.array([0.10, 0.135, 0.16])
    wall = np.broadcast_to((1 - rows) * top + rows * bottom, (height, width, 3)).copy()
    wall *= rng.uniform(0.85, 1.15)
    tints = np.array([[0.05, 0.09, 0.13], [0.10, 0.20, 0.20], [0.34, 0.40, 0.44],
                      [0.05, 0.06, 0.07], [0.13, 0.21, 0.15], [0.16, 0.18, 0.30]])  # fmt: skip
    for _ in range(int(rng.integers(9, 14))):
        colour = tuple(float(c) for c in tints[rng.integers(len(tints))] * rng.uniform(0.7, 1.2))
        x, y = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1.1) * height
        if rng.random() < 0.5:  # stands and frames: long bars
            angle = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.08)
            along = np.array([np.cos(angle), np.sin(angle)]) * height * rng.uniform(0.4, 1.2)
            ends = [np.round(np.array([x, y]) + s * along).astype(int).tolist() for s in (-1, 1)]
            cv2.line(wall, ends[0], ends[1], colour, max(2, int(rng.uniform(6, 18) * scale)))
        else:  # panels and boxes
            size = rng.uniform(0.06, 0.25, 2) * width
            box = cv2.boxPoints(((x, y), (size[0], size[1]), rng.normal(0, 6))).astype(int)
            cv2.fillPoly(wall, [box], colour)
    for _ in range(int(rng.integers(1, 4))):  # lamps out of focus
        at = (int(rng.uniform(0, width)), int(rng.uniform(0, 0.5) * height))
        glow = rng.uniform(0.5, 0.8) * np.array([0.93, 1.0, 1.03])
        cv2.circle(wall, at, int(rng.uniform(5, 12) * scale), tuple(glow.tolist()), -1)
    blurred = cv2.GaussianBlur(wall, (0, 0), 6.5 * scale)
    return np.asarray(blurred, np.float32)
