"""Splatting by gsplat (https://docs.gsplat.studio, Apache-2.0), float32 on CUDA.

Its image model is ours: 0.3 px² dilation, footprints bounded by opacity, alpha at most 0.999 and
dropped below 1/255, no more once 1e-4 would still shine through. What differs:

- the transmittance stop is T <= 1e-4, ours T < 1e-4; of nearly equal depths, which it rounds in its
  own way, the other one may be the nearer
- gradients are summed in another order on every call, so they are equal but for rounding
- a Gaussian that is absurdly large in one view is left out of all of them

gsplat has no gradients with respect to intrinsics; through the image frame they come with those of
the view matrices.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from gha_core.backends import installed
from gha_core.splatting import twin
from gha_core.splatting.image_frame import check_intersections, drawable, to_image_frame
from gha_core.splatting.projection import DILATION, NEAR
from gha_core.splatting.scene import Scene

_CHANNELS = 33  # drawn at a time: gsplat has kernels for 32 features and their depth
_DENSE = 4_000_000  # Gaussians x views, above which memory counts more than time


def missing() -> str | None:
    if not installed("gsplat"):
        return "is not installed: pip install 'gha[cuda]'"
    if torch.cuda.is_available() and not _has_kernels():
        return (
            "is installed without compiled kernels, and there is no CUDA toolkit (nvcc) to build "
            "them with: install the toolkit, or one of gsplat's own wheels"
        )
    return None


def render(scene: Scene) -> twin.Planes:
    """As :func:`gha_core.splatting.twin.render`."""
    if not len(scene.means) or not len(scene.K):  # gsplat divides by the number of Gaussians
        return twin.render(scene)
    from gsplat import rasterization

    check_intersections(scene)
    frames, K, width, height = to_image_frame(scene), scene.K, scene.width, scene.height
    means, quaternions, scales, opacities = drawable(scene, frames)
    views, half = len(frames), K.new_tensor([width / 2, height / 2, 1.0])
    lens = torch.diag(half)
    lens[:2, 2] = half[:2]
    last_row = K.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(views, 1, 4)
    image, alpha, _ = rasterization(
        means=means,
        quats=quaternions,
        scales=scales,
        opacities=opacities,
        colors=scene.features,
        viewmats=torch.cat([frames, last_row], 1),
        Ks=lens.expand(views, 3, 3).contiguous(),
        width=width,
        height=height,
        near_plane=NEAR,
        eps2d=DILATION,
        packed=views * len(means) > _DENSE,
        backgrounds=scene.background.expand(views, -1),
        render_mode="RGB+D",
        rasterize_mode="classic",
        channel_chunk=_CHANNELS,
    )
    return image[..., :-1], alpha[..., 0], image[..., -1]


def _has_kernels() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME

    spec = find_spec("gsplat")
    folders = (spec.submodule_search_locations or []) if spec else []
    return CUDA_HOME is not None or any(list(Path(f).glob("csrc*.*")) for f in folders)
