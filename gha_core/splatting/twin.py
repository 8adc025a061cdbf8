"""The specification of compositing, in plain PyTorch: slow, differentiable in any float type.

Per pixel, over the visible Gaussians from near to far:

    q     = (p - m)ᵀ conic (p - m)                         p: pixel centre, m: projected mean
    alpha = min(MAX_ALPHA, opacity exp(-q / 2)), dropped where below MIN_ALPHA
    stop before the Gaussian that would bring T (1 - alpha) below MIN_TRANSMITTANCE
    out  += T alpha feature;   T *= 1 - alpha              T starts at 1

and at the end ``out += T background`` and the pixel's alpha is ``1 - T`` (Kerbl et al., 3D Gaussian
splatting, 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gha_core.splatting.projection import (
    MAX_ALPHA,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    Projected,
    project,
)
from gha_core.splatting.scene import Scene

_TILE = 16  # px; only bounds memory, the image does not depend on it

Planes = tuple[Tensor, Tensor, Tensor]


def render(scene: Scene) -> Planes:
    """V views of N Gaussians; the signature of every backend.

    Returns:
        features [V, H, W, C], alpha [V, H, W], depth [V, H, W] (sum of weight x depth).
    """
    return composite(project(scene), scene)


def composite(projected: Projected, scene: Scene) -> Planes:
    """Composite the views of projected Gaussians, with the scene's opacities and features; returns
    as :func:`render`."""
    views = [_view(projected, scene, v) for v in range(len(projected.depths))]
    if not views:
        empty = scene.features.new_zeros(0, scene.height, scene.width)
        return empty[..., None].expand(-1, -1, -1, scene.features.shape[1]), empty, empty
    image, alpha, depth = (torch.stack(planes) for planes in zip(*views, strict=True))
    return image, alpha, depth


def _view(projected: Projected, scene: Scene, view: int) -> Planes:
    depths, visible = projected.depths[view], projected.visible[view]
    order = torch.where(visible, depths.detach(), torch.inf).sort(stable=True).indices
    order = order[: int(visible.sum())]
    means2d, conics = projected.means2d[view, order], projected.conics[view, order]
    opacities = scene.opacities[order]
    payload = torch.cat([scene.features[order], depths[order, None]], -1)
    low, high = footprints(means2d.detach(), conics.detach(), opacities.detach())

    rows = []
    for top in range(0, scene.height, _TILE):
        bottom, row = min(top + _TILE, scene.height), []
        for left in range(0, scene.width, _TILE):
            right = min(left + _TILE, scene.width)
            ys = torch.arange(top, bottom, device=means2d.device, dtype=means2d.dtype) + 0.5
            xs = torch.arange(left, right, device=means2d.device, dtype=means2d.dtype) + 0.5
            pixels = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2)
            near = (high >= pixels[0]).all(-1) & (low <= pixels[-1]).all(-1)
            tile = _pixels(pixels, means2d[near], conics[near], opacities[near], payload[near])
            row.append(tile.reshape(bottom - top, right - left, -1))
        rows.append(torch.cat(row, 1))
    image = torch.cat(rows, 0)
    transmittance, depth = image[..., -1], image[..., -2]
    through = transmittance[..., None] * scene.background
    return image[..., :-2] + through, 1 - transmittance, depth


def _pixels(
    pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, payload: Tensor
) -> Tensor:
    """[P, C + 1] composited payload of P pixels [P, 2] and, as last column, what shines through."""
    dx, dy = (pixels[:, None] - means2d).unbind(-1)
    a, b, c = conics.unbind(-1)
    q = (a * dx * dx + 2 * b * dx * dy + c * dy * dy).clamp_min(0)  # rounding, far from the mean
    alpha = (opacities * torch.exp(-0.5 * q)).clamp_max(MAX_ALPHA)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0.0)
    after = torch.cumprod(1 - alpha, -1)
    # `after` only falls, so once it is too small it stays so: nothing behind is counted.
    alpha = torch.where(after >= MIN_TRANSMITTANCE, alpha, 0.0)
    after = torch.cumprod(1 - alpha, -1)
    after = torch.cat([after.new_ones(len(pixels), 1), after], -1)
    return torch.cat([(alpha * after[:, :-1]) @ payload, after[:, -1:]], -1)


def footprints(means2d: Tensor, conics: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 2] corners of the boxes outside of which alpha is below MIN_ALPHA, one pixel to spare."""
    a, b, c = conics.unbind(-1)
    limit = 2 * torch.log(opacities / MIN_ALPHA).clamp_min(0)
    determinant = (a * c - b * b).clamp_min(torch.finfo(a.dtype).tiny)
    half = torch.stack([limit * c / determinant, limit * a / determinant], -1).sqrt() * 1.01 + 1
    return means2d - half, means2d + half
