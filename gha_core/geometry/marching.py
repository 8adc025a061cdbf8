"""Marching tetrahedra: the zero level of node values as a triangle mesh, with gradients.

The topology is found from signs alone, without gradient (:func:`cross`); the vertices are then
linear interpolations between the two nodes of each crossed edge (:func:`interpolate`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.geometry.tetrahedra import TET_EDGES


@dataclass(frozen=True)
class Crossing:
    """Where a surface cuts a lattice.

    Attributes:
        nodes: [n] int64, lattice nodes at an end of some crossed edge.
        pairs: [V, 2] int64 into ``nodes``: the crossed edges, inside end first; a mesh vertex each.
        faces: [F, 3] int64 into ``pairs``, counter-clockwise seen from outside.
    """

    nodes: Tensor
    pairs: Tensor
    faces: Tensor


def cross(tets: Tensor, sdf: Tensor) -> Crossing:
    """Find the crossed edges and the faces between them. No gradient.

    Args:
        tets: [T, 4] of a lattice, all that are crossed among them.
        sdf: [N] of the lattice's nodes, negative inside; exactly zero counts as outside.
    """
    with torch.no_grad():
        inside = (sdf < 0)[tets]
        crossed = inside.any(1) & ~inside.all(1)
        tets, inside = tets[crossed], inside[crossed]
        ends = torch.tensor(TET_EDGES)
        cut = inside[:, ends[:, 0]] != inside[:, ends[:, 1]]  # [., 6]
        one, two = tets[:, ends][cut].unbind(1)
        key, place = torch.unique(
            torch.minimum(one, two) * len(sdf) + torch.maximum(one, two), return_inverse=True
        )
        vertex = torch.zeros_like(cut, dtype=torch.int64)
        vertex[cut] = place
        pairs = torch.stack([key // len(sdf), key % len(sdf)], 1)
        pairs = torch.where(sdf[pairs[:, :1]] < 0, pairs, pairs.flip(1))

        case = (inside * torch.tensor([1, 2, 4, 8])).sum(1)
        parts = []
        for code, triangles in enumerate(_TRIANGLES):
            if triangles:
                owner = (case == code).nonzero()[:, 0]
                local = vertex[owner][:, torch.tensor(triangles)]  # [., triangles, 3]
                parts.append(local.reshape(-1, 3))
        used = torch.zeros(len(sdf), dtype=torch.bool)
        used[pairs] = True
        nodes = used.nonzero()[:, 0]
        number = torch.empty(len(sdf), dtype=torch.int64)
        number[nodes] = torch.arange(len(nodes))
        return Crossing(nodes, number[pairs], torch.cat(parts))


def interpolate(positions: Tensor, sdf: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Mesh vertices and the weights that made them.

    Args:
        positions: [n, 3] of the crossing's nodes; sdf: [n], same signs as found by :func:`cross`.
        pairs: [V, 2] of the crossing.

    Returns:
        vertices [V, 3], and weights [V, 2] (sum 1) with which any node value can be carried over.
    """
    # The same network on other batch sizes differs in the last bit, so a sign may have flipped.
    inner = sdf.index_select(0, pairs[:, 0]).clamp(max=-1e-9)
    outer = sdf.index_select(0, pairs[:, 1]).clamp(min=0.0)
    along = inner / (inner - outer)
    weights = torch.stack([1 - along, along], 1)
    return blend(positions, weights, pairs), weights


def blend(values: Tensor, weights: Tensor, pairs: Tensor) -> Tensor:
    """[V, C] node values [n, C] at the mesh vertices."""
    first, second = values.index_select(0, pairs[:, 0]), values.index_select(0, pairs[:, 1])
    return weights[:, :1] * first + weights[:, 1:] * second


def _triangles(code: int) -> tuple[tuple[int, int, int], ...]:
    """Triangles over the six edges for one of the 16 patterns of inside corners (bit k: corner k).

    Derived: one separated corner gives the triangle of its three edges, two and two give a quad
    around the separated pairs; then each is turned so that its normal points from in to out on a
    reference tetrahedron.
    """
    inside = [corner for corner in range(4) if code >> corner & 1]
    outside = [corner for corner in range(4) if not code >> corner & 1]
    if not inside or not outside:
        return ()

    def edge(a: int, b: int) -> int:
        return TET_EDGES.index((min(a, b), max(a, b)))

    if len(inside) == 2:
        (a, b), (c, d) = inside, outside
        quad = [edge(a, c), edge(a, d), edge(b, d), edge(b, c)]
        found = [(quad[0], quad[1], quad[2]), (quad[0], quad[2], quad[3])]
    else:
        lone, rest = (inside[0], outside) if len(inside) == 1 else (outside[0], inside)
        first, second, third = (edge(lone, other) for other in rest)
        found = [(first, second, third)]

    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    middle = torch.stack([(corners[a] + corners[b]) / 2 for a, b in TET_EDGES])
    outward = corners[outside].mean(0) - corners[inside].mean(0)
    oriented = []
    for one, two, three in found:
        normal = torch.linalg.cross(middle[two] - middle[one], middle[three] - middle[one])
        oriented.append((one, two, three) if normal @ outward > 0 else (one, three, two))
    return tuple(oriented)


_TRIANGLES = tuple(_triangles(code) for code in range(16))
