"""Photos and mattes as fits compare them: undistorted, no larger than need be, looked up between
pixels."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera

Floats = NDArray[np.float64]
Picture = NDArray[np.float32]


def shrunk(camera: Camera, translation: Floats, scale: float, head: float) -> Camera:
    """The camera of smaller pictures, in which a head of ``scale`` metres at ``translation`` [T, 3]
    is ``head`` pixels long; itself if it is no longer anyway."""
    depth = (translation @ camera.w2c[2, :3] + camera.w2c[2, 3]).clip(1e-3)
    factor = min(1.0, head * float(np.median(depth)) / (camera.K[0, 0] * scale))
    return camera.resized(*(max(8, round(n * factor)) for n in (camera.width, camera.height)))


def seen(picture: Image, full: Camera, small: Camera) -> Picture:
    """A picture of the camera ``full``, undistorted and of the size of ``small``."""
    if np.any(full.distortion):
        picture = np.asarray(cv2.undistort(picture, full.K, full.distortion), np.uint8)
    size = small.width, small.height
    resized = cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.float32)


def lookup(picture: Picture, pixels: Floats) -> Floats:
    """[n, k, ...] values of [H, W, ...] at [n, k, 2] pixels, interpolated; n and k < 2^15."""
    if not pixels.size:  # OpenCV takes no empty maps
        return np.zeros((*pixels.shape[:2], *picture.shape[2:]))
    # OpenCV's coordinates are 0 at the centre of the first pixel.
    x, y = np.moveaxis((pixels - 0.5).astype(np.float32), -1, 0)
    found = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, float)


def slope(picture: Picture, pixels: Floats) -> Floats:
    """[n, 2] derivatives of [H, W] by x and y at [n, 2] pixels."""
    half = np.eye(2) / 2
    pairs = [lookup(picture, pixels[:, None] + by) for by in np.concatenate([half, -half])]
    right, low, left, high = (pair[:, 0] for pair in pairs)
    return np.stack([right - left, low - high], 1)
