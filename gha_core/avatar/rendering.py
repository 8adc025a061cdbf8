"""Gaussians to pictures: splat features at half size, then the super-resolution network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.avatar.head import Gaussians
from gha_core.avatar.super_resolution import SuperResolution
from gha_core.splatting import rasterize_gaussians


@dataclass(frozen=True)
class Rendering:
    """B views of size W x H.

    Attributes:
        picture: [B, 3, H, W] sRGB in 0..1 on white.
        small: [B, 3, H/2, W/2] the feature image's first three channels, not clamped.
        alpha: [B, 1, H/2, W/2].
    """

    picture: Tensor
    small: Tensor
    alpha: Tensor


def render(
    gaussians: Gaussians,
    super_resolution: SuperResolution,
    K: Tensor,
    w2c: Tensor,
    width: int,
    height: int,
) -> Rendering:
    """Render Gaussians in the world.

    Args:
        K: [B, 3, 3] of the half-size image; w2c: [B, 4, 4].
        width, height: of the half-size image, px.
    """
    channels = gaussians.channels.shape[1]
    background = torch.zeros(channels)
    background[:3] = 1.0  # white
    splat = rasterize_gaussians(
        gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities,
        gaussians.channels, K, w2c, width, height, background,
    )  # fmt: skip
    features = splat.features.permute(0, 3, 1, 2)
    return Rendering(super_resolution(features), features[:, :3], splat.alpha[:, None])
