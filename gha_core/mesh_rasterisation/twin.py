"""The specification of the mesh kernels in readable PyTorch: exact, on any device, slower."""

from __future__ import annotations

import torch
from torch import Tensor

Visible = tuple[Tensor, Tensor, Tensor]


def rasterize_triangles(
    screen: Tensor, faces: Tensor, near: float, width: int, height: int
) -> Visible:
    """The nearest triangle behind every pixel centre.

    A triangle covers a pixel if the centre lies inside or on an edge, whichever way it is turned.
    Of equally near ones the lowest face index wins. Triangles with a corner nearer than ``near``
    or without area are left out.

    Args:
        screen: [V, 3] float64: x and y in pixels, depth along the optical axis.
        faces: [F, 3] int64.

    Returns:
        face index [H, W] int64, -1 where nothing is; perspective-correct barycentric coordinates
        [H, W, 3] and depth [H, W] float32, 0 where nothing is.
    """
    face, column, row = _candidates(screen, faces, near, width, height)
    corners = screen[faces[face]]  # [C, 3, 3]
    pixel = torch.stack([column, row], -1) + 0.5
    flat = screen_barycentric(corners[..., :2], pixel)
    inside = (flat >= 0).all(-1)
    face, flat, corners = face[inside], flat[inside], corners[inside]
    index = row[inside] * width + column[inside]

    weighted = flat / corners[..., 2]
    inverse_depth = weighted.sum(-1)
    nearest = screen.new_zeros(height * width)
    nearest = nearest.scatter_reduce(0, index, inverse_depth, "amax")
    front = inverse_depth == nearest[index]
    face, index, weighted = face[front], index[front], weighted[front]

    winner = torch.full_like(nearest, len(faces), dtype=torch.int64)
    winner = winner.scatter_reduce(0, index, face, "amin")
    chosen = face == winner[index]
    index, weighted = index[chosen], weighted[chosen]

    face_index = torch.where(winner < len(faces), winner, -1)
    total = weighted.sum(-1)
    barycentric = torch.zeros(height * width, 3, device=screen.device)
    barycentric[index] = (weighted / total[:, None]).float()
    depth = torch.zeros(height * width, device=screen.device)
    depth[index] = (1 / total).float()
    return (
        face_index.reshape(height, width),
        barycentric.reshape(height, width, 3),
        depth.reshape(height, width),
    )


def usable_faces(screen: Tensor, faces: Tensor, near: float) -> Tensor:
    """[F] bool: all corners lie beyond ``near``, and the face has an area on the screen."""
    corners = screen[faces]
    flat = corners[..., :2]
    area = _cross(flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0])
    usable = (corners[..., 2] > near).all(-1) & flat.isfinite().all(-1).all(-1)
    return usable & (area.abs() > 1e-12)


def screen_barycentric(corners: Tensor, pixel: Tensor) -> Tensor:
    """[..., 3] barycentric coordinates of pixels [..., 2] in screen triangles [..., 3, 2]."""
    a, b, c = (corners - pixel[..., None, :]).unbind(-2)
    parts = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], -1)
    area = _cross(corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :])
    return parts / area[..., None]


def nearest_segments(segments: Tensor, radius: float, width: int, height: int) -> Tensor:
    """[H, W] int64 index of the segment nearest to each pixel centre, -1 if none within radius.

    Args:
        segments: [S, 4] float64: x y of one end, x y of the other, pixels.
    """
    low = torch.minimum(segments[:, :2], segments[:, 2:]) - radius
    high = torch.maximum(segments[:, :2], segments[:, 2:]) + radius
    segment, column, row = _pixels_in_boxes(low, high, width, height)
    pixel = torch.stack([column, row], -1) + 0.5
    distance = squared_distance(segments[segment], pixel.to(segments))
    index = row * width + column
    best = segments.new_full((height * width,), radius**2)
    best = best.scatter_reduce(0, index, distance, "amin")
    # Not those at exactly the radius; of equally near ones the first.
    chosen = (distance == best[index]) & (distance < radius**2)
    nearest = torch.full((height * width,), len(segments), device=segments.device)
    nearest = nearest.scatter_reduce(0, index[chosen], segment[chosen], "amin")
    return torch.where(nearest < len(segments), nearest, -1).reshape(height, width)


def squared_distance(segment: Tensor, pixel: Tensor) -> Tensor:
    """[...] squared distance of points [..., 2] to segments [..., 4], differentiable."""
    start, end = segment[..., :2], segment[..., 2:]
    across = end - start
    length = (across**2).sum(-1).clamp_min(1e-18)
    along = (((pixel - start) * across).sum(-1) / length).clamp(0, 1)
    return ((start + along[..., None] * across - pixel) ** 2).sum(-1)


def _candidates(
    screen: Tensor, faces: Tensor, near: float, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every (face, column, row) whose pixel centre lies in the face's bounding box."""
    usable = usable_faces(screen, faces, near)
    flat = torch.where(usable[:, None, None], screen[faces][..., :2], torch.nan)
    return _pixels_in_boxes(flat.amin(1), flat.amax(1), width, height)


def _pixels_in_boxes(
    low: Tensor, high: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every (box, column, row) whose pixel centre lies in a box [B, 2]; none in a box of NaN."""
    size = torch.tensor([width, height], dtype=low.dtype, device=low.device)
    first = torch.ceil(low - 0.5).clamp_min(0)
    last = torch.minimum(torch.floor(high - 0.5), size - 1)
    extent = (last - first + 1).nan_to_num(0.0).clamp(min=0).minimum(size).long()
    count = extent[:, 0] * extent[:, 1]
    box = torch.repeat_interleave(torch.arange(len(low), device=low.device), count)
    start = torch.cumsum(count, 0) - count
    place = torch.arange(len(box), device=low.device) - start[box]
    columns = extent[box, 0]
    column = first[box, 0].long() + place % columns
    row = first[box, 1].long() + place // columns
    return box, column, row


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
