"""Which triangle each pixel sees: projection, choice of backend, z-buffer."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gha_core.backends import Backend, Backends
from gha_core.mesh_rasterisation import kaolin, native, twin

Matrix = Tensor | NDArray[np.floating]

NEAR = 0.01  # m; a triangle that comes nearer to the camera plane is left out

BACKENDS: Backends[ModuleType] = Backends(
    "mesh rasterisation",
    (
        Backend(
            "native",
            native,
            device="cpu",
            missing=native.missing,
            cost="with the same pictures but some tens of times as slowly",
        ),
        Backend("kaolin", kaolin, device="cuda", missing=kaolin.missing),
        Backend("twin", twin),
    ),
)


@dataclass(frozen=True)
class Fragments:
    """What each pixel centre of an image sees.

    Attributes:
        face_index: [H, W] int64, -1 where nothing is.
        barycentric: [H, W, 3] float32, perspective-correct, zero where nothing is.
        depth: [H, W] float32 along the optical axis, metres, zero where nothing is.
    """

    face_index: Tensor
    barycentric: Tensor
    depth: Tensor

    @property
    def mask(self) -> Tensor:
        """[H, W] bool: covered."""
        return self.face_index >= 0


def rasterize(
    vertices: Tensor,
    faces: Tensor,
    K: Matrix,
    w2c: Matrix,
    width: int,
    height: int,
    backend: str = "auto",
    near: float = NEAR,
) -> Fragments:
    """Z-buffer of a triangle mesh; both sides of every face are seen. No gradients.

    Triangles that reach nearer than ``near`` metres (or behind the camera) and those without area
    are left out.

    Args:
        vertices: [V, 3] world, metres.
        faces: [F, 3] int64.
        K: [3, 3] intrinsics, pixels, first pixel centre at (0.5, 0.5).
        w2c: [4, 4] OpenCV world to camera.
        backend: a name of ``BACKENDS``, or "auto": the preferred one that can.
    """
    kernels = BACKENDS.choose(backend, vertices.device).kernels
    if len(faces) and (int(faces.min()) < 0 or int(faces.max()) >= len(vertices)):
        raise ValueError(f"faces point outside the {len(vertices)} vertices")
    with torch.no_grad():
        screen = to_screen(vertices.detach().double(), K, w2c)
        return Fragments(*kernels.rasterize_triangles(screen, faces, near, width, height))


def to_screen(vertices: Tensor, K: Matrix, w2c: Matrix) -> Tensor:
    """[..., 3] world points to [..., 3]: x and y in pixels, depth in metres. Differentiable.

    Points in the camera plane give infinities; mask them by their depth.
    """
    K, w2c = torch.as_tensor(K).to(vertices), torch.as_tensor(w2c).to(vertices)
    # Coordinates first: products with long rows are the fast ones.
    local = w2c[:3, :3] @ vertices.mT + w2c[:3, 3:]
    depth = local[..., 2:, :]
    return torch.cat([K[:2] @ (local / depth), depth], -2).mT
