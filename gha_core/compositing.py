"""A person over a plain background, without the photo's own background in half-covered pixels.

The light of a photo is ``alpha * foreground + (1 - alpha) * background``. Weighting it by its matte
would keep ``alpha * (1 - alpha)`` of the room in every edge and strand of hair: a rim of another
colour in every camera, which no avatar can learn. So would subtracting sRGB values, which do not
add up as light does.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.linear_light import to_light, to_srgb

_RADII = 90, 6  # px, as published
_LEVELS = to_light(np.arange(256, dtype=np.float32) / np.float32(255))  # light of each 8-bit value

Floats = NDArray[np.float32]


def over_white(image: Image, alpha: Image, plate: Image | None = None) -> Image:
    """[H, W, 3] uint8: the foreground of ``image`` over white.

    Its colour in half-covered pixels is what their light says. It is then mixed with white in sRGB,
    as splatting and browsers mix: what learns from this looks right before any background.

    Args:
        image: [H, W, 3] uint8 sRGB.
        alpha: [H, W] uint8, 255 = foreground. Where it is 0 the result is white, where it is 255
            the photo.
        plate: [H, W, 3] the empty scene; with None, the colour in half-covered pixels is estimated
            from those nearby that are surely foreground or background.
    """
    result = np.where(alpha[..., None] > 0, image, 255).astype(np.uint8)
    edge = (alpha > 0) & (alpha < 255)
    share = alpha[edge][:, None].astype(np.float32) / np.float32(255)
    if plate is None:
        whole = alpha[..., None].astype(np.float32) / np.float32(255)
        light = _foreground(_LEVELS[image], whole)[edge]
    else:
        light = (_LEVELS[image[edge]] - (1 - share) * _LEVELS[plate[edge]]) / share
    result[edge] = np.rint(255 * (share * to_srgb(np.clip(light, 0, 1)) + 1 - share))
    return result


def _foreground(photo: Floats, share: Floats) -> Floats:
    """[H, W, 3] the light of what stands in front, by blur fusion (Forte, "Approximate Fast
    Foreground Colour Estimation", ICIP 2021): the mean nearby, and its part of what the means do
    not explain; first from afar, then close by."""
    front = behind = photo
    for radius in _RADII:
        front, behind = _mean(front, share, radius), _mean(behind, 1 - share, radius)
        unexplained = photo - share * front - (1 - share) * behind
        front = np.clip(front + share * unexplained, 0, 1)
        behind = np.clip(behind + (1 - share) * unexplained, 0, 1)
    return front


def _mean(values: Floats, weight: Floats, radius: int) -> Floats:
    size = 2 * radius + 1, 2 * radius + 1
    total = cv2.blur(values * weight, size) / np.maximum(cv2.blur(weight, size), 1e-4)[..., None]
    return total.astype(np.float32)
