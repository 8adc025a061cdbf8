"""The part of the photo that is stored: a box of source pixels, resized.

Pixel coordinates as everywhere: continuous, first pixel's centre at (0.5, 0.5), so a crop that
starts at ``x`` and is resized by ``f`` maps ``u`` to ``f (u - x)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera


@dataclass(frozen=True)
class Crop:
    """A box of the source image in whole pixels, and the size at which it is stored.

    The box may reach beyond the photo; what lies there is stored black.
    """

    x: int
    y: int
    width: int
    height: int
    stored_width: int
    stored_height: int

    @property
    def transform(self) -> NDArray[np.float64]:
        """[3, 3] source pixel -> stored pixel."""
        fx, fy = self.stored_width / self.width, self.stored_height / self.height
        return np.array([[fx, 0, -fx * self.x], [0, fy, -fy * self.y], [0, 0, 1.0]])

    def apply(self, image: Image) -> Image:
        """Cut and resize an [H, W, 3] image; shrinking averages, enlarging interpolates."""
        height, width = image.shape[:2]
        left, top = max(self.x, 0), max(self.y, 0)
        right, bottom = min(self.x + self.width, width), min(self.y + self.height, height)
        cut = image[top : max(bottom, top), left : max(right, left)]
        if cut.shape[:2] != (self.height, self.width):
            padded = np.zeros((self.height, self.width, *image.shape[2:]), image.dtype)
            padded[top - self.y :, left - self.x :][: cut.shape[0], : cut.shape[1]] = cut
            cut = padded
        shrinks = self.stored_width <= self.width
        size = (self.stored_width, self.stored_height)
        kind = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return cv2.resize(cut, size, interpolation=kind).astype(np.uint8, copy=False)

    def padding(self, width: int, height: int) -> float:
        """The fraction of the box that lies outside a photo of that size."""
        inside_x = min(self.x + self.width, width) - max(self.x, 0)
        inside_y = min(self.y + self.height, height) - max(self.y, 0)
        return 1.0 - max(inside_x, 0) * max(inside_y, 0) / (self.width * self.height)


def square(x: int, y: int, side: int, size: int) -> Crop:
    return Crop(x, y, side, side, size, size)


def whole(width: int, height: int, size: int) -> Crop:
    """The whole photo, its longer side resized to ``size``."""
    factor = size / max(width, height)
    stored = max(1, round(width * factor)), max(1, round(height * factor))
    return Crop(0, 0, width, height, *stored)


def square_around(
    centre: NDArray[np.float64], side: float, width: int, height: int, size: int
) -> Crop:
    """A square of about ``side`` around ``centre``, moved inside the photo as far as it can be, so
    that as little as possible of it is padding."""
    pixels = max(1, round(side))
    x, y = (
        _inside(round(middle - pixels / 2), pixels, extent)
        for middle, extent in zip(centre, (width, height), strict=True)
    )
    return square(x, y, pixels, size)


def _inside(start: int, side: int, extent: int) -> int:
    """The start nearest to ``start`` that keeps the box in the photo, or the photo in the box."""
    low, high = sorted((0, extent - side))
    return min(max(start, low), high)


_ROUNDS = 60


@dataclass(frozen=True)
class PixelMap:
    """Between the photo as it was filmed and the stored frame: lens distortion, crop and scale.

    Attributes:
        transform: [3, 3] undistorted source pixel -> stored pixel.
        K, distortion: [3, 3] and [5] of the source camera.
    """

    transform: NDArray[np.float64]
    K: NDArray[np.float64]
    distortion: NDArray[np.float64]

    @staticmethod
    def from_rows(frame: Mapping[str, Any], camera: Mapping[str, Any]) -> PixelMap:
        """Of a row of ``frames.parquet`` and its camera's row of ``cameras.parquet``."""
        K, distortion = camera["source_K"], camera["source_distortion"]
        return PixelMap(
            np.array(frame["transform"], float).reshape(3, 3),
            np.eye(3) if K is None else np.array(K, float).reshape(3, 3),
            np.zeros(5) if distortion is None else np.array(distortion, float),
        )

    def to_stored(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 2] filmed to [N, 2] stored pixels; where the lens distorts, by fixed-point iteration,
        which converges for all lenses that are not fisheyes."""
        straight = pixels
        for _ in range(_ROUNDS if self.distortion.any() else 0):
            straight = straight + (pixels - self._bent(straight))
        return straight @ self.transform[:2, :2].T + self.transform[:2, 2]

    def to_source(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 2] stored to [N, 2] filmed pixels, the inverse of :meth:`to_stored`."""
        back = np.linalg.inv(self.transform)
        return self._bent(pixels @ back[:2, :2].T + back[:2, 2])

    def _bent(self, straight: NDArray[np.float64]) -> NDArray[np.float64]:
        """[N, 2] as the lens distorts them."""
        if not self.distortion.any():
            return straight
        rays = np.linalg.solve(self.K, np.column_stack([straight, np.ones(len(straight))]).T).T
        bent, _ = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), self.K, self.distortion)
        return np.asarray(bent[:, 0], float)


class Undistorter:
    """Removes a camera's lens distortion; the result has the same K, without distortion."""

    def __init__(self, camera: Camera) -> None:
        self._maps: tuple[NDArray, NDArray] | None = None
        if np.any(camera.distortion):
            # OpenCV counts from the first pixel's centre, this project from its corner.
            K = camera.K.copy()
            K[:2, 2] -= 0.5
            self._maps = cv2.initUndistortRectifyMap(
                K, camera.distortion, np.eye(3), K, (camera.width, camera.height), cv2.CV_16SC2
            )

    def __call__(self, image: Image) -> Image:
        if self._maps is None:
            return image
        return cv2.remap(image, *self._maps, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
