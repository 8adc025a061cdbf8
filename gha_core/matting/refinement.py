"""Alpha in the unknown band of a trimap."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.matting.guided_filter import guided_filter
from gha_core.matting.trimap import BACKGROUND, FOREGROUND, UNKNOWN, band_radius

Floats = NDArray[np.float32]
Refinement = Literal["guided", "closed_form"]

_EPSILON = 1e-4  # (1 % of the range)²: what the guided filter takes for noise
# Distance of the two colours, 0..1 per channel, at which the line between them is half believed.
_KNOWN_CONTRAST, _GUESSED_CONTRAST = 0.06, 0.2


def to_floats(image: Image) -> Floats:
    """uint8 0..255 to float32 0..1."""
    return np.multiply(image, 1 / 255, dtype=np.float32)


def refine(
    image: Floats,
    trimap: NDArray[np.uint8],
    rough: Floats,
    trust: Floats,
    method: Refinement = "guided",
    background: Floats | None = None,
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
        method: "closed_form" solves Levin's matting Laplacian instead: finer at hair, but its cost
            grows much faster than the image.
        background: [H, W, 3] sRGB 0..1 where it is known; otherwise it is guessed from the
            surroundings.
    """
    unknown = trimap == UNKNOWN
    if not unknown.any():
        return (trimap == FOREGROUND).astype(np.float32)
    if method == "closed_form":
        alpha = _closed_form(image, trimap)
    else:
        alpha = _guided(image, trimap, rough, trust, background)
    alpha = np.where(unknown, np.clip(alpha, 0, 1), trimap == FOREGROUND)
    return alpha.astype(np.float32)


def _guided(
    image: Floats, trimap: NDArray[np.uint8], rough: Floats, trust: Floats, known: Floats | None
) -> Floats:
    radius = band_radius(*trimap.shape)
    unknown = trimap == UNKNOWN
    foreground = spread_colours(image, trimap == FOREGROUND, radius)[unknown]
    if known is not None:
        background = known[unknown]
    else:
        background = spread_colours(image, trimap == BACKGROUND, radius)[unknown]
    across = foreground - background
    contrast = np.einsum("nc,nc->n", across, across)
    along = np.einsum("nc,nc->n", image[unknown] - background, across)
    colour = np.clip(along / np.maximum(contrast, 1e-6), 0, 1)
    # A guessed background is worth less than a photographed one.
    doubt = _KNOWN_CONTRAST if known is not None else _GUESSED_CONTRAST
    certainty = contrast / (contrast + doubt**2) * (1 - trust[unknown]) + 1e-4
    share = certainty / (certainty + trust[unknown])
    value = (trimap == FOREGROUND).astype(np.float32)
    value[unknown] = share * colour + (1 - share) * rough[unknown]
    weights = np.ones(trimap.shape, np.float32)
    weights[unknown] = np.maximum(certainty, trust[unknown])
    return guided_filter(image, value, weights, max(1, radius // 2), _EPSILON, unknown)


def spread_colours(image: Floats, known: NDArray[np.bool_], radius: int) -> Floats:
    """[H, W, 3]: at every pixel the mean colour of the known ones nearby, at the smallest of three
    scales (from ``radius`` px on) that reaches any."""
    height, width = known.shape
    weights = known.astype(np.float32)
    weighted = cv2.merge([*cv2.split(image * weights[..., None]), weights])
    result = np.zeros((height, width, 4), np.float32)
    for scale, shrink in ((radius, 1), (4 * radius, 2), (16 * radius, 8)):
        small = weighted
        if shrink > 1:
            size = max(1, width // shrink), max(1, height // shrink)
            small = cv2.resize(weighted, size, interpolation=cv2.INTER_AREA)
        window = 2 * max(1, scale // shrink) + 1
        mean = cv2.boxFilter(small, cv2.CV_32F, (window, window), borderType=cv2.BORDER_REFLECT_101)
        if shrink > 1:
            mean = cv2.resize(mean, (width, height), interpolation=cv2.INTER_LINEAR)
        # Counted in full from 2 % coverage of the window on, so that scales blend without seams.
        scaled = mean / np.maximum(mean[..., 3:], 0.02)
        result += (1 - result[..., 3:]) * scaled
    mean_colour = image[known].mean(0) if known.any() else np.zeros(3, np.float32)
    return result[..., :3] + (1 - result[..., 3:]) * mean_colour


def _closed_form(image: Floats, trimap: NDArray[np.uint8]) -> Floats:
    # Imported here: pymatting compiles on import, which only those who ask for it should pay.
    from pymatting import estimate_alpha_cf

    known = np.select([trimap == FOREGROUND, trimap == BACKGROUND], [1.0, 0.0], 0.5)
    return np.asarray(estimate_alpha_cf(image.astype(np.float64), known), np.float32)
