"""Pictures of landmarks, for people who want to see whether they sit right."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.landmarks.points import CONTOURS, MESH_LANDMARKS

_COLOURS = {
    "eye": (90, 255, 120),
    "iris": (80, 220, 255),
    "brow": (255, 200, 60),
    "lips": (255, 90, 110),
    "face": (255, 255, 255),
}
_SUBPIXEL_BITS = 4


def draw_landmarks(image: Image, points: NDArray, size: int | None = None) -> Image:
    """A copy of ``image`` with its [478, 2] landmarks: all as dots, the contours as lines.

    Args:
        size: the longer side of the picture; default as the image.
    """
    height, width = image.shape[:2]
    scale = (size or max(height, width)) / max(height, width)
    shape = (round(width * scale), round(height * scale))
    picture = cv2.resize(image, shape, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    known = np.isfinite(points).all(axis=-1)
    # OpenCV draws in fixed point, with pixel centres at whole numbers.
    fixed = np.round((np.nan_to_num(points) * scale - 0.5) * 2**_SUBPIXEL_BITS).astype(np.int32)
    dot = max(1, round(max(shape) / 500))
    for index in np.flatnonzero(known[:MESH_LANDMARKS]):
        x, y = (int(value) for value in fixed[index])
        radius = dot << (_SUBPIXEL_BITS - 1)
        cv2.circle(picture, (x, y), radius, (60, 160, 255), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    for name, contour in CONTOURS.items():
        if known[list(contour)].all():
            colour = _COLOURS[name.split()[-1]]
            line = fixed[list(contour)].reshape(-1, 1, 2)
            cv2.polylines(picture, [line], True, colour, dot, cv2.LINE_AA, _SUBPIXEL_BITS)
    return picture
