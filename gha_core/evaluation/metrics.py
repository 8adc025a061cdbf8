"""Image metrics on a region of an image. Images are [H, W, 3] uint8 sRGB, masks [H, W] bool."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image

Mask = NDArray[np.bool_]
Map = NDArray[np.float32]

_WINDOW, _SIGMA = (11, 11), 1.5
_C1, _C2 = 0.01**2, 0.03**2


def squared_error(truth: Image, image: Image) -> Map:
    """[H, W] squared difference of values in 0..1, mean of RGB."""
    difference = truth.astype(np.int32) - image
    return ((difference * difference).sum(-1) / np.float32(3 * 255**2)).astype(np.float32)


def psnr(truth: Image, image: Image, mask: Mask) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of ``mask`` alone; NaN if it is empty.

    The mean is over masked pixels, so a background that both images share does not raise the
    score. Capped at 100 dB for equal images.
    """
    return psnr_of(squared_error(truth, image), mask)


def psnr_of(error: Map, mask: Mask) -> float:
    """:func:`psnr` from the :func:`squared_error`, where several masks share one."""
    if not mask.any():
        return float("nan")
    return float(-10.0 * np.log10(max(float(error[mask].mean(dtype=np.float64)), 1e-10)))


def ssim_map(truth: Image, image: Image) -> Map:
    """[H, W] structural similarity (Wang et al. 2004): 11x11 Gaussian window, sigma 1.5, mean of
    RGB; borders are mirrored."""
    x, y = (each.astype(np.float32) / np.float32(255) for each in (truth, image))

    def local(values: NDArray[Any]) -> Map:
        blurred = cv2.GaussianBlur(values, _WINDOW, _SIGMA, borderType=cv2.BORDER_REFLECT_101)
        return blurred.astype(np.float32)

    mean_x, mean_y = local(x), local(y)
    xx, yy, xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    variance = np.maximum(local(x * x) - xx, 0) + np.maximum(local(y * y) - yy, 0)
    covariance = local(x * y) - xy
    similarity = (2 * xy + _C1) * (2 * covariance + _C2) / ((xx + yy + _C1) * (variance + _C2))
    return similarity.mean(-1, dtype=np.float32)


def masked_mean(values: Map, mask: Mask) -> float:
    """Mean over the mask; NaN if it is empty."""
    return float(values[mask].mean()) if mask.any() else float("nan")


def keypoint_distance(truth: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Average keypoint distance (AKD) in pixels between [L, 2] detections of the same detector.

    Points that either detection lacks (NaN) do not count.
    """
    return float(np.nanmean(np.linalg.norm(truth - image, axis=-1)))


def flicker(before: NDArray[np.float32], now: NDArray[np.float32], mask: Mask) -> float:
    """How much the error [H, W, 3] (rendering - photo, 8-bit levels) changes from one frame to the
    next: root mean square over the mask. A constant error does not flicker; NaN if it is empty.
    """
    change = (now - before)[mask]
    return float(np.sqrt(np.mean(change * change))) if len(change) else float("nan")


def jitter(offsets: NDArray[np.float32]) -> float:
    """How much keypoints tremble: mean length (px) of the second difference in time of
    ``offsets`` [3, L, 2], rendering - photo at three frames that follow one another. The person's
    own motion is in both and drops out; what remains is the avatar's and the detector's noise.
    """
    return float(np.nanmean(np.linalg.norm(offsets[0] - 2 * offsets[1] + offsets[2], axis=-1)))
