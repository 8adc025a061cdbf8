"""The public function: Gaussians and cameras in, feature images out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.backends import Backend, Backends
from gha_core.errors import NotFiniteError, ParameterError
from gha_core.splatting import diff_gaussian_rasterization, gsplat, native, twin
from gha_core.splatting.scene import Scene

Render = Callable[[Scene], tuple[Tensor, Tensor, Tensor]]

BACKENDS: Backends[Render] = Backends(
    "Gaussian splatting",
    (
        Backend(
            "native",
            native.render,
            device="cpu",
            missing=native.missing,
            cost="with the same images but some tens of times as slowly",
        ),
        Backend(
            "gsplat",
            gsplat.render,
            device="cuda",
            missing=gsplat.missing,
            cost="with the same images but far more slowly",
        ),
        Backend(
            "diff_gaussian_rasterization",
            diff_gaussian_rasterization.render,
            licence=diff_gaussian_rasterization.LICENCE,
            device="cuda",
            missing=diff_gaussian_rasterization.missing,
            caution="Gaussians are splatted by diff_gaussian_rasterization, whose licence allows "
            "non-commercial research only. Install gsplat (Apache-2.0) to be free of it: "
            "pip install 'gha[cuda]'.",
        ),
        Backend("twin", twin.render),
    ),
)


@dataclass(frozen=True)
class Splat:
    """Images of the Gaussians; leading dimensions are those of the cameras.

    Attributes:
        features: [..., H, W, C] composited front to back, over the background.
        alpha: [..., H, W] 0..1, what the Gaussians cover.
        depth: [..., H, W] m, sum over the Gaussians of weight x camera z; divide by alpha for the
            mean depth of what is seen.
    """

    features: Tensor
    alpha: Tensor
    depth: Tensor


def rasterize_gaussians(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    K: Tensor,
    w2c: Tensor,
    width: int,
    height: int,
    background: Tensor | None = None,
    backend: str = "auto",
) -> Splat:
    """Render N Gaussians into one or more views; differentiable in every tensor.

    Gaussians that cannot be seen (nearer than 1 cm, behind the camera, opacity below 1 / 255, a
    quaternion of zeros, or numbers beyond 1e6) are left out and get zero gradient. The order of the
    Gaussians does not matter, except between Gaussians of exactly equal depth, where the first is
    taken as nearer.

    Args:
        means: [N, 3] world, m.
        quaternions: [N, 4] w-x-y-z, any length but zero.
        scales: [N, 3] standard deviations along the rotated axes, m (not logarithms).
        opacities: [N] 0..1 (not logits).
        features: [N, C], any C.
        K: [..., 3, 3] px, first pixel's centre at (0.5, 0.5).
        w2c: [..., 4, 4] world to camera, OpenCV axes; leading dimensions broadcast with those of K.
        width, height: px.
        background: [C] what shines through; zeros if None.
        backend: a name of ``BACKENDS``, or "auto": the preferred one that is installed and takes
            such tensors, with one warning when that is the twin for want of a faster one.

    Raises:
        ParameterError: unknown or unusable backend, shapes that do not fit, or more than 2³¹
            intersections of Gaussians and tiles.
        NotFiniteError: NaN or infinity in a tensor; names it and the first such index.
    """
    _check(means, quaternions, scales, opacities, features, K, w2c, width, height, background)
    chosen = BACKENDS.choose(backend, means.device, means.dtype)
    if background is None:
        background = features.new_zeros(features.shape[1])
    check_finite(
        means=means, quaternions=quaternions, scales=scales, opacities=opacities,
        features=features, K=K, w2c=w2c, background=background,
    )  # fmt: skip
    views = torch.broadcast_shapes(K.shape[:-2], w2c.shape[:-2])
    K = K.expand(*views, 3, 3).reshape(-1, 3, 3)
    w2c = w2c.expand(*views, 4, 4).reshape(-1, 4, 4)
    image, alpha, depth = chosen.kernels(
        Scene(means, quaternions, scales, opacities, features, background, K, w2c, width, height)
    )
    return Splat(
        image.reshape(*views, height, width, -1),
        alpha.reshape(*views, height, width),
        depth.reshape(*views, height, width),
    )


def check_finite(**tensors: Tensor) -> None:
    """Raise NotFiniteError if a number of any tensor is NaN or infinite."""
    # A sum is finite only if all terms are: one pass, and the culprit is looked for only then. (A
    # sum can also overflow; then none is found.)
    sums = [tensor.detach().sum() for tensor in tensors.values()]
    if bool(torch.isfinite(torch.stack(sums)).all()):
        return
    for name, tensor in tensors.items():
        bad = (~torch.isfinite(tensor.detach())).nonzero()
        if len(bad):
            index = tuple(bad[0].tolist())
            raise NotFiniteError(
                f"Splatting: {name}[{', '.join(map(str, index))}] is {tensor[index].item()}, and "
                f"{len(bad)} of its {tensor.numel()} numbers are not finite. Correct what computed "
                "them: NaN and infinity cannot be drawn."
            )


def _check(
    means: Tensor,
    quaternions: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    K: Tensor,
    w2c: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
) -> None:
    count = len(means)
    channels = features.shape[-1] if features.ndim == 2 else -1
    for name, tensor, shape in (
        ("means", means, (count, 3)),
        ("quaternions", quaternions, (count, 4)),
        ("scales", scales, (count, 3)),
        ("opacities", opacities, (count,)),
        ("features", features, (count, channels)),
        ("K", K[(0,) * (K.ndim - 2)] if K.ndim > 2 and K.numel() else K, (3, 3)),
        ("w2c", w2c[(0,) * (w2c.ndim - 2)] if w2c.ndim > 2 and w2c.numel() else w2c, (4, 4)),
        ("background", background, (channels,)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ParameterError(
                f"Splatting {count} Gaussians of {channels} channels: {name} has shape "
                f"{list(tensor.shape)}, expected {list(shape)}."
            )
        if tensor.dtype != means.dtype or tensor.device != means.device:
            raise ParameterError(
                f"Splatting: {name} is {tensor.dtype} on {tensor.device}, means are {means.dtype} "
                f"on {means.device}; they must agree."
            )
    if width < 1 or height < 1 or channels < 1:
        raise ParameterError(
            f"Splatting needs at least one pixel and one channel, got {width}x{height}x{channels}."
        )
