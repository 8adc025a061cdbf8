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
            [0.395, 0.395, 0.375, 0.30, 0.19, 0.10, -0.03, 0.06, -0.06, -0.25, -0.30],
        )
        + seed_wave
    )


def paint(model: FaceModel, person: Person) -> NDArray[np.float32]:
    """[HEIGHT, WIDTH, 4]: linear albedo, and how much the skin shines (0 matt .. 1 wet lips)."""
    rng = np.random.default_rng([person.seed, 2])
    anatomy = Anatomy.of(model)
    y = (TOP - (np.arange(HEIGHT, dtype=np.float32) + 0.5) / HEIGHT * (TOP - BOTTOM))[:, None]
    azimuth = (np.arange(WIDTH, dtype=np.float32)[None] + 0.5) * (2 * np.pi / WIDTH) - np.pi
    # channels first while it is painted: NumPy is slow over axes of length 3
    skin = np.tile(_plane(person.skin.astype(np.float32)), (1, HEIGHT, WIDTH))
    pale = 1.0 - 0.6 * person.tone
    _mottle(skin, pale, rng)

    def spot(point: Floats, wide: float, high: float) -> Floats:
        """Gaussian bump around a point of the head, mirrored to both sides if off-centre."""
        at = float(np.arctan2(abs(point[0]), point[2] - AXIS_Z))
        across = np.exp(-0.5 * ((np.abs(azimuth) - at) / wide) ** 2)
        along = np.exp(-0.5 * ((y - float(point[1])) / high) ** 2)
        return across * along

    eye, mouth, nose = anatomy.eyes[0], anatomy.mouth, anatomy.nose_tip
    cheek = eye + np.array([0.06, -0.20, 0.0])
    flush = 0.55 * spot(cheek, 0.24, 0.075) + 0.5 * spot(nose, 0.12, 0.045)
    flush += 0.3 * spot(anatomy.chin + np.array([0, 0.05, 0]), 0.2, 0.05) + 0.25 * spot(
        mouth, 0.3, 0.08
    )
    flush *= rng.uniform(0.8, 1.3) * pale
    _filter(skin, (1.0, 0.80, 0.80), np.clip(flush, 0, 1.2))
    socket = 0.22 * spot(eye + np.array([-0.02, 0.01, 0]), 0.13, 0.035) + 0.40 * spot(
        eye + np.array([-0.02, -0.075, 0]), 0.14, 0.03
    )
    _filter(skin, (0.86, 0.77, 0.78), socket * rng.uniform(0.8, 1.4))
    forehead = spot(np.array([0.0, 0.33, 0.4]), 0.5, 0.12)
    _filter(skin, (1.04, 1.035, 1.0), forehead)
    _freckle(skin, person, azimuth, y, cheek, rng)
    if person.stubble > 0:
        _shade_beard(skin, person, anatomy, azimuth, y, rng)
    _tint_scalp(skin, person, azimuth, y, rng)
    lips = _paint_lips(skin, person, rng)
    _draw_brows(skin, person, anatomy, rng)
    shine = 0.35 * spot(nose, 0.09, 0.05) + 0.22 * spot(np.array([0.0, 0.30, 0.45]), 0.35, 0.08)
    shine = np.maximum(shine * rng.uniform(0.5, 1.3), lips)
    painted = np.stack([*np.clip(skin, 0.004, 0.95), np.clip(shine, 0, 1)], -1)
    return painted.astype(np.float32)


def _plane(colour: Floats) -> Floats:
    """[3, 1, 1] of a colour [3]."""
    return np.asarray(colour)[:, None, None]


def _filter(skin: Floats, colour: tuple[float, float, float], density: Floats) -> None:
    """Lay a filter of ``colour`` and ``density`` [HEIGHT, WIDTH] over it (Beer-Lambert)."""
    for channel, strength in zip(skin, np.log(colour, dtype=np.float32), strict=True):
        if strength:
            channel *= np.exp(density.astype(np.float32) * strength)


