"""Adam (Kingma and Ba 2015). PyTorch's own loads its compiler at the first step, for 2.4 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


@dataclass
class Group:
    """Parameters that share a learning rate."""

    parameters: list[Tensor]
    rate: float


@dataclass
class _Moments:
    """Running means of a parameter's gradient and of its square, after ``count`` steps."""

    mean: Tensor
    square: Tensor
    count: int = 0


class Adam:
    """The same bits as torch.optim.Adam's; a parameter without gradient stays as it is."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self._moments = [
            _Moments(torch.zeros_like(parameter), torch.zeros_like(parameter))
            for group in self.groups
            for parameter in group.parameters
        ]

    def zero_grad(self) -> None:
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        moments = iter(self._moments)
        for group in self.groups:
            for parameter, its in zip(group.parameters, moments, strict=False):
                gradient = parameter.grad
                if gradient is None:
                    continue
                its.count += 1
                its.mean.lerp_(gradient, 1 - BETAS[0])
                its.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
                first, second = (1 - beta**its.count for beta in BETAS)
                spread = (its.square.sqrt() / second**0.5).add_(EPSILON)
                parameter.addcdiv_(its.mean, spread, value=-group.rate / first)

    def tensors(self) -> dict[str, Tensor]:
        """Its state, by name."""
        return {
            f"{index}.{name}": torch.as_tensor(value)
            for index, its in enumerate(self._moments)
            for name, value in vars(its).items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`tensors` of one for the same parameters gave."""
        self._moments = [
            _Moments(
                tensors[f"{index}.mean"], tensors[f"{index}.square"], int(tensors[f"{index}.count"])
            )
            for index in range(len(self._moments))
        ]
