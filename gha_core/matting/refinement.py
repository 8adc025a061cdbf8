"""Alpha in the unknown band of a trimap."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.linear_light import light_per_level, to_light
from gha_core.matting.guided_filter import guided_filter
from gha_core.matting.trimap import BACKGROUND, FOREGROUND, UNKNOWN, band_radius

Floats = NDArray[np.float32]
Refinement = Literal["guided", "closed_form"]

_EPSILON = 1e-4  # (1 % of the range)²: what the guided filter takes for noise
# Distance of the two colours, 0..1 per channel, at which the line between them is half believed.
_GUESSED_CONTRAST = 0.2
# How much the foreground differs from what is nearby, as fractions of its light: a strand may be in
# the shadow of another, its hue is nearly the same.
_BRIGHTNESS, _HUE = 0.2, 0.1
_COMPRESSION = 1.0 / 255  # what it adds to the noise at outlines
_CLEAR = 0.025  # standard deviation of alpha at which what a pixel says is half believed
_CLOSED_FORM_BELIEF = 1.0  # weight of one pixel's evidence against the matting Laplacian
_NOISE = 0.02  # how far, 0..1, a pixel may be from the line without speaking against it


@dataclass(frozen=True)
class Background:
    """What is behind the person.

    Attributes:
        colours: [H, W, 3] sRGB 0..1.
        noise: [3] standard deviation of a frame's difference from it, 0..1.
    """

    colours: Floats
    noise: Floats


def to_floats(image: Image) -> Floats:
    """uint8 0..255 to float32 0..1."""
    return np.multiply(image, 1 / 255, dtype=np.float32)


def refine(
    image: Floats,
    trimap: NDArray[np.uint8],
    rough: Floats,
    trust: Floats,
    method: Refinement = "guided",
    background: Background | None = None,
) -> Floats:
    """[H, W] alpha 0..1: exactly 0 and 1 where the trimap is sure.

    In the band, alpha is first read off the line between the colours of background and foreground
    nearby: with I = aF + (1-a)B, a = (I-B)·(F-B) / |F-B|². Where the two colours are hardly
    different this says nothing, and ``rough`` counts instead. A guided filter then reconciles both
    with the edges of the image.

    Args:
        image: [H, W, 3] sRGB 0..1.
        rough: [H, W] another opinion about alpha, 0..1.
        trust: [H, W] its weight against colour, 0..1.
        method: "closed_form" reconciles by Levin's matting Laplacian instead; its cost grows much
            faster than the image.
        background: if it is known; otherwise it is guessed from the surroundings.
    """
    unknown = trimap == UNKNOWN
    if not unknown.any():
        return (trimap == FOREGROUND).astype(np.float32)
    value, weights = _evidence(image, trimap, rough, trust, background)
    if method == "closed_form":
        alpha = _closed_form(image, trimap, value, weights)
    else:
        radius = max(1, band_radius(*trimap.shape) // 2)
        alpha = guided_filter(image, value, weights, radius, _EPSILON, unknown)
    alpha = np.where(unknown, np.clip(alpha, 0, 1), trimap == FOREGROUND)
    return alpha.astype(np.float32)


def _evidence(
    image: Floats, trimap: NDArray[np.uint8], rough: Floats, trust: Floats, known: Background | None
) -> tuple[Floats, Floats]:
    """[H, W] what each pixel by itself says about alpha, and [H, W] how far to believe it."""
    radius = band_radius(*trimap.shape)
    unknown = trimap == UNKNOWN
    pixels = image[unknown]
    foregrounds = _surroundings(image, trimap == FOREGROUND, unknown, radius)
    if known is not None:
        behind = known.colours[unknown]
        colour, certainty = _mixed_light(pixels, foregrounds, behind, known.noise)
    else:
        behind = _surroundings(image, trimap == BACKGROUND, unknown, radius)[-1]
        colour, certainty = _along_colour_line(pixels, foregrounds, behind)
    trust = trust[unknown]
    certainty = certainty * (1 - trust) + 1e-4
    share = certainty / (certainty + trust)
    value = (trimap == FOREGROUND).astype(np.float32)
    value[unknown] = share * colour + (1 - share) * rough[unknown]
    weights = np.ones(trimap.shape, np.float32)
    weights[unknown] = np.maximum(certainty, trust)
    return value, weights


def _mixed_light(
    pixels: Floats, foregrounds: list[Floats], background: Floats, noise: Floats
) -> tuple[Floats, Floats]:
    """Alpha [N] of pixels [N, 3] before a known background [N, 3] with several candidates for the
    foreground (each [N, 3], all sRGB 0..1), and how certain [N] it is.

    Light adds up. With F ~ N(f, C), the mixture is normal, too: I ~ N(a f + (1-a) B, S) with
    S = a² C + noise². C is wide along f (brightness) and narrow across (hue), in units of the noise
    C = b² f fᵀ + h² |f|² / 3, so that S is inverted by hand. Maximum likelihood makes
    a = (I-B) S⁻¹ (f-B) / (f-B) S⁻¹ (f-B), whose denominator is 1 / variance of a; S depends on a,
    hence two rounds. The candidates count by their likelihoods.
    """
    # The noise is the sensor's, in sRGB; brighter is steeper.
    noise = np.hypot(noise, _COMPRESSION)
    scale = 1 / (noise * light_per_level(np.maximum(pixels, background)))
    behind = scale * to_light(background)
    away = scale * to_light(pixels) - behind
    found = []
    for foreground in foregrounds:
        front = scale * to_light(foreground)
        across = front - behind
        ff, fa, fy, aa, ay, yy = (
            np.einsum("nc,nc->n", x, y)
            for x, y in itertools.combinations_with_replacement((front, across, away), 2)
        )
        alpha = np.full(len(pixels), 0.5, np.float32)
        for _ in range(2):
            narrow = 1 / (1 + alpha**2 * _HUE**2 / 3 * ff)
            wide = (alpha * _BRIGHTNESS) ** 2 * narrow
            along = narrow * wide / (1 + wide * ff)  # S⁻¹ = narrow - along * f fᵀ
            information = narrow * aa - along * fa**2
            alpha = np.clip((narrow * ay - along * fa * fy) / np.maximum(information, 1e-6), 0, 1)
        misfit = narrow * (yy - 2 * alpha * ay + alpha**2 * aa) - along * (fy - alpha * fa) ** 2
        surprise = misfit - 3 * np.log(narrow) + np.log1p(wide * ff)
        found.append((alpha, information, surprise))
    alphas, informations, surprises = (np.stack(parts) for parts in zip(*found, strict=True))
    share = np.exp(-0.5 * (surprises - surprises.min(0)))
    share /= share.sum(0)
    certainty = informations / (informations + 1 / _CLEAR**2)
    return (share * alphas).sum(0), (share * certainty).sum(0)


def _along_colour_line(
    pixels: Floats, foregrounds: list[Floats], background: Floats
) -> tuple[Floats, Floats]:
    """Alpha [N] of pixels [N, 3] between a guessed background [N, 3] and several candidates for the
    foreground (each [N, 3]), and how certain [N] it is.

    Each candidate counts by how well its mixture explains the pixel: skin beside dark hair must not
    be explained by the mean of both.
    """
    away = pixels - background
    total, alpha, certainty = (np.full(len(pixels), 1e-12, np.float32) for _ in range(3))
    for foreground in foregrounds:
        across = foreground - background
        contrast = np.einsum("nc,nc->n", across, across)
        along = np.einsum("nc,nc->n", away, across) / np.maximum(contrast, 1e-6)
        mixed = np.clip(along, 0, 1)
        rest = away - mixed[:, None] * across
        misfit = np.einsum("nc,nc->n", rest, rest) + _NOISE**2
        weight = (contrast + 1e-4) / misfit**2
        total += weight
        alpha += weight * mixed
        certainty += weight * contrast / (contrast + _GUESSED_CONTRAST**2)
    return alpha / total, certainty / total


def _surroundings(
    image: Floats, known: NDArray[np.bool_], where: NDArray[np.bool_], radius: int
) -> list[Floats]:
    """Colours of ``known`` pixels near each of the N pixels in ``where``, each [N, 3]: the nearest
    one's, and the mean at the smallest of three scales (2 to 18 times ``radius``) that reaches any.
    """
    if not known.any():
        return [np.zeros((int(where.sum()), 3), np.float32)]
    height, width = known.shape
    weights = known.astype(np.float32)
    weighted = cv2.merge([image * weights[..., None], weights]).astype(np.float32, copy=False)
    result = np.zeros((int(where.sum()), 4), np.float32)
    small: NDArray = weighted
    for scale, shrink in ((2 * radius, 2), (6 * radius, 4), (18 * radius, 8)):
        size = max(1, width // shrink), max(1, height // shrink)
        small = cv2.resize(small, size, interpolation=cv2.INTER_AREA)
        window = 2 * max(1, scale // shrink) + 1
        mean = cv2.boxFilter(small, cv2.CV_32F, (window, window), borderType=cv2.BORDER_REFLECT_101)
        mean = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
        chosen = mean[where]
        # Counted in full from 2 % coverage of the window on, so that scales blend without seams.
        chosen = chosen / np.maximum(chosen[:, 3:], 0.02)
        result += (1 - result[:, 3:]) * chosen
    mean_colour = image[known].mean(0)
    blended = result[:, :3] + (1 - result[:, 3:]) * mean_colour
    return [_nearest(weighted, known, where), blended]


def _nearest(weighted: Floats, known: NDArray[np.bool_], where: NDArray[np.bool_]) -> Floats:
    """[N, 3]: the colour of the nearest known pixel, noise averaged with its known neighbours.

    Args:
        weighted: [H, W, 4] colours and 1 where they are known, else 0.
    """
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    place = np.zeros(int(labels.max()) + 1, np.int64)
    place[labels[known]] = np.flatnonzero(known)
    means = cv2.blur(weighted, (3, 3)).reshape(-1, 4)[place[labels[where]]]
    return means[:, :3] / means[:, 3:]


def _closed_form(
    image: Floats, trimap: NDArray[np.uint8], value: Floats, weights: Floats
) -> Floats:
    """Levin's closed form with a data term: (L + D) a = D v, where D is how far ``value`` is
    believed and L the matting Laplacian."""
    # Imported here: pymatting compiles on import, which only those who ask for it should pay.
    import scipy.sparse
    from pymatting import cf_laplacian, cg, ichol

    height, width = trimap.shape
    unknown = trimap == UNKNOWN
    belief = np.where(unknown, _CLOSED_FORM_BELIEF * weights, 100.0).astype(np.float64).ravel()
    matrix = cf_laplacian(image.astype(np.float64), epsilon=1e-6) + scipy.sparse.diags(belief)
    solution = cg(matrix, belief * value.ravel(), M=ichol(matrix.tocsc()), rtol=1e-5)
    return solution.reshape(height, width).astype(np.float32)
