"""Parts of pictures and of the feature images they are made from, at the same place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gha_core.avatar.super_resolution import margin


@dataclass(frozen=True)
class Window:
    """A part of each of B views, shown ``zoom`` times as large as it is.

    Attributes:
        corners: of every part, its upper row and left column in the feature image, px.
        height, width: of the part as it is shown, in feature pixels.
        scale: picture pixels per feature pixel.
    """

    corners: list[tuple[int, int]]
    height: int
    width: int
    scale: int
    zoom: float

    @staticmethod
    def about(
        focus: list[tuple[float, float]],
        side: int,
        height: int,
        width: int,
        scale: int,
        zoom: float,
    ) -> Window:
        """The parts with these middles (x, y), as far as the picture reaches.

        Args:
            focus: picture pixels; side: of the part as it is shown, picture pixels.
            height, width: of the whole feature image, px.
        """
        # Nothing is sampled beyond what there is: shown smaller, the same margin reaches further,
        # and shown larger, the outermost centres lie between the first pixel's and the edge.
        edge = max(math.ceil(margin(scale) * (1 / zoom - 1)), int(zoom > 1))
        tall, wide = (min(side // scale, int(zoom * (x - 2 * edge))) for x in (height, width))

        def start(middle: float, part: int, whole: int) -> int:
            first = round(middle / scale - part / zoom / 2)
            return min(max(first, edge), int(whole - edge - part / zoom))

        corners = [(start(y, tall, height), start(x, wide, width)) for x, y in focus]
        return Window(corners, tall, wide, scale, zoom)

    @property
    def places(self) -> list[tuple[float, float]]:
        """The upper left corners in the pictures as they are shown, px."""
        times = self.scale * self.zoom
        return [(times * top, times * left) for top, left in self.corners]

    def of_pictures(self, pictures: Tensor) -> Tensor:
        """Of pictures [B, C, H, W]: [B, C, scale height, scale width]."""
        return self._cut(pictures, self.scale, 0)

    def of_features(self, features: Tensor, border: int = 0) -> Tensor:
        """Of feature images [B, C, h + 2 border, w + 2 border] with their surroundings:
        [B, C, height + 2 border, width + 2 border]."""
        return self._cut(features, 1, border)

    def _cut(self, planes: Tensor, times: int, border: int) -> Tensor:
        tall, wide = times * self.height + 2 * border, times * self.width + 2 * border
        parts = []
        for index, (top, left) in enumerate(self.corners):
            view, y, x = planes[index : index + 1], times * top, times * left
            if self.zoom == 1:
                parts.append(view[..., y : y + tall, x : x + wide])
            else:
                grid = torch.stack(
                    torch.meshgrid(
                        self._sampled(x, wide, border, view.shape[-1]),
                        self._sampled(y, tall, border, view.shape[-2]),
                        indexing="xy",
                    ),
                    -1,
                )
                parts.append(F.grid_sample(view.float(), grid[None], align_corners=False))
        return torch.cat(parts)

    def _sampled(self, start: int, count: int, border: int, length: int) -> Tensor:
        """Where the centres of so many pixels lie along a side, from -1 to 1 as PyTorch has it."""
        centres = (torch.arange(count) + 0.5 - border) / self.zoom + start + border
        return 2 * centres / length - 1
