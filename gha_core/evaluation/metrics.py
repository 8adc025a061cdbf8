"""Image metrics on a region of an image. Images are [H, W, 3] uint8 sRGB, masks [H, W] bool."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from gha_core.artifacts.images import Image

Mask = NDArray[np.bool_]


def psnr(truth: Image, image: Image, mask: Mask) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of ``mask`` alone; NaN if it is empty.

    The mean is over masked pixels and channels, so a background that both images share does not
    raise the score. Capped at 100 dB for equal images.
    """
    if not mask.any():
        return float("nan")
    difference = (truth[mask].astype(np.float64) - image[mask]) / 255.0
    return float(-10.0 * np.log10(max(float(np.mean(difference**2)), 1e-10)))


def ssim_map(truth: Image, image: Image) -> NDArray[np.float32]:
    """[H, W] structural similarity (Wang 2004): 11x11 Gaussian window, sigma 1.5, mean of RGB."""
    pair = torch.from_numpy(np.stack([truth, image]).astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    _, full = structural_similarity_index_measure(
        pair[:1], pair[1:], sigma=1.5, data_range=1.0, return_full_image=True
    )
    return full[0].mean(0).numpy()


def masked_mean(values: NDArray[np.float32], mask: Mask) -> float:
    """Mean over the mask; NaN if it is empty."""
    return float(values[mask].mean()) if mask.any() else float("nan")


def keypoint_distance(truth: NDArray[np.float32], image: NDArray[np.float32]) -> float:
    """Average keypoint distance (AKD) in pixels between [L, 2] detections of the same detector."""
    return float(np.linalg.norm(truth - image, axis=-1).mean())
