"""The dynamic networks of one frame, forward and backward: shared parts against plain networks.

    python -m benchmarks.mlp --json result.json

The twin gives every network every Gaussian and, for each of them, the frame's inputs once more; it
blends what they say with λ. The peer shares as ours does, but without the kernel. The floor counts
the products that remain when nothing is done twice.
"""

from __future__ import annotations

from typing import cast
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.harness import Case, options, run_cases
from benchmarks.scenes import avatar_head, moment
from gha_core import perceptron
from gha_core.avatar.head import ATTRIBUTE_SCALE, POSE, SHADING_TURN, GaussianHead
from gha_core.geometry.networks import ConditionedMLP, positional_encoding

FULL = [(14_000, 64), (50_000, 64), (50_000, 256)]
QUICK = [(10_000, 64)]


def main() -> None:
    chosen = options(__doc__)
    run_cases([case(*size) for size in (QUICK if chosen.quick else FULL)], chosen)


def case(count: int, width: int) -> Case:
    head = avatar_head(count, width=width)
    expression = torch.from_numpy(moment(0).expression)
    pose = torch.linspace(-0.3, 0.3, POSE)
    with torch.no_grad():
        torch.testing.assert_close(
            head.dynamics(expression, pose), plain(head, expression, pose), atol=1e-5, rtol=1e-4
        )
    return Case(
        f"six networks of {count} Gaussians, width {width}, forward + backward",
        ours=lambda: step(head.dynamics(expression, pose), head),
        twin=lambda: step(plain(head, expression, pose), head),
        operations=3 * 2 * products(head),  # each product forward, and twice backward
        peers={"shared parts in PyTorch": lambda: without_kernel(head, expression, pose)},
        moved=4 * 2 * (head.features.numel() + head.encoding.numel() + 3 * head.colours.numel()),
    )


def step(outputs: tuple[Tensor, ...], head: GaussianHead) -> None:
    networks = [value for name, value in head.named_parameters() if ".layers." in name]
    ones = [torch.ones_like(output) for output in outputs]
    torch.autograd.grad(outputs, [*networks, head.features], ones)


def without_kernel(head: GaussianHead, expression: Tensor, pose: Tensor) -> None:
    with mock.patch.object(perceptron.native, "perceptron_forward", None):
        outputs = head.dynamics(expression, pose)
    step(outputs, head)


def plain(head: GaussianHead, expression: Tensor, pose: Tensor) -> tuple[Tensor, ...]:
    turning, weight = positional_encoding(pose), head.weight[:, None]

    def ask(net: ConditionedMLP, points: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([points, condition.expand(len(points), -1)], -1)
        *hidden, last = cast(list[nn.Linear], list(net.layers))
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x)

    def blend(by_expression: Tensor, by_pose: Tensor) -> Tensor:
        return weight * by_expression + (1 - weight) * by_pose

    deformation = blend(
        torch.tanh(ask(head.deformation_expression, head.encoding, expression)),
        torch.tanh(ask(head.deformation_pose, head.encoding, turning)),
    )
    attributes = blend(
        ask(head.attributes_expression, head.features, expression),
        ask(head.attributes_pose, head.features, turning),
    )
    slopes = ask(head.colour_pose, head.features, pose[:0])
    colour = slopes.unflatten(1, (-1, 3)) @ (pose[:3] / SHADING_TURN)
    colour = colour + weight * ask(head.colour_expression, head.features, expression)
    return deformation, ATTRIBUTE_SCALE * attributes, colour


def products(head: GaussianHead) -> int:
    """Multiplications of one forward pass."""
    config = head.config
    by_pose = config.gaussians - config.face_gaussians
    asked = {
        "colour_expression": config.expression_gaussians,
        "deformation_expression": config.expression_gaussians,
        "attributes_expression": config.expression_gaussians,
        "colour_pose": config.gaussians if config.pose_shading else by_pose,
        "deformation_pose": by_pose,
        "attributes_pose": by_pose,
    }
    total = 0
    for name, points in asked.items():
        net = cast(ConditionedMLP, getattr(head, name))
        layers = cast(list[nn.Linear], list(net.layers))
        condition = layers[0].in_features - net.point_size
        per_point = sum(layer.weight.numel() for layer in layers)
        total += points * (per_point - condition * layers[0].out_features)
        total += condition * layers[0].out_features
    return total


if __name__ == "__main__":
    main()
