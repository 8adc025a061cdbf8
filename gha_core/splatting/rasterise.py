"""The public function: Gaussians and cameras in, feature images out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gha_core.errors import NotFiniteError, ParameterError
from gha_core.splatting import native, projection, twin
from gha_core.splatting.projection import Projected

Project = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Projected]
Composite = Callable[[Projected, Tensor, Tensor, Tensor, int, int], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Backend:
    project: Project
    composite: Composite


# A further backend is one more line here and in `_choose`.
BACKENDS = {
    "native": Backend(native.project, native.composite),
    "twin": Backend(projection.project, twin.composite),
}


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
        backend: "native" (C++, float32 on the CPU), "twin" (plain PyTorch), or "auto": the fastest
            that can take these tensors, with one warning when that is the twin for want of a
            compiled extension.

    Raises:
        ParameterError: unknown or unusable backend, shapes that do not fit, or more than 2³¹
            intersections of Gaussians and tiles.
        NotFiniteError: NaN or infinity in a tensor; names it and the first such index.
    """
    _check(means, quaternions, scales, opacities, features, K, w2c, width, height, background)
    chosen = BACKENDS[_choose(backend, means)]
    if background is None:
        background = features.new_zeros(features.shape[1])
    check_finite(
        means=means, quaternions=quaternions, scales=scales, opacities=opacities,
        features=features, K=K, w2c=w2c, background=background,
    )  # fmt: skip
    views = torch.broadcast_shapes(K.shape[:-2], w2c.shape[:-2])
    K = K.expand(*views, 3, 3).reshape(-1, 3, 3)
    w2c = w2c.expand(*views, 4, 4).reshape(-1, 4, 4)
    projected = chosen.project(means, quaternions, scales, opacities, K, w2c, width, height)
    image, alpha, depth = chosen.composite(
        projected, opacities, features, background, width, height
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


def _choose(backend: str, example: Tensor) -> str:
    fits_native = example.device.type == "cpu" and example.dtype == torch.float32
    if backend == "auto":
        if not fits_native:
            return "twin"
        if native.available():
            return "native"
        _warn_slow()
        return "twin"
    if backend not in BACKENDS:
        raise ParameterError(
            f"Splatting backend {backend!r} is unknown; choose one of: auto, {', '.join(BACKENDS)}."
        )
    if backend == "native" and not native.available():
        raise ParameterError(
            "The native splatting kernel is not part of this installation: no C++ compiler was "
            "found when gha was installed. Install one (e.g. gcc) and gha again, or choose "
            "backend twin."
        )
    if backend == "native" and not fits_native:
        raise ParameterError(
            f"The native splatting kernel takes float32 tensors on the CPU, these are "
            f"{example.dtype} on {example.device}. Convert them, or choose backend twin."
        )
    return backend


@cache
def _warn_slow() -> None:
    warnings.warn(
        "gha's native kernels are not installed (no C++ compiler was found), so Gaussians are "
        "splatted by the PyTorch twin: the same images, but training and rendering take some tens "
        "of times as long. Install a compiler (e.g. gcc) and install gha again.",
        RuntimeWarning,
        stacklevel=4,
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
