"""Marching tetrahedra: the zero level of node values as a triangle mesh, with gradients.

The topology is found from signs alone, without gradient (:func:`cross`); the vertices are then
linear interpolations between the two nodes of each crossed edge (:func:`interpolate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.backends import Backend, Backends
from gha_core.geometry import marching_kaolin
from gha_core.geometry.tetrahedra import TET_EDGES, TetGrid


@dataclass(frozen=True)
class Crossing:
    """Where a surface cuts a grid.

    Attributes:
        nodes: [n] int64, grid nodes at an end of some crossed edge.
        pairs: [V, 2] int64 into ``nodes``: the crossed edges, inside end first; a mesh vertex each.
        faces: [F, 3] int64 into ``pairs``, counter-clockwise seen from outside.
    """

    nodes: Tensor
    pairs: Tensor
    faces: Tensor


def cross(grid: TetGrid, sdf: Tensor, backend: str = "auto") -> Crossing:
    """Find the crossed edges and the faces between them. No gradient.

    Args:
        sdf: [N], negative inside; a node at exactly zero counts as outside.
        backend: a name of ``BACKENDS``, or "auto": the preferred one that can.
    """
    with torch.no_grad():
        pairs = grid.edges[0][crossed_edges(grid, sdf)]
        pairs = torch.where((sdf < 0)[pairs[:, :1]], pairs, pairs.flip(1))
        used = torch.zeros(len(grid.nodes), dtype=torch.bool, device=sdf.device)
        used[pairs.flatten()] = True
        number = torch.cumsum(used, 0) - 1
        faces = BACKENDS.choose(backend, sdf.device, sdf.dtype).kernels(grid, sdf)
        return Crossing(used.nonzero()[:, 0], number[pairs], faces)


def triangles(grid: TetGrid, sdf: Tensor) -> Tensor:
    """[F, 3] int64: the faces between the crossed edges, which are numbered in the grid's order;
    counter-clockwise seen from outside. The signature of every backend."""
    _, tet_edges = grid.edges
    vertex = torch.cumsum(crossed_edges(grid, sdf), 0) - 1
    bits = torch.tensor([1, 2, 4, 8], device=sdf.device)
    case = ((sdf < 0)[grid.tets] * bits).sum(1)
    parts = []
    for code, corners in enumerate(_TRIANGLES):
        if corners:
            owner = (case == code).nonzero()[:, 0]
            local = tet_edges[owner][:, torch.tensor(corners)]  # [., triangles, 3]
            parts.append(vertex[local].reshape(-1, 3))
    return torch.cat(parts)


BACKENDS: Backends[Callable[[TetGrid, Tensor], Tensor]] = Backends(
    "marching tetrahedra",
    (
        Backend(
            "kaolin", marching_kaolin.triangles, device="cuda", missing=marching_kaolin.missing
        ),
        Backend("twin", triangles),
    ),
)


def crossed_edges(grid: TetGrid, sdf: Tensor) -> Tensor:
    """[E] bool: the ends of the edge lie on different sides."""
    signs = (sdf < 0)[grid.edges[0]]
    return signs[:, 0] != signs[:, 1]


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
