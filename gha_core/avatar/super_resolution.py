"""The network that turns the small feature image into the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 2  # picture pixels per feature pixel, along each side, unless said otherwise
# Per scale the names of the conv blocks that follow an enlargement to twice the size each.
_BLOCKS = {2: ("fine",), 4: ("fine", "finest")}
# Colours are kept this far from 0 and 1 before the logit, where it would run to infinity.
_EDGE = 2e-3


def margin(scale: int) -> int:
    """Feature pixels that the network needs around the part it draws.

    They are rendered, not made up by padding, so a part of a picture comes out exactly as it does
    in the whole. Every conv block eats a pixel on each side, and enlarging spoils one, which lacks
    its neighbour: of m good feature pixels about the part, 2 (m - 1) - 2 are left after the first
    step and 2 (2 (m - 1) - 2) - 2 after the second. At the end none may be missing.
    """
    surrounding = 0
    for _ in _BLOCKS[scale]:
        surrounding = -(-(surrounding + 2) // 2)
    return surrounding + 1


class SuperResolution(nn.Module):
    """Conv block, as many times (bilinear x2, conv block) as the scale needs, 1x1 conv, sigmoid.

    The first three channels are a picture already (they are supervised as one). The network adds to
    its logit, and so starts out by showing the Gaussians as they are.

    Args:
        channels: of the feature image.
        width: of the hidden layer at the feature image's size; every next one, twice as large, is
            half as wide.
        scale: 2 or 4 picture pixels per feature pixel, along each side.
    """

    def __init__(self, channels: int, width: int, scale: int = SCALE) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin(scale)
        self.coarse = nn.Conv2d(channels, width, 3)
        for name in _BLOCKS[scale]:
            self.add_module(name, nn.Conv2d(width, width // 2, 3))
            width //= 2
        self.out = nn.Conv2d(width, 3, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, colour: Tensor | None = None) -> Tensor:
        """[B, C, h + 2 margin, w + 2 margin] to [B, 3, scale h, scale w] sRGB in 0..1.

        Args:
            features: fastest on CPUs if the channels are last in memory.
            colour: [B, 3, scale h, scale w] the first three channels drawn at full size; with None,
                theirs of ``features`` are enlarged, as in the papers.
        """
        x = torch.relu(self.coarse(features))
        for name in _BLOCKS[self.scale]:
            x = torch.relu(self.get_submodule(name)(_enlarged(x, 2)))
        x = self.out(x)
        if colour is None:
            small = _cut(features[:, :3], self.margin - 1)
            small = torch.logit(small.clamp(_EDGE, 1 - _EDGE))
            picture = _cut(_enlarged(small, self.scale), self.scale)
        else:
            picture = torch.logit(colour.clamp(_EDGE, 1 - _EDGE))
        spoiled = (x.shape[-1] - picture.shape[-1]) // 2
        # The loss reads planes; handing it channels-last views made it twice as slow.
        return torch.sigmoid(_cut(x, spoiled) + picture).contiguous()


def _enlarged(x: Tensor, scale: int) -> Tensor:
    return F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)


def _cut(x: Tensor, border: int) -> Tensor:
    """Without so many pixels on each side."""
    return x[..., border:-border, border:-border]
