"""A perceptual distance from the first blocks of an ImageNet network that works offline.

The network is EfficientNet-Lite0 (Tan and Le 2019, and the published "lite" changes: ReLU6 for
swish, no squeeze-and-excitation). The distance follows Zhang et al. 2018 (LPIPS) with equal weight
for every channel: features are normalised per position to unit length and compared squared. Only
the first blocks are used: they see edges and texture, which is what a rendering gets wrong, and
they cost little.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gha_core.assets import ASSETS, asset_path
from gha_core.errors import AssetError

BACKBONE = "efficientnet_lite0"
# Inputs of the network are (8-bit value - 127) / 128.
_SHIFT, _GAIN = 127 / 255, 255 / 128
_NORM_EPS = 1e-3  # of its batch normalisations


@dataclass(frozen=True)
class Block:
    """One inverted residual: 1x1 expand, depthwise, 1x1 project."""

    kernel: int
    stride: int
    expand: int
    source: int
    out: int


# The first five blocks of EfficientNet-Lite0; the distance reads the stem and blocks 0, 2, 4.
BLOCKS = (
    Block(3, 1, 1, 32, 16),
    Block(3, 2, 6, 16, 24),
    Block(3, 1, 6, 24, 24),
    Block(5, 2, 6, 24, 40),
    Block(5, 1, 6, 40, 40),
)
TAPS = (0, 2, 4)


class PerceptualDistance(nn.Module):
    """Distance of images [B, 3, H, W] in 0..1: 0 for equal images, about 1 for unrelated ones.

    The network is frozen; gradients flow to the images only.

    Raises:
        AssetError: the backbone is absent and cannot be fetched, or is not what was pinned.
    """

    NAME = BACKBONE
    LICENCE = ASSETS[BACKBONE].licence

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = weights or asset_path(BACKBONE)
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            convolutions = _folded(state)
        except KeyError as error:
            raise AssetError(f"{path} has no tensor {error}; it is not {BACKBONE}.") from None
        for name, (weight, bias) in convolutions.items():
            self.register_buffer(f"{name}_weight", weight, persistent=False)
            self.register_buffer(f"{name}_bias", bias, persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, C, h, w], each position scaled to unit length, finest first."""
        x = ((images - _SHIFT) * _GAIN).contiguous(memory_format=torch.channels_last)
        x = F.relu6(self._convolve("stem", x, stride=2))
        taps = [x]
        for index, block in enumerate(BLOCKS):
            before = x
            if block.expand > 1:
                x = F.relu6(self._convolve(f"expand{index}", x))
            x = F.relu6(self._convolve(f"depth{index}", x, block.stride, groups=x.shape[1]))
            x = self._convolve(f"project{index}", x)
            if block.stride == 1 and block.source == block.out:
                x = x + before
            if index in TAPS:
                taps.append(x)
        return [_unit(tap) for tap in taps]

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(targets)
        found = self.features(images)
        distances = [((a - b) ** 2).sum(1).mean() for a, b in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()

    def _convolve(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        kernel = weight.shape[-1]
        if stride == 1:
            return F.conv2d(x, weight, bias, padding=kernel // 2, groups=groups)
        # TensorFlow's "same": with stride 2 and an even size, the odd row of padding comes last.
        height, width = x.shape[-2:]
        down, across = (max(kernel - (2 - size % 2), 0) for size in (height, width))
        x = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))
        return F.conv2d(x, weight, bias, stride=stride, groups=groups)


def _unit(features: Tensor) -> Tensor:
    return features * torch.rsqrt((features * features).sum(1, keepdim=True) + 1e-3)


def _folded(state: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of every convolution with its (frozen) batch normalisation folded in."""
    parts = {"stem": ("_conv_stem", "_bn0")}
    for index, block in enumerate(BLOCKS):
        prefix = f"_blocks.{index}."
        if block.expand > 1:
            parts[f"expand{index}"] = (f"{prefix}_expand_conv", f"{prefix}_bn0")
        parts[f"depth{index}"] = (f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        parts[f"project{index}"] = (f"{prefix}_project_conv", f"{prefix}_bn2")
    folded = {}
    for name, (convolution, norm) in parts.items():
        gain = state[f"{norm}.weight"] * torch.rsqrt(state[f"{norm}.running_var"] + _NORM_EPS)
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        weight = state[f"{convolution}.weight"] * gain[:, None, None, None]
        folded[name] = (weight.contiguous(memory_format=torch.channels_last), bias)
    return folded
