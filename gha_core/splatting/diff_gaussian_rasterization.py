"""Splatting by diff_gaussian_rasterization, the rasteriser of the 3DGS paper, float32 on CUDA.

https://github.com/graphdeco-inria/diff-gaussian-rasterization, for non-commercial research only.
How many channels it draws was fixed when it was compiled; it is asked, and features are drawn in as
many groups as it takes, with the depth and the coverage as two more channels.

Its image model differs from ours:

- footprints end at three standard deviations of the longer axis, rounded up to whole tiles of 16 px
  (ours where alpha falls below 1/255, up to 3.33 of them)
- alpha is at most 0.99 (ours 0.999), and its gradient goes on where it is held there (ours stops)

The package has no gradients with respect to the camera, knows no skew and keeps the principal point
in the middle, and it leaves out what is nearer than 0.2. Here the Gaussians are brought into the
image frame by PyTorch, 20 times as large, and it sees one constant camera: all gradients and any
intrinsics are there, and 0.2 is 1 cm. There is no anti-aliasing, also where a build offers it.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from gha_core.backends import installed
from gha_core.errors import ParameterError
from gha_core.splatting.image_frame import check_intersections, drawable, to_image_frame
from gha_core.splatting.projection import NEAR, scaled_axes
from gha_core.splatting.scene import Scene
from gha_core.splatting.twin import Planes

LICENCE = "non-commercial research only"
_PACKAGE = "diff_gaussian_rasterization"
_ENLARGED = 0.2 / NEAR  # its near plane over ours


def missing() -> str | None:
    if installed(_PACKAGE):
        return None
    return "is not installed: build it from Inria's repository of that name"


def render(scene: Scene) -> Planes:
    """As :func:`gha_core.splatting.twin.render`."""
    check_intersections(scene)
    frames, features, width, height = (
        to_image_frame(scene),
        scene.features,
        scene.width,
        scene.height,
    )
    means, quaternions, scales, opacities = drawable(scene, frames)
    axes = scaled_axes(quaternions, scales)  # [3, 3, N]
    images = [features.new_zeros(0, height, width, features.shape[1] + 2)]
    for frame in frames:
        local = means @ frame[:, :3].T + frame[:, 3]
        factor = (frame[:, :3, None, None] * axes).sum(1)  # [3, 3, N]
        payload = torch.cat([features, local[:, 2:], torch.ones_like(local[:, 2:])], 1)
        images.append(
            _draw(
                _ENLARGED * local,
                _ENLARGED**2 * _upper_triangle(factor),
                opacities,
                payload,
                width,
                height,
            )[None]
        )
    image = torch.cat(images)
    alpha = image[..., -1]
    return image[..., :-2] + (1 - alpha[..., None]) * scene.background, alpha, image[..., -2]


def _upper_triangle(factor: Tensor) -> Tensor:
    """[N, 6] xx, xy, xz, yy, yz, zz of the covariances factor factorᵀ."""
    x, y, z = factor
    pairs = ((x, x), (x, y), (x, z), (y, y), (y, z), (z, z))
    return torch.stack([(a * b).sum(0) for a, b in pairs], 1)


def _draw(
    points: Tensor, covariances: Tensor, opacities: Tensor, payload: Tensor, width: int, height: int
) -> Tensor:
    """[H, W, C] composited payload [N, C] over nothing, in groups of the package's channels."""
    count = _channels(points.device)
    rasterizer = _rasterizer(width, height, count, points.device)
    planes = []
    for group in payload.split(count, 1):
        filled = torch.nn.functional.pad(group, (0, count - group.shape[1]))
        drawn, *_ = rasterizer(
            means3D=points,
            means2D=torch.zeros_like(points),
            opacities=opacities[:, None],
            colors_precomp=filled.contiguous(),
            cov3D_precomp=covariances,
        )
        planes.append(drawn[: group.shape[1]])
    return torch.cat(planes).permute(1, 2, 0)


@cache
def _channels(device: torch.device) -> int:
    """How many channels the installed package draws: those of an image of no Gaussians.

    It reads that many of every Gaussian, whatever it is given.
    """
    nothing = torch.zeros(0, 3, device=device)
    image, *_ = _rasterizer(1, 1, 3, device)(
        means3D=nothing,
        means2D=nothing,
        opacities=nothing[:, :1],
        colors_precomp=nothing,
        cov3D_precomp=nothing.new_zeros(0, 6),
    )
    if image.ndim != 3 or image.shape[1:] != (1, 1) or not len(image):
        raise ParameterError(
            f"This build of {_PACKAGE} draws an image of 1x1 px with shape {list(image.shape)}; "
            "expected channels x 1 x 1. Install Inria's own, or choose another backend."
        )
    return len(image)


def _rasterizer(width: int, height: int, channels: int, device: torch.device) -> torch.nn.Module:
    package = import_module(_PACKAGE)
    # Row vectors times matrix; the pixel is ((x / w + 1) W - 1) / 2 with the first one's centre at
    # 0. Half the field of view has the tangent 1 in the image frame.
    clip = torch.eye(4, device=device)
    clip[2, 3], clip[3, 3] = 1.0, 0.0
    settings = dict(
        image_height=height,
        image_width=width,
        tanfovx=1.0,
        tanfovy=1.0,
        bg=torch.zeros(channels, device=device),
        scale_modifier=1.0,
        viewmatrix=torch.eye(4, device=device),
        projmatrix=clip,
        sh_degree=0,
        campos=torch.zeros(3, device=device),
        prefiltered=False,
        debug=False,
    )
    if "antialiasing" in package.GaussianRasterizationSettings._fields:
        settings["antialiasing"] = False
    return package.GaussianRasterizer(package.GaussianRasterizationSettings(**settings))
