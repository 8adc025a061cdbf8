"""The networks that stage 1 (geometry) and stage 2 (avatar) share, and who controls a point.

Xu et al., Gaussian Head Avatar (CVPR 2024). Points are in head space (unit: head length).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from gha_core.perceptron import perceptron

OCTAVES = 4
FEATURES = 128
CHANNELS = 32
POSE = 6
DEFORMATION_SCALE = 0.3

Activation = Callable[[Tensor], Tensor]


def positional_encoding(x: Tensor, octaves: int = OCTAVES) -> Tensor:
    """[..., D] to [..., D (1 + 2 octaves)]: x, then sin and cos of x, 2x, 4x, 8x …"""
    parts = [x]
    for octave in range(octaves):
        parts += [torch.sin(2.0**octave * x), torch.cos(2.0**octave * x)]
    return torch.cat(parts, -1)


def encoded_size(size: int, octaves: int = OCTAVES) -> int:
    return size * (1 + 2 * octaves)


def control_weight(points: Tensor, landmarks: Tensor, t1: float, t2: float) -> Tensor:
    """[N] λ: how far the expression (rather than the pose) controls each point. No gradient.

    1 within ``t1`` of the nearest neutral landmark, 0 beyond ``t2``, linear between; true distances
    in head lengths.

    Args:
        points: [N, 3]; landmarks: [M, 3], both head space.
    """
    with torch.no_grad():
        distance = torch.cdist(points, landmarks).amin(1)
        return ((t2 - distance) / (t2 - t1)).clamp(0, 1)


class ConditionedMLP(nn.Module):
    """An MLP with ReLU on [point, condition], where all points share the condition.

    The same function as concatenation, but the first layer multiplies the condition once for all
    points: its part becomes a bias.

    Args:
        point_size, condition_size: input sizes P and C; C may be 0.
        hidden: widths of the hidden layers.
        out: output size O. There is no activation after it.
        out_scale: factor on the initial weights of the last layer (small: starts near zero).
    """

    def __init__(
        self,
        point_size: int,
        condition_size: int,
        hidden: Sequence[int],
        out: int,
        out_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.point_size = point_size
        widths = [point_size + condition_size, *hidden, out]
        linear = [nn.Linear(before, after) for before, after in pairwise(widths)]
        for layer in linear[:-1]:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            linear[-1].weight.mul_(out_scale)
            linear[-1].bias.zero_()
        self.layers = nn.ModuleList(linear)

    def forward(self, points: Tensor, condition: Tensor | None = None) -> Tensor:
        """points [N, P] and the condition [C] that they share, if there is one, to [N, O]."""
        first, *others = cast(list[nn.Linear], list(self.layers))
        weights = [first.weight[:, : self.point_size], *(layer.weight for layer in others)]
        bias: Tensor = first.bias
        if condition is not None:
            bias = nn.functional.linear(condition, first.weight[:, self.point_size :], bias)
        return perceptron(points, weights, [bias, *(layer.bias for layer in others)])

    def first_output(self, points: Tensor) -> Tensor:
        """[N]: the first output alone, without condition."""
        *hidden, last = cast(list[nn.Linear], list(self.layers))
        weights = [*(layer.weight for layer in hidden), last.weight[:1]]
        return perceptron(points, weights, [*(layer.bias for layer in hidden), last.bias[:1]])[:, 0]


@dataclass(frozen=True)
class NeutralField:
    """What the geometry network says about N points of neutral head space.

    Attributes:
        sdf: [N] signed distance-like value in -1..1, negative inside.
        offset: [N, 3] in -1..1; divided by the grid resolution it displaces a grid vertex.
        features: [N, 128] in -1..1.
    """

    sdf: Tensor
    offset: Tensor
    features: Tensor


class HeadNetworks(nn.Module):
    """The five networks of both stages: geometry, colour and deformation.

    Args:
        expressions: number of expression coefficients E.
        width: hidden width (256 in the paper).
    """

    def __init__(self, expressions: int, width: int = 256) -> None:
        super().__init__()
        half, gamma_x, gamma_pose = width // 2, encoded_size(3), encoded_size(POSE)
        self.expressions, self.width = expressions, width
        self.geometry = ConditionedMLP(gamma_x, 0, [width] * 5, 1 + 3 + FEATURES)
        self.colour_expression = ConditionedMLP(FEATURES, expressions, [width] * 2, CHANNELS)
        self.colour_pose = ConditionedMLP(FEATURES, gamma_pose, [half], CHANNELS)
        # Deformations start near zero, so that the first steps explain the images by shape.
        self.deformation_expression = ConditionedMLP(gamma_x, expressions, [width] * 5, 3, 0.05)
        self.deformation_pose = ConditionedMLP(gamma_x, gamma_pose, [width] * 2, 3, 0.05)

    def neutral(self, points: Tensor) -> NeutralField:
        """The geometry network at ``points`` [N, 3]."""
        out = torch.tanh(self.geometry(positional_encoding(points)))
        return NeutralField(out[:, 0], out[:, 1:4], out[:, 4:])

    def sdf(self, points: Tensor) -> Tensor:
        """[N] signed distance alone: ``neutral(points).sdf`` with a cheaper last layer."""
        return torch.tanh(self.geometry.first_output(positional_encoding(points)))

    def deformation(
        self, points: Tensor, weight: Tensor, expression: Tensor, pose: Tensor
    ) -> Tensor:
        """[N, 3] displacement of neutral points, head space.

        Args:
            points: [N, 3]; weight: [N] λ of :func:`control_weight`.
            expression: [E]; pose: [6] axis-angle (rad) and translation (m).
        """
        encoded, turned = positional_encoding(points), positional_encoding(pose)
        near, far = weight.nonzero()[:, 0], (1 - weight).nonzero()[:, 0]
        by_expression = torch.tanh(self.deformation_expression(encoded[near], expression))
        by_pose = torch.tanh(self.deformation_pose(encoded[far], turned))
        return DEFORMATION_SCALE * _mix(weight, near, by_expression, far, by_pose)

    def colour(
        self,
        features: Tensor,
        weight: Tensor,
        expression: Tensor,
        pose: Tensor,
        activation: Activation = torch.sigmoid,
    ) -> Tensor:
        """[N, 32] channels; the first three are RGB when ``activation`` is the sigmoid.

        Args:
            features: [N, 128]; weight: [N]; expression: [E]; pose: [6].
            activation: after each network: sigmoid in stage 1, ``identity`` in stage 2.
        """
        near, far = weight.nonzero()[:, 0], (1 - weight).nonzero()[:, 0]
        turned = positional_encoding(pose)
        by_expression = activation(self.colour_expression(features[near], expression))
        by_pose = activation(self.colour_pose(features[far], turned))
        return _mix(weight, near, by_expression, far, by_pose)


def _mix(
    weight: Tensor, near: Tensor, by_expression: Tensor, far: Tensor, by_pose: Tensor
) -> Tensor:
    """[N, C] weight·(expression's values) + (1 - weight)·(pose's values), each given only
    where it counts: at the points ``near`` [n] and ``far`` [f]."""
    out = by_pose.new_zeros(len(weight), by_pose.shape[-1])
    out = out.index_add(0, far, (1 - weight[far])[:, None] * by_pose)
    return out.index_add(0, near, weight[near][:, None] * by_expression)


def identity(x: Tensor) -> Tensor:
    return x
