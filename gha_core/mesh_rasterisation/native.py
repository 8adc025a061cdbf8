"""The C++ kernels behind the signatures of :mod:`gha_core.mesh_rasterisation.twin`."""

from __future__ import annotations

import torch
from torch import Tensor

from gha_core.backends import no_compiler
from gha_core.mesh_rasterisation.twin import Visible

try:
    from gha_core import _native  # type: ignore[attr-defined]
except ImportError:  # installed without a C++ compiler
    _native = None


def missing() -> str | None:
    return no_compiler(_native)


def rasterize_triangles(
    screen: Tensor, faces: Tensor, near: float, width: int, height: int
) -> Visible:
    face_index = torch.full((height, width), -1, dtype=torch.int64)
    barycentric = torch.zeros(height, width, 3)
    depth = torch.zeros(height, width)
    _native.rasterize_triangles(
        screen.contiguous().numpy(),
        faces.contiguous().numpy(),
        near,
        face_index.numpy(),
        barycentric.numpy(),
        depth.numpy(),
    )
    return face_index, barycentric, depth


def nearest_segments(segments: Tensor, radius: float, width: int, height: int) -> Tensor:
    nearest = torch.full((height, width), -1, dtype=torch.int64)
    _native.nearest_segments(segments.contiguous().numpy(), radius, nearest.numpy())
    return nearest
