"""Compositing by the C++ kernel (kernel.cpp): the same image and gradients as the twin, in float32
on the CPU, with the same bits whatever the number of threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gha_core.splatting.projection import Projected

try:
    from gha_core._native import splat_backward, splat_forward
except ImportError:  # installed without a C++ compiler
    splat_backward = splat_forward = None

Planes = tuple[Tensor, Tensor, Tensor]


def available() -> bool:
    return splat_forward is not None


def composite(
    projected: Projected,
    opacities: Tensor,
    features: Tensor,
    background: Tensor,
    width: int,
    height: int,
) -> Planes:
    """As :func:`gha_core.splatting.twin.composite`."""
    image, alpha, depth = _Composite.apply(
        projected.means2d, projected.conics, projected.depths, opacities, features, background,
        projected.visible, width, height,
    )  # fmt: skip
    return image, alpha, depth


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,
        conics: Tensor,
        depths: Tensor,
        opacities: Tensor,
        features: Tensor,
        background: Tensor,
        visible: Tensor,
        width: int,
        height: int,
    ) -> Planes:
        inputs = [
            value.contiguous()
            for value in (means2d, conics, depths, visible, opacities, features, background)
        ]
        views, channels = depths.shape[0], features.shape[1]
        image = means2d.new_empty(views, height, width, channels)
        alpha = means2d.new_empty(views, height, width)
        depth = means2d.new_empty(views, height, width)
        ctx.bins = splat_forward(
            *_arrays(*inputs), *_arrays(image, alpha, depth), torch.get_num_threads()
        )
        ctx.save_for_backward(*inputs, image, alpha, depth)
        return image, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_image: Tensor, grad_alpha: Tensor, grad_depth: Tensor
    ) -> tuple[Tensor | None, ...]:
        means2d, conics, depths, _, opacities, features, _, *planes = ctx.saved_tensors
        image, alpha, depth = planes
        outputs = [torch.empty_like(v) for v in (means2d, conics, depths, opacities, features)]
        splat_backward(
            ctx.bins,
            *_arrays(features, image, alpha, depth),
            *_arrays(*(g.contiguous() for g in (grad_image, grad_alpha, grad_depth))),
            *_arrays(*outputs),
            torch.get_num_threads(),
        )
        grad_background = None
        if ctx.needs_input_grad[5]:
            grad_background = torch.einsum("vhw,vhwc->c", 1 - alpha, grad_image)
        return (*outputs, grad_background, None, None, None)


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]
