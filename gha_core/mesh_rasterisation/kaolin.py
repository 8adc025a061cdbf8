"""Visibility by kaolin's DIB-R rasteriser (https://github.com/NVIDIAGameWorks/kaolin, Apache-2.0),
on CUDA.

Only which face a pixel sees is taken from it; weights and depth follow in float64. Its image model
differs from ours:

- it interpolates depth linearly in the image, which is right for the inverse of depth alone: that
  is what it is given as its z, of which it takes the largest
- it decides in float32, so a pixel centre on an edge may go to either side, and the nearer of two
  almost equally near faces may be the other one
- its soft mask falls off as exp(-distance²) outside of the mesh and has no gradient inside; ours
  is another function, of the outline, and is computed as by the twin
"""

from __future__ import annotations

import torch
from torch import Tensor

from gha_core.backends import installed
from gha_core.mesh_rasterisation import twin

nearest_segments = twin.nearest_segments


def missing() -> str | None:
    if installed("kaolin.render.mesh"):
        return None
    return (
        "is not installed: see https://kaolin.readthedocs.io for the wheel of your torch and CUDA "
        "(the kaolin on PyPI is empty)"
    )


def rasterize_triangles(
    screen: Tensor, faces: Tensor, near: float, width: int, height: int
) -> twin.Visible:
    """As :func:`gha_core.mesh_rasterisation.twin.rasterize_triangles`."""
    usable = twin.usable_faces(screen, faces, near)
    kept = usable.nonzero()[:, 0]  # infinities, too, must not reach it
    if not len(kept):
        return twin.rasterize_triangles(screen, faces[:0], near, width, height)
    from kaolin.render.mesh import dibr_rasterization

    corners = screen[faces[kept]]
    size = torch.tensor([width, -height], dtype=screen.dtype, device=screen.device)
    upwards = torch.tensor([-1.0, 1.0], dtype=screen.dtype, device=screen.device)
    image = (2 * corners[..., :2] / size + upwards).float()
    inverse_depth = (1 / corners[..., 2]).float()
    # The least of a soft mask that it can be asked for: one face per pixel, none beyond its box.
    _, _, seen = dibr_rasterization(
        height, width, inverse_depth[None], image[None], image.new_zeros(1, len(kept), 3, 1),
        image.new_ones(1, len(kept)), boxlen=0.0, knum=1,
    )  # fmt: skip
    return _resolve(seen[0], kept, corners, width, height)


def _resolve(seen: Tensor, kept: Tensor, corners: Tensor, width: int, height: int) -> twin.Visible:
    """Faces, weights and depth from the seen [H, W] places in ``kept``."""
    pixel = (seen >= 0).flatten().nonzero()[:, 0]
    place = seen.flatten()[pixel]
    centre = torch.stack([pixel % width, pixel // width], -1) + 0.5
    flat = twin.screen_barycentric(corners[place][..., :2], centre.to(corners))
    weighted = flat.clamp_min(0) / corners[place][..., 2]
    total = weighted.sum(-1)

    face_index = torch.full((height * width,), -1, dtype=torch.int64, device=seen.device)
    barycentric = torch.zeros(height * width, 3, device=seen.device)
    depth = torch.zeros(height * width, device=seen.device)
    face_index[pixel] = kept[place]
    barycentric[pixel] = (weighted / total[:, None]).float()
    depth[pixel] = (flat.clamp_min(0).sum(-1) / total).float()
    return (
        face_index.reshape(height, width),
        barycentric.reshape(height, width, 3),
        depth.reshape(height, width),
    )
