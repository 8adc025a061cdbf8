"""The perceptron in plain PyTorch: the specification of the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def evaluate(points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """As :func:`gha_core.perceptron.perceptron`."""
    x = points
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu_(torch.nn.functional.linear(x, weight, bias))
    return torch.nn.functional.linear(x, weights[-1], biases[-1])
