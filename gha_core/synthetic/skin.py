"""The skin's colour: a painted map around the head, in the coordinates of the mean head.

Texels lie on a cylinder about the vertical axis: columns are the azimuth from the back over the
subject's right, face (middle) and left to the back; rows go from the crown down. The unwrapped UV
layout of MakeHuman would give lips and lids too few texels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.faces import FaceModel
from gha_core.synthetic.person import Person

Floats = NDArray[np.floating]

WIDTH, HEIGHT = 2048, 1024
TOP, BOTTOM = 0.75, -1.05  # head space
AXIS_Z = 0.05  # where the cylinder's axis passes, head space


@dataclass(frozen=True)
class Anatomy:
    """Where things are on the mean head, head space."""

    eyes: Floats  # [2, 3] left, right centres of the balls
    mouth: Floats  # [3] middle of the lips
    mouth_half_width: float
    nose_tip: Floats
    chin: Floats
    crown: float

    @staticmethod
    def of(model: FaceModel) -> Anatomy:
        mean = model.mean.numpy().astype(float)
        regions = {name: mask.numpy() for name, mask in model.regions.items()}
        balls = mean[regions["eyes"]]
        eyes = np.stack([balls[balls[:, 0] > 0].mean(0), balls[balls[:, 0] < 0].mean(0)])
        lips = mean[regions["lips"] & ~regions["mouth_interior"]]
        front = mean[regions["face"] & (np.abs(mean[:, 0]) < 0.05)]
        nose = front[front[:, 2].argmax()]
        low = mean[regions["face"] & (mean[:, 1] < lips[:, 1].min())]
        return Anatomy(
            eyes=eyes,
            mouth=np.array([0.0, lips[:, 1].mean(), lips[:, 2].max()]),
            mouth_half_width=float(lips[:, 0].max()),
            nose_tip=nose,
            chin=low[low[:, 1].argmin()],
            crown=float(mean[:, 1].max()),
        )


def texel(points: Floats) -> tuple[Floats, Floats]:
    """Column and row (float, cv2.remap convention) of [..., 3] points of the mean head."""
    azimuth = np.arctan2(points[..., 0], points[..., 2] - AXIS_Z)
    column = (azimuth / (2 * np.pi) + 0.5) * WIDTH - 0.5
    row = (TOP - points[..., 1]) / (TOP - BOTTOM) * HEIGHT - 0.5
    return column, row


def hairline(azimuth: Floats, seed_wave: Floats | float = 0.0) -> Floats:
    """Height (head space) above which hair grows, by |azimuth| in degrees on the cylinder."""
    return (
        np.interp(
            np.abs(azimuth),
            [0, 20, 38, 52, 62, 70, 80, 96, 110, 130, 180],
            [0.475, 0.465, 0.42, 0.34, 0.20, 0.12, -0.02, 0.06, -0.06, -0.25, -0.30],
        )
        + seed_wave
    )


def paint(model: FaceModel, person: Person) -> NDArray[np.float32]:
    """[HEIGHT, WIDTH, 3] linear albedo."""
    rng = np.random.default_rng([person.seed, 2])
    anatomy = Anatomy.of(model)
    y = (TOP - (np.arange(HEIGHT) + 0.5) / HEIGHT * (TOP - BOTTOM))[:, None]
    azimuth = ((np.arange(WIDTH) + 0.5) / WIDTH - 0.5)[None] * 2 * np.pi
    skin = np.broadcast_to(person.skin, (HEIGHT, WIDTH, 3)).copy()
    pale = 1.0 - 0.6 * person.tone
    _mottle(skin, pale, rng)

    def spot(point: Floats, wide: float, high: float) -> Floats:
        """Gaussian bump around a point of the head, mirrored to both sides if off-centre."""
        at = np.arctan2(abs(point[0]), point[2] - AXIS_Z)
        d2 = ((np.abs(azimuth) - at) / wide) ** 2 + ((y - point[1]) / high) ** 2
        return np.exp(-0.5 * d2)[..., None]

    eye, mouth, nose = anatomy.eyes[0], anatomy.mouth, anatomy.nose_tip
    cheek = eye + [0.06, -0.20, 0.0]
    blush = np.array([1.0, 0.80, 0.80])
    flush = 0.55 * spot(cheek, 0.24, 0.075) + 0.5 * spot(nose, 0.12, 0.045)
    flush += 0.3 * spot(anatomy.chin + [0, 0.05, 0], 0.2, 0.05) + 0.25 * spot(mouth, 0.3, 0.08)
    flush *= rng.uniform(0.8, 1.3) * pale
    skin *= blush ** np.clip(flush, 0, 1.2)
    socket = 0.55 * spot(eye + [-0.02, 0.01, 0], 0.19, 0.05) + 0.45 * spot(
        eye + [-0.02, -0.075, 0], 0.14, 0.03
    )
    skin *= np.array([0.86, 0.76, 0.76]) ** (socket * rng.uniform(0.8, 1.4))
    forehead = spot(np.array([0.0, 0.33, 0.4]), 0.5, 0.12)
    skin *= np.array([1.04, 1.035, 1.0]) ** forehead
    _freckle(skin, person, azimuth, y, cheek, rng)
    if person.stubble > 0:
        _shade_beard(skin, person, anatomy, azimuth, y, rng)
    _tint_scalp(skin, person, azimuth, y, rng)
    _draw_brows(skin, person, anatomy, rng)
    return np.clip(skin, 0.004, 0.95).astype(np.float32)


def noise(rng: np.random.Generator, sigma: float) -> Floats:
    """[HEIGHT, WIDTH, 1] of unit variance, blurred by ``sigma`` texels, seamless in azimuth."""
    shrink = max(1, int(sigma / 3))
    small = rng.normal(size=(HEIGHT // shrink, WIDTH // shrink)).astype(np.float32)
    pad = int(4 * sigma / shrink) + 1
    wide = np.concatenate([small[:, -pad:], small, small[:, :pad]], 1)
    soft = cv2.GaussianBlur(wide, (0, 0), sigma / shrink)[:, pad:-pad]
    soft = cv2.resize(soft, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return ((soft - soft.mean()) / soft.std())[..., None]


def _mottle(skin: Floats, pale: float, rng: np.random.Generator) -> None:
    for sigma, amount in ((60, 0.03), (18, 0.025), (6, 0.022), (2.5, 0.02), (1.2, 0.02)):
        skin *= 1 + amount * noise(rng, sigma)
    redness = 0.03 * noise(rng, 25) + 0.025 * noise(rng, 8)
    skin *= np.array([1.0, 0.75, 0.8]) ** (pale * np.clip(redness * 2, -0.2, 0.3))


def _freckle(
    skin: Floats,
    person: Person,
    azimuth: Floats,
    y: Floats,
    cheek: Floats,
    rng: np.random.Generator,
) -> None:
    layer = np.zeros((HEIGHT, WIDTH), np.float32)
    for _ in range(int(900 * person.freckles)):
        a, h = rng.normal(0, 0.55), rng.normal(cheek[1] + 0.05, 0.09)
        at = (
            int((a / (2 * np.pi) + 0.5) * WIDTH * 8),
            int((TOP - h) / (TOP - BOTTOM) * HEIGHT * 8),
        )
        strength = float(rng.uniform(0.15, 0.6))
        cv2.circle(layer, at, int(rng.uniform(1.0, 2.6) * 8), strength, -1, cv2.LINE_AA, 3)
    for _ in range(int(rng.integers(2, 6))):  # moles
        a, h = rng.normal(0, 0.8), rng.uniform(-0.7, 0.3)
        at = (
            int((a / (2 * np.pi) + 0.5) * WIDTH * 8),
            int((TOP - h) / (TOP - BOTTOM) * HEIGHT * 8),
        )
        cv2.circle(layer, at, int(rng.uniform(2.5, 4) * 8), 1.6, -1, cv2.LINE_AA, 3)
    layer = cv2.GaussianBlur(layer, (0, 0), 0.9)
    skin *= np.array([0.72, 0.55, 0.45]) ** layer[..., None]


def _shade_beard(
    skin: Floats, person: Person, anatomy: Anatomy, azimuth: Floats, y: Floats,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    degrees = np.degrees(np.abs(azimuth))
    mouth, nose = anatomy.mouth[1], anatomy.nose_tip[1]
    upper = np.interp(degrees, [0, 12, 22, 34, 50, 66, 76, 84],
                      [nose - 0.055, nose - 0.06, mouth + 0.02, mouth - 0.02, mouth + 0.02,
                       mouth + 0.15, 0.05, 0.06])  # fmt: skip
    lower = anatomy.chin[1] - 0.10
    soft = 0.022
    mask = 1 / (1 + np.exp(-(upper - y) / soft)) / (1 + np.exp(-(y - lower) / 0.05))
    mask = mask / (1 + np.exp((degrees - 84) / 2.5))
    grain = 1 + 0.30 * noise(rng, 1.3)[..., 0] + 0.2 * noise(rng, 7)[..., 0]
    shade = np.clip(person.stubble * mask * grain, 0, 1)[..., None]
    target = 0.62 * person.hair + 0.38 * np.array([0.06, 0.065, 0.07]) + 0.02
    skin += (0.62 * shade) * (target - skin)


def _tint_scalp(
    skin: Floats, person: Person, azimuth: Floats, y: Floats, rng: np.random.Generator
) -> None:
    wave = 0.02 * noise(rng, 14)[..., 0] + 0.014 * noise(rng, 4)[..., 0]
    line = hairline(np.degrees(azimuth), wave)
    cover = 1 / (1 + np.exp(-(y - line - 0.005) / 0.012))
    strength = 0.90 if person.hair_style != "crop" else 0.82
    skin += strength * cover[..., None] * (0.55 * person.hair - skin)


def _draw_brows(skin: Floats, person: Person, anatomy: Anatomy, rng: np.random.Generator) -> None:
    layer = np.zeros((HEIGHT, WIDTH), np.float32)
    scale = 16.0  # sub-texel positions
    eye = anatomy.eyes[0]
    arch = rng.uniform(0.9, 1.25) if person.sex == "woman" else rng.uniform(0.6, 0.95)
    thick = 0.021 * person.brow_weight
    inner, outer = 0.062, eye[0] + 0.105
    lift = eye[1] + rng.uniform(0.098, 0.110)
    count = int(330 * (0.6 + 0.4 * person.brow_weight))
    for side in (1, -1):
        for along in rng.uniform(0, 1, count):
            x = inner + (outer - inner) * along
            rise = (
                0.042 * arch * np.sin(np.pi * np.clip(along * 0.78 + 0.02, 0, 1)) - 0.018 * along**3
            )
            body = thick * (1 - 0.72 * along**1.6) * (0.75 + 0.5 * min(1, along * 5))
            across = rng.uniform(-0.5, 0.5)
            root = np.array([x, lift + rise + across * body])
            lean = np.radians(70 - 62 * along**0.55 + rng.normal(0, 9) - 30 * across)
            length = rng.uniform(0.018, 0.034) * (1 - 0.35 * along)
            tip = root + length * np.array([np.cos(lean), np.sin(lean) * 0.75])
            ends = []
            for px, py in (root, tip):
                depth = np.interp(px, [0.0, 0.1, 0.2, 0.3, 0.36], [0.46, 0.45, 0.41, 0.33, 0.24])
                column, row = texel(np.array([side * px, py, depth]))
                ends.append((int(column * scale), int(row * scale)))
            weight = float(rng.uniform(0.35, 0.8))
            stroke = np.zeros_like(layer[:1, :1])  # colour of a line must be a scalar for cv2
            del stroke
            cv2.line(layer, ends[0], ends[1], weight, 2 if along < 0.75 else 1, cv2.LINE_AA, 4)
    cover = cv2.GaussianBlur(layer, (0, 0), 0.8)
    base = cv2.GaussianBlur(layer, (0, 0), 5.0)
    cover = np.clip(0.75 * cover + 0.45 * base, 0, 0.93)[..., None]
    colour = 0.8 * person.hair + 0.2 * np.array([0.03, 0.02, 0.015])
    skin += cover * (np.minimum(colour, person.skin * 0.55) - skin)
