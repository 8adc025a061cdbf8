"""Rotated square regions of an image, and sampling them at a model's input size.

Coordinates are continuous pixels, first pixel centre at (0.5, 0.5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """A square: ``centre`` (x, y) and ``size`` (side) in pixels, turned by ``angle`` (rad) so that
    its own x axis points along (cos angle, sin angle) of the image."""

    x: float
    y: float
    size: float
    angle: float = 0.0

    @property
    def axes(self) -> Array:
        """[2, 2] columns: the region's x and y axes in the image."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, -s], [s, c]])

    def to_image(self, points: Array) -> Array:
        """[..., 2] in units of the region's side, (0, 0) its first corner, to image pixels."""
        return (points - 0.5) * self.size @ self.axes.T + [self.x, self.y]

    def moved(self, dx: float, dy: float, scale: float, turn: float) -> Region:
        """Shifted by fractions of the side along its own axes, scaled, turned (rad)."""
        x, y = self.axes @ [dx * self.size, dy * self.size] + [self.x, self.y]
        return Region(float(x), float(y), self.size * scale, self.angle + turn)


def upright(points: Array, start: Array, end: Array, scale: float) -> Region:
    """The square around ``points`` [N, 2], turned so that ``start`` -> ``end`` is horizontal.

    Its side is ``scale`` times the longer side of the points' bounding box along the turned axes.
    """
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    axes = Region(0, 0, 1, angle).axes
    local = points @ axes
    low, high = local.min(axis=0), local.max(axis=0)
    x, y = axes @ ((low + high) / 2)
    return Region(float(x), float(y), float(max(high - low)) * scale, angle)


def sample(image: Image, region: Region, size: int, replicate: bool = False) -> Image:
    """The region as a ``size`` x ``size`` image; antialiased when that makes it smaller.

    Args:
        replicate: what lies outside the image repeats its border instead of being black.
    """
    step = region.size / size
    offset = np.zeros(2)
    if step > 2:
        # Bilinear lookups alone would skip pixels: shrink the part that is looked at first.
        reach = region.size * (abs(math.cos(region.angle)) + abs(math.sin(region.angle))) / 2 + 2
        height, width = image.shape[:2]
        x0, x1 = (int(np.clip(region.x + d, 0, width)) for d in (-reach, reach))
        y0, y1 = (int(np.clip(region.y + d, 0, height)) for d in (-reach, reach))
        if x1 - x0 >= 2 and y1 - y0 >= 2:
            part = image[y0:y1, x0:x1]
            small = max(1, round((x1 - x0) / step)), max(1, round((y1 - y0) / step))
            image = cv2.resize(part, small, interpolation=cv2.INTER_AREA).astype(np.uint8)
            offset = np.array([x0, y0], float)
            shrink = np.array([small[0] / (x1 - x0), small[1] / (y1 - y0)])
        else:
            shrink = np.ones(2)
    else:
        shrink = np.ones(2)
    # Model pixel -> image pixel, then both from centres at .5 to OpenCV's centres at 0.
    linear = region.axes * step
    shift = np.array([region.x, region.y]) - linear @ np.full(2, size / 2)
    linear, shift = linear * shrink[:, None], (shift - offset) * shrink
    shift = shift + linear @ np.full(2, 0.5) - 0.5
    matrix = np.concatenate([linear, shift[:, None]], axis=1)
    return cv2.warpAffine(
        image,
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if replicate else cv2.BORDER_CONSTANT,
    ).astype(np.uint8, copy=False)
