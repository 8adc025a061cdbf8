"""Stand-ins for the CUDA packages: their signatures and image models, computed by PyTorch.

gsplat's image model is the twin's. Those of diff_gaussian_rasterization and kaolin are written down
here a second time, in the packages' own conventions (row vectors times matrices, pixels from 0, y
upwards), so that a mistake in how we talk to them shows.
"""

from __future__ import annotations

import math
import sys
from collections import namedtuple
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gha_core.splatting import diff_gaussian_rasterization, projection, twin
from gha_core.splatting.scene import Scene

TILE = 16


def install(patch: pytest.MonkeyPatch, name: str, **contents: Any) -> ModuleType:
    """Put a module of that name where imports look first."""
    for end in [i for i, letter in enumerate(name) if letter == "."] + [len(name)]:
        module = ModuleType(name[:end])
        module.__spec__ = ModuleSpec(name[:end], None, is_package=True)
        patch.setitem(sys.modules, name[:end], module)
    for key, value in contents.items():
        setattr(module, key, value)
    return module


def remove(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Make it look as if the packages were not installed."""
    for name in names:
        patch.setitem(sys.modules, name, None)


# gsplat -----------------------------------------------------------------------------------------


def install_gsplat(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Returns a list to which every call adds what it was asked for."""
    calls: list[dict[str, Any]] = []

    def rasterization(
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
        near_plane: float = 0.01,
        far_plane: float = 1e10,
        radius_clip: float = 0.0,
        eps2d: float = 0.3,
        sh_degree: int | None = None,
        packed: bool = True,
        tile_size: int = 16,
        backgrounds: Tensor | None = None,
        render_mode: str = "RGB",
        sparse_grad: bool = False,
        absgrad: bool = False,
        rasterize_mode: str = "classic",
        channel_chunk: int = 32,
        distributed: bool = False,
        camera_model: str = "pinhole",
        segmented: bool = False,
        covars: Tensor | None = None,
        with_ut: bool = False,
        with_eval3d: bool = False,
        radial_coeffs: Tensor | None = None,
        tangential_coeffs: Tensor | None = None,
        thin_prism_coeffs: Tensor | None = None,
        ftheta_coeffs: Any = None,
        rolling_shutter: Any = None,
        viewmats_rs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        count, views = len(means), len(viewmats)
        assert count, "integer division by zero in the real one"
        assert quats.shape == (count, 4)
        assert scales.shape == (count, 3)
        assert opacities.shape == (count,)
        assert colors.shape[:-1] == (count,)
        assert viewmats.shape == (views, 4, 4)
        assert Ks.shape == (views, 3, 3)
        assert backgrounds is not None
        assert backgrounds.shape == (views, colors.shape[-1])
        assert (near_plane, eps2d) == (projection.NEAR, projection.DILATION)
        assert (render_mode, rasterize_mode, sh_degree) == ("RGB+D", "classic", None)
        for tensor in (means, quats, scales, opacities, colors, viewmats, Ks, backgrounds):
            assert tensor.dtype == torch.float32
            assert tensor.isfinite().all()
        assert (quats.norm(dim=-1) > 0).all()
        calls.append({"packed": packed, "channel_chunk": channel_chunk})
        lens = Ks.detach().clone()  # it has no gradient of them, and knows no skew
        lens[:, 0, 1] = 0
        nothing = torch.zeros(colors.shape[-1])
        image, alpha, depth = twin.render(
            Scene(means, quats, scales, opacities, colors, nothing, lens, viewmats, width, height)
        )
        image = image + (1 - alpha[..., None]) * backgrounds[:, None, None]
        return torch.cat([image, depth[..., None]], -1), alpha[..., None], {}

    install(patch, "gsplat", rasterization=rasterization)
    return calls


# diff_gaussian_rasterization --------------------------------------------------------------------


class Settings(NamedTuple):
    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool
    debug: bool


NewerSettings = namedtuple("NewerSettings", (*Settings._fields, "antialiasing"))


def install_inria(patch: pytest.MonkeyPatch, channels: int, newer: bool = False) -> list[int]:
    """A build of so many channels; returns a list to which every call adds how many points."""
    calls: list[int] = []

    class GaussianRasterizer(torch.nn.Module):
        def __init__(self, raster_settings: Any) -> None:
            super().__init__()
            self.raster_settings = raster_settings

        def forward(
            self,
            means3D: Tensor,
            means2D: Tensor,
            opacities: Tensor,
            shs: Tensor | None = None,
            colors_precomp: Tensor | None = None,
            scales: Tensor | None = None,
            rotations: Tensor | None = None,
            cov3D_precomp: Tensor | None = None,
        ) -> tuple[Tensor, ...]:
            s = self.raster_settings
            assert shs is None
            assert scales is None
            assert rotations is None
            assert colors_precomp is not None
            assert cov3D_precomp is not None
            assert not s.prefiltered
            assert not s.debug
            assert not getattr(s, "antialiasing", False)
            count = len(means3D)
            calls.append(count)
            radii = torch.zeros(count, dtype=torch.int32)
            image = torch.zeros(channels, s.image_height, s.image_width)
            if count:  # it looks at no pointer of no points
                assert means2D.shape == (count, 3)
                assert opacities.shape == (count, 1)
                assert colors_precomp.shape == (count, channels), "reads beyond the end"
                assert cov3D_precomp.shape == (count, 6)
                assert s.bg.shape == (channels,)
                image = inria_image(s, means3D, opacities[:, 0], colors_precomp, cov3D_precomp)
            return (image, radii, torch.zeros_like(image[:1])) if newer else (image, radii)

    install(
        patch,
        "diff_gaussian_rasterization",
        GaussianRasterizer=GaussianRasterizer,
        GaussianRasterizationSettings=NewerSettings if newer else Settings,
    )
    diff_gaussian_rasterization._channels.cache_clear()
    return calls


def inria_image(s: Any, points: Tensor, opacities: Tensor, colours: Tensor, cov: Tensor) -> Tensor:
    """[C, H, W] as the CUDA kernels of the package draw it. No gradient to the settings."""
    view, full = s.viewmatrix.detach(), s.projmatrix.detach()
    width, height = s.image_width, s.image_height
    homogeneous = torch.cat([points, torch.ones_like(points[:, :1])], 1)
    x, y, z = (homogeneous @ view)[:, :3].unbind(1)
    clip = homogeneous @ full
    ndc = clip[:, :2] / (clip[:, 3:] + 1e-7)
    size = torch.tensor([width, height])
    centre = ((ndc + 1) * size - 1) / 2

    focal_x, focal_y = width / (2 * s.tanfovx), height / (2 * s.tanfovy)
    limit_x, limit_y = 1.3 * s.tanfovx, 1.3 * s.tanfovy
    in_x, in_y = (x / z).clamp(-limit_x, limit_x), (y / z).clamp(-limit_y, limit_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal_x / z, zero, -focal_x * in_x / z], 1),
            torch.stack([zero, focal_y / z, -focal_y * in_y / z], 1),
        ],
        1,
    )
    xx, xy, xz, yy, yz, zz = cov.unbind(1)
    sigma = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], 1).reshape(-1, 3, 3)
    through = jacobian @ view[:3, :3].T
    flat = through @ sigma @ through.transpose(1, 2) + 0.3 * torch.eye(2)
    determinant = flat[:, 0, 0] * flat[:, 1, 1] - flat[:, 0, 1] ** 2
    middle = (flat[:, 0, 0] + flat[:, 1, 1]) / 2
    largest = middle + (middle**2 - determinant).clamp_min(0.1).sqrt()
    radius = (3 * largest.sqrt()).ceil().detach()[:, None]
    last = (size + TILE - 1) // TILE
    first_tile = ((centre - radius) / TILE).trunc().clamp_min(0).minimum(last)
    end_tile = ((centre + radius + TILE - 1) / TILE).trunc().clamp_min(0).minimum(last)

    order = torch.where(z > 0.2, z, math.inf).detach().argsort(stable=True)
    order = order[: int((z > 0.2).sum())]
    if not len(order):
        return (s.bg + 0 * (points.sum() + colours.sum()))[:, None, None].expand(-1, height, width)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixel = torch.stack([columns, rows], -1).reshape(-1, 1, 2)
    tile = pixel // TILE
    reached = ((tile >= first_tile[order]) & (tile < end_tile[order])).all(-1)
    dx, dy = (centre[order] - pixel).unbind(-1)
    a, b, c = flat[order, 1, 1], -flat[order, 0, 1], flat[order, 0, 0]
    power = -0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy) / determinant[order]
    alpha = opacities[order] * power.exp()
    alpha = alpha - (alpha - 0.99).clamp_min(0).detach()  # the gradient goes on
    alpha = torch.where((alpha >= 1 / 255) & reached, alpha, 0.0)
    alpha = torch.where((1 - alpha).cumprod(1) >= 1e-4, alpha, 0.0)
    after = (1 - alpha).cumprod(1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    image = (alpha * before) @ colours[order] + after[:, -1:] * s.bg.detach()
    return image.T.reshape(-1, height, width)


# kaolin -----------------------------------------------------------------------------------------


def install_kaolin(patch: pytest.MonkeyPatch) -> None:
    install(patch, "kaolin.render.mesh", dibr_rasterization=dibr_rasterization)


def dibr_rasterization(
    height: int,
    width: int,
    face_vertices_z: Tensor,
    face_vertices_image: Tensor,
    face_features: Tensor,
    face_normals_z: Tensor,
    sigmainv: float = 7000,
    boxlen: float = 0.02,
    knum: int = 30,
    multiplier: float | None = None,
    eps: float | None = None,
    rast_backend: str = "cuda",
) -> tuple[Tensor, Tensor, Tensor]:
    """Image coordinates of -1..1 with y upwards; depth is linear in the image, the largest wins."""
    batch, count = face_vertices_z.shape[:2]
    assert batch == 1
    assert face_vertices_image.shape == (1, count, 3, 2)
    assert face_features.shape[:3] == (1, count, 3)
    assert face_normals_z.shape == (1, count)
    assert face_vertices_image.isfinite().all()
    x = (2 * torch.arange(width) + 1 - width) / width
    y = (height - 2 * torch.arange(height) - 1) / height
    a, b, c = face_vertices_image[0].unbind(1)

    def cross(one: Tensor, two: Tensor) -> Tensor:
        along_x = (two[:, 0, None, None] - x) * (one[:, 1, None, None] - y[:, None])
        return (one[:, 0, None, None] - x) * (two[:, 1, None, None] - y[:, None]) - along_x

    weights = torch.stack([cross(b, c), cross(c, a), cross(a, b)])  # [3, F, H, W]
    total = weights.sum(0)
    weights = weights / (total + torch.copysign(torch.tensor(1e-8), total))
    depth = (weights * face_vertices_z[0].T[:, :, None, None]).sum(0)
    drawn = (weights >= 0).all(0) & (face_normals_z[0] >= 0)[:, None, None]
    depth = torch.where(drawn, depth, -math.inf)
    face = torch.where(drawn.any(0), depth.argmax(0), -1)
    features = torch.zeros(1, height, width, face_features.shape[-1])
    return features, (face >= 0).float()[None], face[None]
