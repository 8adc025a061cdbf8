"""The network that turns the half-size feature image into the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 2  # picture pixels per feature pixel, along each side
# Feature pixels that the network needs around the part it draws. They are rendered, not made up by
# padding, so a part of a picture comes out exactly as it does in the whole.
MARGIN = 2
# Colours are kept this far from 0 and 1 before the logit, where it would run to infinity.
_EDGE = 2e-3


class SuperResolution(nn.Module):
    """Conv block, bilinear x2, conv block, 1x1 conv, sigmoid.

    The first three channels are a picture already (they are supervised as one). The network adds to
    its logit, and so starts out by showing the Gaussians as they are.

    Args:
        channels: of the feature image.
        width: of the half-size hidden layer; the full-size one, where time goes, is half as wide.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(channels, width, 3)
        self.fine = nn.Conv2d(width, width // 2, 3)
        self.out = nn.Conv2d(width // 2, 3, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor, colour: Tensor | None = None) -> Tensor:
        """[B, C, h + 2 MARGIN, w + 2 MARGIN] to [B, 3, 2h, 2w] sRGB in 0..1.

        Args:
            features: fastest on CPUs if the channels are last in memory.
            colour: [B, 3, 2h, 2w] the first three channels drawn at full size; with None, theirs of
                ``features`` are enlarged, as in the papers.
        """
        x = _enlarged(torch.relu(self.coarse(features)))
        x = self.out(torch.relu(self.fine(x)))[..., 1:-1, 1:-1]
        if colour is None:
            small = torch.logit(features[:, :3, 1:-1, 1:-1].clamp(_EDGE, 1 - _EDGE))
            picture = _enlarged(small)[..., 2:-2, 2:-2]
        else:
            picture = torch.logit(colour.clamp(_EDGE, 1 - _EDGE))
        # The loss reads planes; handing it channels-last views made it twice as slow.
        return torch.sigmoid(x + picture).contiguous()


def _enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=SCALE, mode="bilinear", align_corners=False)
