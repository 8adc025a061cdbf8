"""The perceptron in C++ (kernel.cpp): the twin's values and gradients, in float32 on the CPU, with
the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gha_core.backends import no_compiler

try:
    from gha_core._native import perceptron_backward, perceptron_forward
except ImportError:  # installed without a C++ compiler
    perceptron_backward = perceptron_forward = None

_LANES = 8  # as in kernel.cpp


def missing() -> str | None:
    return no_compiler(perceptron_forward)


def evaluate(points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """As :func:`gha_core.perceptron.perceptron`."""
    learns = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (points, *weights, *biases)
    )
    out: Tensor = _Perceptron.apply(learns, points, *weights, *biases)
    return out


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, learns: bool, points: Tensor, *layers: Tensor) -> Tensor:
        inputs = [tensor.contiguous() for tensor in (points, *layers)]
        points, *layers = inputs  # type: ignore[assignment]
        weights, biases = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        widths = [-(-len(weight) // _LANES) * _LANES for weight in weights[:-1]]
        hidden = points.new_empty(len(points) * sum(widths) if learns else 0)
        out = points.new_empty(len(points), len(weights[-1]))
        perceptron_forward(
            points.detach().numpy(), _arrays(weights), _arrays(biases), hidden.numpy(),
            out.numpy(), torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(*inputs, hidden)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        points, *layers, hidden = ctx.saved_tensors
        weights, biases = layers[: len(layers) // 2], layers[len(layers) // 2 :]
        by_points = torch.empty_like(points if ctx.needs_input_grad[1] else points[:0])
        by_layers = [torch.empty_like(tensor) for tensor in layers]
        perceptron_backward(
            points.numpy(), _arrays(weights), _arrays(biases), hidden.numpy(),
            gradient.contiguous().numpy(), by_points.numpy(), _arrays(by_layers[: len(weights)]),
            _arrays(by_layers[len(weights) :]), torch.get_num_threads(),
        )  # fmt: skip
        return None, by_points if ctx.needs_input_grad[1] else None, *by_layers


def _arrays(tensors: Sequence[Tensor]) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]
