"""Projection and compositing in C++ (projection.cpp, kernel.cpp): the same image and gradients as
the twins, in float32 on the CPU, with the same bits whatever the number of threads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gha_core.backends import no_compiler
from gha_core.errors import ParameterError
from gha_core.splatting.projection import Projected
from gha_core.splatting.scene import Scene

try:
    from gha_core._native import (
        project_backward,
        project_forward,
        splat_backward,
        splat_forward,
    )
except ImportError:  # installed without a C++ compiler
    project_backward = project_forward = splat_backward = splat_forward = None

Planes = tuple[Tensor, Tensor, Tensor]


def missing() -> str | None:
    return no_compiler(splat_forward)


def render(scene: Scene) -> Planes:
    """As :func:`gha_core.splatting.twin.render`."""
    return composite(project(scene), scene)


def project(scene: Scene) -> Projected:
    """As :func:`gha_core.splatting.projection.project`."""
    return Projected(
        *_Project.apply(
            scene.means, scene.quaternions, scene.scales, scene.opacities, scene.K, scene.w2c,
            scene.width, scene.height,
        )
    )  # fmt: skip


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quaternions: Tensor,
        scales: Tensor,
        opacities: Tensor,
        K: Tensor,
        w2c: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, ...]:
        inputs = [v.contiguous() for v in (means, quaternions, scales, opacities, K, w2c)]
        views, count = len(K), len(means)
        means2d, conics = means.new_empty(views, count, 2), means.new_empty(views, count, 3)
        depths = means.new_empty(views, count)
        visible = torch.empty(views, count, dtype=torch.bool)
        outputs = (means2d, conics, depths, visible)
        project_forward(*_arrays(*inputs), width, height, *_arrays(*outputs), _threads())
        ctx.save_for_backward(*inputs, visible)
        ctx.size = width, height
        ctx.mark_non_differentiable(visible)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_means2d: Tensor, grad_conics: Tensor, grad_depths: Tensor, _: Tensor
    ) -> tuple[Tensor | None, ...]:
        *inputs, visible = ctx.saved_tensors
        means, quaternions, scales, _, K, w2c = inputs
        outputs = [torch.empty_like(v) for v in (means, quaternions, scales, K, w2c)]
        project_backward(
            *_arrays(*inputs), *ctx.size, *_arrays(visible),
            *_arrays(*(g.contiguous() for g in (grad_means2d, grad_conics, grad_depths))),
            *_arrays(*outputs), _threads(),
        )  # fmt: skip
        by_means, by_quaternions, by_scales, by_K, by_w2c = outputs
        return by_means, by_quaternions, by_scales, None, by_K, by_w2c, None, None


def composite(projected: Projected, scene: Scene) -> Planes:
    """As :func:`gha_core.splatting.twin.composite`."""
    try:
        image, alpha, depth = _Composite.apply(
            projected.means2d, projected.conics, projected.depths, scene.opacities, scene.features,
            scene.background, projected.visible, scene.width, scene.height,
        )  # fmt: skip
    except ValueError as error:
        raise ParameterError(
            f"{scene.work} makes {error}; at most 2³¹ can be counted. Draw fewer views at a time, "
            "or fewer or smaller Gaussians."
        ) from None
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
        keep = any(ctx.needs_input_grad)
        planes = _arrays(image, alpha, depth)
        ctx.bins = splat_forward(*_arrays(*inputs), *planes, keep, _threads())
        ctx.save_for_backward(*inputs, alpha)
        return image, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_image: Tensor, grad_alpha: Tensor, grad_depth: Tensor
    ) -> tuple[Tensor | None, ...]:
        means2d, conics, depths, _, opacities, features, background, alpha = ctx.saved_tensors
        outputs = [torch.empty_like(v) for v in (means2d, conics, depths, opacities, features)]
        splat_backward(
            ctx.bins,
            *_arrays(features, background),
            *_arrays(*(g.contiguous() for g in (grad_image, grad_alpha, grad_depth))),
            *_arrays(*outputs),
            _threads(),
        )
        grad_background = None
        if ctx.needs_input_grad[5]:
            grad_background = torch.einsum("vhw,vhwc->c", 1 - alpha, grad_image)
        return (*outputs, grad_background, None, None, None)


def _threads() -> int:
    return torch.get_num_threads()


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]
