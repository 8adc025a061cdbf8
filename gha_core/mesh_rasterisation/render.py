"""Differentiable pictures of a mesh: interpolated attributes, depth and a soft silhouette.

Which triangle a pixel sees, and which edge is nearest, come from the kernels and have no gradient.
Everything that follows from these choices is PyTorch: barycentric coordinates, depth and distances
carry gradients to the vertices.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from gha_core.mesh_rasterisation.twin import squared_distance
from gha_core.mesh_rasterisation.visibility import (
    BACKENDS,
    NEAR,
    Fragments,
    Matrix,
    rasterize,
    to_screen,
)


@dataclass(frozen=True)
class MeshImage:
    """A rendered mesh.

    Attributes:
        attributes: [H, W, A], zero where nothing is. Its hard edge has no gradient.
        silhouette: [H, W] in 0..1, soft: see :func:`render_mesh`.
        depth: [H, W] metres along the optical axis, zero where nothing is.
        mask: [H, W] bool, pixels whose centre is covered.
    """

    attributes: Tensor
    silhouette: Tensor
    depth: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Edges:
    """The edges of a triangle mesh.

    Attributes:
        vertices: [E, 2] int64.
        faces: [E, 2] int64, the faces on both sides; the second is -1 at a border.
    """

    vertices: Tensor
    faces: Tensor


def mesh_edges(faces: Tensor) -> Edges:
    """Edges of ``faces`` [F, 3]; of more than two faces at an edge, the first two are kept."""
    one, two = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).unbind(1)
    ends = torch.stack([torch.minimum(one, two), torch.maximum(one, two)], 1)
    owner = torch.arange(len(faces), device=faces.device).repeat(3)
    if not len(faces):
        return Edges(ends, ends)
    key, order = (ends[:, 0] * (int(ends.max()) + 1) + ends[:, 1]).sort(stable=True)
    ends, owner = ends[order], owner[order]
    first = torch.ones(len(key), dtype=torch.bool, device=faces.device)
    first[1:] = key[1:] != key[:-1]
    start = first.nonzero()[:, 0]
    following = (start + 1).clamp(max=len(key) - 1)
    shared = (start + 1 < len(key)) & (key[following] == key[start])
    second = torch.where(shared, owner[following], -1)
    return Edges(ends[start], torch.stack([owner[start], second], 1))


def render_mesh(
    vertices: Tensor,
    faces: Tensor,
    attributes: Tensor,
    K: Matrix,
    w2c: Matrix,
    width: int,
    height: int,
    softness: float = 2.0,
    edges: Edges | None = None,
    backend: str = "auto",
) -> MeshImage:
    """Render interpolated attributes and a silhouette with gradients.

    The silhouette is 0.5 on the outline, and rises smoothly (smoothstep of the signed distance to
    the nearest outline edge) from 0 to 1 within ``softness`` pixels to both sides. Outline edges
    are those between a front and a back face, or of a single face, that border on uncovered pixels.

    Args:
        vertices: [V, 3] world, metres.
        faces: [F, 3] int64.
        attributes: [V, A].
        K, w2c: [3, 3] intrinsics in pixels and [4, 4] OpenCV world to camera.
        softness: half width of the soft border, pixels; 0 gives a hard mask without gradients.
        edges: ``mesh_edges(faces)``, if it is known already.

    Warning:
        A mesh that is smaller than a pixel, or wholly outside the image, gives no gradient.
    """
    fragments = rasterize(vertices, faces, K, w2c, width, height, backend)
    screen = to_screen(vertices, K, w2c)
    covered = fragments.mask.flatten().nonzero()[:, 0]
    face = fragments.face_index.flatten()[covered]
    corner = faces[face].T.flatten()  # corners, and coordinates, each in a row of their own
    x, y, z = (row.index_select(0, corner).reshape(3, -1) for row in screen.unbind(1))
    weighted = _areas(x - (covered % width + 0.5), y - (covered // width + 0.5)) / z
    weights = weighted / weighted.sum(0)
    values = attributes.index_select(0, corner).reshape(3, -1, attributes.shape[1])
    interpolated = (weights[..., None] * values).sum(0)

    canvas = attributes.new_zeros(height * width, attributes.shape[1])
    depth = vertices.new_zeros(height * width)
    silhouette = fragments.mask.to(vertices.dtype)
    if softness > 0:
        outline = _outline(screen, faces, edges or mesh_edges(faces), fragments)
        kernels = BACKENDS.choose(backend, vertices.device).kernels
        silhouette = _soften(silhouette, outline, softness, kernels)
    return MeshImage(
        canvas.index_copy(0, covered, interpolated).reshape(height, width, -1),
        silhouette,
        depth.index_copy(0, covered, (weights * z).sum(0)).reshape(height, width),
        fragments.mask,
    )


def _areas(x: Tensor, y: Tensor) -> Tensor:
    """[3, P] twice the area that each edge of triangles with corners [3, P] spans with the origin:
    barycentric coordinates of the origin but for a factor."""
    (ax, bx, cx), (ay, by, cy) = x, y
    return torch.stack([bx * cy - by * cx, cx * ay - cy * ax, ax * by - ay * bx])


def _outline(screen: Tensor, faces: Tensor, edges: Edges, fragments: Fragments) -> Tensor:
    """[S, 4] the outline's segments, x y x y in pixels, with gradient."""
    with torch.no_grad():
        x, y, depth = screen.T.contiguous()
        a, b, c = faces.T.contiguous()
        beyond = depth > NEAR
        ahead = beyond[a] & beyond[b] & beyond[c]
        area = (x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a])
        front = ahead & (area > 0)
        one, two = edges.faces.unbind(1)
        other = torch.where(two >= 0, front[two], ~front[one])
        candidate = ((front[one] != other) & ahead[one]).nonzero()[:, 0]
        ends = edges.vertices[candidate]

        # Contours inside the picture (a nose before its cheek) are no outline: keep what touches
        # an uncovered pixel.
        open_pixels = (~fragments.mask).float()[None, None]
        near_open = F.max_pool2d(open_pixels, 3, stride=1, padding=1)[0, 0] > 0
        height, width = near_open.shape
        middle = screen[ends][..., :2].mean(1)
        column = middle[:, 0].clamp(0, width - 1).nan_to_num().long()
        row = middle[:, 1].clamp(0, height - 1).nan_to_num().long()
        ends = ends[near_open[row, column]]
    return screen.index_select(0, ends.flatten())[:, :2].reshape(-1, 4)


def _soften(hard: Tensor, outline: Tensor, softness: float, kernels: ModuleType) -> Tensor:
    height, width = hard.shape
    nearest = kernels.nearest_segments(outline.detach().double(), softness, width, height)
    nearest = nearest.flatten()
    touched = (nearest >= 0).nonzero()[:, 0]
    pixel = torch.stack([touched % width, touched // width], -1).to(hard) + 0.5
    segment = outline.index_select(0, nearest[touched])
    distance = (squared_distance(segment, pixel) + 1e-12).sqrt()
    side = 2 * hard.flatten()[touched] - 1
    ramp = (0.5 + side * distance / (2 * softness)).clamp(0, 1)
    soft = ramp * ramp * (3 - 2 * ramp)
    return hard.flatten().index_copy(0, touched, soft).reshape(height, width)
