"""The finished neutral mesh: tidying, export, pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from gha_core.cameras import Camera
from gha_core.mesh_rasterisation import rasterize, render_mesh


@dataclass(frozen=True)
class Component:
    """One connected part of a mesh.

    Attributes:
        vertices: [n] int64, its vertices in the old numbering.
        faces: [f, 3] int64 in the new numbering.
        parts: number of parts that the mesh had.
    """

    vertices: Tensor
    faces: Tensor
    parts: int


def largest_component(faces: Tensor, vertices: int) -> Component:
    """The part of ``faces`` [F, 3] with most vertices: floaters and inner bubbles go."""
    first, second = faces[:, [0, 1, 2]].flatten().numpy(), faces[:, [1, 2, 0]].flatten().numpy()
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(vertices, vertices))
    _, labels = connected_components(graph, directed=False)
    used = np.unique(labels[faces[:, 0].numpy()]) if len(faces) else np.zeros(0, int)
    sizes = np.bincount(labels, minlength=1)
    kept = labels == used[np.argmax(sizes[used])] if len(used) else np.zeros(vertices, bool)
    number = torch.from_numpy(np.cumsum(kept) - 1)
    inside = torch.from_numpy(kept)
    return Component(inside.nonzero()[:, 0], number[faces[inside[faces[:, 0]]]], len(used))


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V, 3] unit normals, area-weighted over the faces around each vertex."""
    a, b, c = vertices[faces].unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices).index_add(0, faces.flatten(), normal.repeat_interleave(3, 0))
    return torch.nn.functional.normalize(total, dim=1)


def write_ply(path: Path, vertices: Tensor, faces: Tensor, colours: Tensor) -> None:
    """Binary PLY; vertices [V, 3], faces [F, 3], colours [V, 3] sRGB in 0..1 stored as 8 bits."""
    levels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    names = [(axis, "f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    points = np.empty(len(vertices), dtype=names)
    for column, axis in enumerate("xyz"):
        points[axis] = vertices[:, column].numpy()
    for column, name in enumerate(("red", "green", "blue")):
        points[name] = levels[:, column]
    triangles = np.empty(len(faces), dtype=[("vertex_indices", "i4", (3,))])
    triangles["vertex_indices"] = faces.numpy()
    elements = [PlyElement.describe(points, "vertex"), PlyElement.describe(triangles, "face")]
    PlyData(elements, text=False, byte_order="<").write(str(path))


def coloured_picture(
    vertices: Tensor, faces: Tensor, colours: Tensor, camera: Camera
) -> NDArray[np.uint8]:
    """[H, W, 3] the mesh (world, metres) in its vertex colours [V, 3] on white."""
    image = render_mesh(
        vertices, faces, colours, camera.K, camera.w2c, camera.width, camera.height, 0.0
    )
    return _on_white(image.attributes, image.mask)


def shaded_picture(vertices: Tensor, faces: Tensor, camera: Camera) -> NDArray[np.uint8]:
    """[H, W, 3] the mesh (world, metres) as gray clay, lit from the camera's upper left."""
    seen = rasterize(vertices, faces, camera.K, camera.w2c, camera.width, camera.height)
    light = torch.tensor(camera.w2c[:3, :3].T @ np.array([-0.45, -0.6, -0.8])).float()
    light = light / light.norm()
    normals = vertex_normals(vertices, faces)[faces[seen.face_index.clamp_min(0)]]
    normal = torch.nn.functional.normalize((normals * seen.barycentric[..., None]).sum(2), dim=-1)
    brightness = 0.15 + 0.75 * (normal @ light).clamp_min(0)
    return _on_white(brightness[..., None].expand(-1, -1, 3), seen.mask)


def _on_white(colours: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    image = torch.where(mask[..., None], colours, 1.0)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