def noise(rng: np.random.Generator, sigma: float) -> Floats:
    """[HEIGHT, WIDTH] of unit variance, blurred by ``sigma`` texels, seamless in azimuth."""
    shrink = max(1, int(sigma / 3))
    small = rng.standard_normal((HEIGHT // shrink, WIDTH // shrink), np.float32)
    pad = int(4 * sigma / shrink) + 1
    wide = np.concatenate([small[:, -pad:], small, small[:, :pad]], 1)
    soft = cv2.GaussianBlur(wide, (0, 0), sigma / shrink)[:, pad:-pad]
    soft = cv2.resize(soft, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.asarray((soft - soft.mean()) / soft.std(), np.float32)


def _mottle(skin: Floats, pale: float, rng: np.random.Generator) -> None:
    for sigma, amount in ((60, 0.03), (18, 0.025), (6, 0.022), (2.5, 0.02), (1.2, 0.02)):
        skin *= 1 + np.float32(amount) * noise(rng, sigma)
    redness = 0.03 * noise(rng, 25) + 0.025 * noise(rng, 8)
    _filter(skin, (1.0, 0.75, 0.8), pale * np.clip(redness * 2, -0.2, 0.3))


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
    soft = cv2.GaussianBlur(layer, (0, 0), 0.9)
    _filter(skin, (0.72, 0.55, 0.45), np.asarray(soft, np.float32))


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
    grain = 1 + 0.30 * noise(rng, 1.3) + 0.2 * noise(rng, 7)
    shade = np.clip(person.stubble * mask * grain, 0, 1)
    target = 0.62 * person.hair + 0.38 * np.array([0.06, 0.065, 0.07]) + 0.02
    skin += (0.62 * shade) * (_plane(target) - skin)


def _tint_scalp(
    skin: Floats, person: Person, azimuth: Floats, y: Floats, rng: np.random.Generator
) -> None:
    wave = 0.02 * noise(rng, 14) + 0.014 * noise(rng, 4)
    line = hairline(np.degrees(azimuth), wave)
    cover = 1 / (1 + np.exp(-(y - line - 0.005) / 0.012))
    strength = 0.90 if person.hair_style != "crop" else 0.82
    skin += strength * cover * (_plane(0.55 * person.hair) - skin)


def _place(side: int, x: Floats, y: Floats, depth: Floats) -> NDArray[np.int32]:
    """[n, 2] texels in sixteenths, as OpenCV draws them, of points of the mean head."""
    column, row = texel(np.stack([side * x, y, depth], -1))
    return np.round(np.stack([column, row], -1) * 16).astype(np.int32)


def _paint_lips(skin: Floats, person: Person, rng: np.random.Generator) -> Floats:
    """Paint the red of the lips; returns its cover [HEIGHT, WIDTH]."""
    x = np.array([0.0, 0.012, 0.03, 0.05, 0.07, 0.083, 0.093])
    upper = np.array([-0.1975, -0.194, -0.190, -0.196, -0.210, -0.222, -0.2345])
    lower = np.array([-0.285, -0.285, -0.282, -0.275, -0.260, -0.248, -0.2365])
    depth = np.interp(x, [0.0, 0.04, 0.06, 0.08, 0.092], [0.505, 0.497, 0.488, 0.470, 0.452])
    full = rng.uniform(0.8, 1.05)  # how full the red is; the shape below it stays
    seam = -0.2335
    upper, lower = seam + (upper - seam) * full, seam + (lower - seam) * full
    layer = np.zeros((HEIGHT, WIDTH), np.float32)
    outline = [_place(1, x, upper, depth), _place(1, x, lower, depth)[::-1]]
    outline += [_place(-1, x, lower, depth), _place(-1, x, upper, depth)[::-1]]
    cv2.fillPoly(layer, [np.concatenate(outline)], 1.0, cv2.LINE_AA, 4)
    cover = np.asarray(cv2.GaussianBlur(layer, (0, 0), 2.2), np.float32)
    inner = cv2.GaussianBlur(layer, (0, 0), 14.0)
    drawn = rng.normal(size=(1, WIDTH)).astype(np.float32)
    drawn = np.asarray(cv2.GaussianBlur(drawn, (0, 0), 2.0), np.float32)
    creases = drawn / drawn.std()
    rows = _rows(cover)
    red = _plane(person.lips) * (0.86 + 0.24 * inner[rows]) * (1 + 0.05 * creases)
    skin[:, rows] += 0.92 * cover[rows] * (red - skin[:, rows])
    return 0.9 * cover


def _rows(cover: Floats) -> slice:
    """The rows of a cover [HEIGHT, WIDTH] that have any."""
    used = np.flatnonzero(cover.any(1))
    return slice(used[0], used[-1] + 1)


def _draw_brows(skin: Floats, person: Person, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Hairs over a soft body, from the root of the nose outwards along an arch above each eye."""
    hairs, body = np.zeros((2, HEIGHT, WIDTH), np.float32)
    eye = anatomy.eyes[0]
    woman = person.sex == "woman"
    arch = 0.030 * (rng.uniform(0.9, 1.3) if woman else rng.uniform(0.5, 0.9))
    thick = 0.026 * person.brow_weight
    inner, outer = 0.048, eye[0] + 0.088
    lift = eye[1] + (rng.uniform(0.082, 0.092) if woman else rng.uniform(0.070, 0.082))

    def centre(along: Floats | float) -> tuple[Floats, Floats, Floats]:
        """x, y and half thickness at 0 (nose) .. 1 (temple)."""
        along = np.asarray(along)
        rise = arch * np.sin(np.pi * np.clip(along * 0.80 + 0.02, 0, 1)) - 0.016 * along**3
        half = 0.5 * thick * (1 - 0.75 * along**1.8) * np.clip(0.6 + 3 * along, 0, 1)
        return inner + (outer - inner) * along, lift + rise, half

    def at(side: int, x: Floats, y: Floats) -> NDArray[np.int32]:
        depth = np.interp(x, [0.0, 0.1, 0.2, 0.3, 0.36], [0.46, 0.45, 0.41, 0.33, 0.24])
        return _place(side, x, y, depth)

    for side in (1, -1):
        x, y, half = centre(np.linspace(0.02, 0.97, 24))
        outline = np.concatenate([at(side, x, y + half), at(side, x, y - half)[::-1]])
        cv2.fillPoly(body, [outline], 1.0, cv2.LINE_AA, 4)
        for along in rng.uniform(0, 1, int(380 * (0.5 + 0.5 * person.brow_weight))):
            x, y, half = centre(along)
            across = rng.uniform(-1, 1)
            lean = np.radians(74 - 66 * along**0.5 + rng.normal(0, 9) - 24 * across)
            length = rng.uniform(0.016, 0.030) * (1 - 0.35 * along)
            steps = np.array([-0.35, 0.65]) * length
            ends = at(
                side, x + steps * np.cos(lean), y + across * half + steps * np.sin(lean) * 0.75
            )
            shade = float(rng.uniform(0.5, 1.0))
            cv2.line(hairs, ends[0].tolist(), ends[1].tolist(), shade, 2, cv2.LINE_AA, 4)
    cover = 0.72 * cv2.GaussianBlur(hairs, (0, 0), 0.8) + 0.50 * cv2.GaussianBlur(body, (0, 0), 6.0)
    cover = np.clip(cover, 0, 0.92)
    rows = _rows(cover)
    colour = 0.7 * person.hair + 0.3 * np.array([0.03, 0.02, 0.015])
    skin[:, rows] += cover[rows] * (_plane(np.minimum(colour, person.skin * 0.5)) - skin[:, rows])
