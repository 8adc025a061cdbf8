"""Pixel losses. Images are [B, C, H, W] float in 0..1; weights broadcast to [B, 1, H, W]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the local means of SSIM, as in Wang et al. 2004 for a dynamic range of 1.
_C1, _C2 = 0.01**2, 0.03**2


def l1(image: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference over the weighted pixels and all channels.

    Zero, not NaN, if no pixel has weight.
    """
    channels = image.shape[-3]
    return ((image - target).abs() * weight).sum() / (channels * weight.sum()).clamp(min=1e-8)


def soft_iou(alpha: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """1 - intersection / union of two soft silhouettes, over the whole batch."""
    both = (alpha * target * weight).sum()
    either = ((alpha + target - alpha * target) * weight).sum()
    return 1.0 - both / either.clamp(min=1e-8)


def structural_dissimilarity(
    image: Tensor, target: Tensor, weight: Tensor, window: int = 8, stride: int = 4
) -> Tensor:
    """(1 - SSIM) / 2, averaged over the windows whose every pixel has weight.

    SSIM of Wang et al. 2004 with uniform windows that overlap by half: a tenth of the cost of a
    Gaussian window about every pixel, and as good for a gradient. Scores are another matter, see
    gha_core.evaluation.
    """
    moments = torch.cat([image, target, image * image, target * target, image * target], 1)
    local = F.avg_pool2d(moments, window, stride)
    mean_x, mean_y, xx, yy, xy = local.chunk(5, 1)
    var_x, var_y = xx - mean_x * mean_x, yy - mean_y * mean_y
    covariance = xy - mean_x * mean_y
    ssim = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x * mean_x + mean_y * mean_y + _C1) * (var_x + var_y + _C2)
    )
    whole = 1.0 - F.max_pool2d(1.0 - weight, window, stride)
    channels = image.shape[-3]
    return ((1.0 - ssim) / 2 * whole).sum() / (channels * whole.sum()).clamp(min=1e-8)
