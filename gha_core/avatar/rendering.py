"""Gaussians to pictures: splat features at a small size, then the super-resolution network.

What is finer than a feature pixel the network could only guess. Where the avatar is ``sharp``, the
Gaussians' colours are splatted at full size, too, and the network adds to those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.avatar.head import Gaussians
from gha_core.avatar.super_resolution import margin
from gha_core.splatting import rasterize_gaussians


@dataclass(frozen=True)
class FeatureImage:
    """B views at the features' size, h x w pixels.

    Attributes:
        padded: [B, h + 2 margin, w + 2 margin, C] over white, with the surroundings that the
            super-resolution network looks at.
        alpha: [B, 1, h, w].
        margin: width of the surroundings, px.
    """

    padded: Tensor
    alpha: Tensor
    margin: int

    @property
    def colour(self) -> Tensor:
        """[B, 3, h, w] the first three channels: a small picture, not clamped."""
        # Channels first: the gradient of every cut fills a tensor as large as what was cut.
        inner = slice(self.margin, -self.margin)
        return self.padded[..., :3][:, inner, inner].permute(0, 3, 1, 2)

    @property
    def whole(self) -> Tensor:
        """All of every view, as the super-resolution network wants it."""
        return self.padded.permute(0, 3, 1, 2)


def render_features(
    gaussians: Gaussians, K: Tensor, w2c: Tensor, width: int, height: int, scale: int
) -> FeatureImage:
    """Splat Gaussians of the world at the features' size.

    Args:
        K: [B, 3, 3] of the full-size pictures; w2c: [B, 4, 4].
        width, height: w and h of the feature image, px.
        scale: picture pixels per feature pixel, along each side.
    """
    background = torch.zeros(gaussians.channels.shape[1])
    background[:3] = 1.0  # white
    border = margin(scale)
    small = K.clone()
    small[:, :2] /= scale
    small[:, :2, 2] += border
    size = width + 2 * border, height + 2 * border
    features, alpha = _splat(gaussians, small, w2c, *size, background)
    return FeatureImage(features, alpha[:, None, border:-border, border:-border], border)


def render_colours(
    gaussians: Gaussians,
    K: Tensor,
    w2c: Tensor,
    corners: Sequence[tuple[float, float]],
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """Splat the Gaussians' first three channels at full size.

    Args:
        corners: the part of each of the B pictures that is drawn: its upper row and left column.
        width, height: of the part, px.

    Returns:
        [B, 3, height, width] over white, not clamped, and alpha [B, 1, height, width].
    """
    shifted = K.clone()
    shifted[:, :2, 2] -= torch.tensor([[left, top] for top, left in corners])
    features, alpha = _splat(gaussians, shifted, w2c, width, height, torch.ones(3))
    return features.permute(0, 3, 1, 2), alpha[:, None]


def _splat(
    gaussians: Gaussians, K: Tensor, w2c: Tensor, width: int, height: int, background: Tensor
) -> tuple[Tensor, Tensor]:
    """The first channels of the Gaussians, as many as the background has: [B, height, width, C] and
    alpha [B, height, width]. Views one by one: each sees other colours."""
    splats = [
        rasterize_gaussians(
            gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities,
            gaussians.seen_from(camera)[:, : len(background)], intrinsics[None], camera[None],
            width, height, background,
        )
        for intrinsics, camera in zip(K, w2c, strict=True)
    ]  # fmt: skip
    if len(splats) == 1:
        return splats[0].features, splats[0].alpha
    return torch.cat([each.features for each in splats]), torch.cat([each.alpha for each in splats])
