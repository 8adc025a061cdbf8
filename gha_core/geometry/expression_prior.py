"""Carries the tracked face model's expressions to any points near its surface.

Every point takes the displacement of the nearest point of the neutral face mesh, faded out with the
distance from it. Without this prior new expressions are guessed by the networks alone, and missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

# Where a triangle is sampled for the search of near triangles: its centre and near its corners.
_SAMPLES = torch.tensor([[2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6


@dataclass(frozen=True)
class CarriedExpressions:
    """The expression basis as N points feel it; linear in the coefficients.

    Attributes:
        corners: [N, 3] int64, face-mesh vertices that carry each point.
        weights: [N, 3] barycentric weights times the fade, 0 in sum where a point is out of reach.
        basis: [E, V, 3] displacements of the face-mesh vertices, head space.
    """

    corners: Tensor
    weights: Tensor
    basis: Tensor

    def displacement(self, expression: Tensor) -> Tensor:
        """[..., E] coefficients to [..., N, 3] displacements; differentiable."""
        moved = (expression @ self.basis.flatten(1)).unflatten(-1, self.basis.shape[1:])
        return (moved[..., self.corners, :] * self.weights[..., None]).sum(-2)

    def dense(self) -> Tensor:
        """[E, N, 3]: the displacement of each point under each expression alone."""
        return self.displacement(torch.eye(len(self.basis)).to(self.basis))


def carry(
    points: Tensor,
    neutral_vertices: Tensor,
    expression_basis: Tensor,
    faces: Tensor,
    fade_start: float = 0.1,
    fade_end: float = 0.3,
    candidates: Tensor | None = None,
) -> CarriedExpressions:
    """Bind points to the neutral face mesh. No gradient.

    Args:
        points: [N, 3] neutral head space.
        neutral_vertices: [V, 3]; expression_basis: [E, V, 3]; faces: [F, 3] int64.
        fade_start, fade_end: distances from the mesh (head lengths) up to which a point moves
            fully, and from which on it does not move.
        candidates: [N, k] faces to choose from (see :class:`FaceSearch`) when they are known.
    """
    with torch.no_grad():
        points = points.detach()
        if candidates is None:
            candidates = FaceSearch(neutral_vertices, faces).near(points)
        corners = neutral_vertices[faces[candidates]]  # [N, k, 3, 3]
        weights = closest_on_triangle(points[:, None].expand(*corners.shape[:2], 3), corners)
        a, b, c = (weights[..., [k]] * corners[..., k, :] for k in range(3))
        distance = (a + b + c - points[:, None]).norm(dim=-1)
        distance, best = distance.min(1)
        every = torch.arange(len(points), device=points.device)
        fade = ((fade_end - distance) / (fade_end - fade_start)).clamp(0, 1)
        return CarriedExpressions(
            faces[candidates[every, best]],
            weights[every, best] * fade[:, None],
            expression_basis,
        )


class FaceSearch:
    """Finds faces of a mesh near points: among 8 of them is (nearly always) the nearest.

    Args:
        vertices: [V, 3]; faces: [F, 3] int64.
    """

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        samples = torch.einsum("sc,fcd->fsd", _SAMPLES.to(vertices), vertices[faces])
        self._tree, self._count = (
            cKDTree(samples.reshape(-1, 3).cpu().numpy()),
            len(_SAMPLES) * len(faces),
        )

    def near(self, points: Tensor, count: int = 8) -> Tensor:
        """[N, count] faces with a sample near each of ``points`` [N, 3]."""
        _, nearest = self._tree.query(points.cpu().numpy(), k=min(count, self._count))
        found = torch.as_tensor(np.asarray(nearest).reshape(len(points), -1) // len(_SAMPLES))
        return found.to(points.device)


def closest_on_triangle(points: Tensor, triangles: Tensor) -> Tensor:
    """[..., 3] barycentric weights of the closest point on triangles [..., 3, 3] to [..., 3].

    Either the foot of the perpendicular, if it lies inside, or the closest point on an edge.
    """
    # Components come first inside: sums over a last axis of three are many times slower.
    corners = triangles.movedim((-2, -1), (0, 1)).contiguous()
    point = points.movedim(-1, 0).contiguous()
    a, b, c = corners
    ab, ac, ap = b - a, c - a, point - a
    d00, d01, d11 = _dot(ab, ab), _dot(ab, ac), _dot(ac, ac)
    d20, d21 = _dot(ap, ab), _dot(ap, ac)
    area = (d00 * d11 - d01 * d01).clamp_min(1e-20)
    v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
    inside = torch.stack([1 - v - w, v, w])

    nearest = torch.full_like(v, torch.inf)
    on_edge = torch.zeros_like(inside)
    for first, second in ((0, 1), (1, 2), (2, 0)):
        start, across = corners[first], corners[second] - corners[first]
        along = _dot(point - start, across) / _dot(across, across).clamp_min(1e-20)
        along = along.clamp(0, 1)
        rest = start + along * across - point
        distance = _dot(rest, rest)
        weight = torch.zeros_like(inside)
        weight[first], weight[second] = 1 - along, along
        on_edge = torch.where(distance < nearest, weight, on_edge)
        nearest = torch.minimum(distance, nearest)
    return torch.where((inside >= 0).all(0), inside, on_edge).movedim(0, -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """[...] inner products along the first axis."""
    return (a * b).sum(0)
