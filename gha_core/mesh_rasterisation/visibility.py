"""Which triangle each pixel sees: projection, choice of backend, z-buffer."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gha_core.errors import ParameterError
from gha_core.mesh_rasterisation import native, twin

Matrix = Tensor | NDArray[np.floating]

NEAR = 0.01  # m; a triangle that comes nearer to the camera plane is left out


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
        backend: "native", "twin", or "auto" (native where it can).
    """
    kernels = choose_backend(backend, vertices.device)
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
    local = vertices @ w2c[:3, :3].T + w2c[:3, 3]
    depth = local[..., 2:]
    return torch.cat([(local / depth @ K.T)[..., :2], depth], -1)


def choose_backend(backend: str, device: torch.device) -> ModuleType:
    """The module that holds the kernels.

    Raises:
        ParameterError: an unknown backend, or the native one where it cannot work.
    """
    if backend not in ("auto", "native", "twin"):
        raise ParameterError(f"Unknown mesh backend {backend!r}; choose auto, native or twin.")
    possible = native.available() and device.type == "cpu"
    if backend == "native" and not possible:
        raise ParameterError(
            "The native mesh kernels need tensors on the CPU and an installation with a C++ "
            f"compiler (tensors are on {device}, kernels installed: {native.available()})."
        )
    return native if possible and backend != "twin" else twin
