"""Tetrahedral grids, generated: a body-centred cubic lattice filled with congruent tetrahedra."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

TET_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


@dataclass(frozen=True)
class TetGrid:
    """Tetrahedra over nodes in head space.

    Attributes:
        nodes: [N, 3] float32.
        tets: [T, 4] int64, positively oriented: det(b - a, c - a, d - a) > 0.
        spacing: edge length of the cubic cells.
        source: [N] int64, index of each node in the grid that this one was cut from.
    """

    nodes: Tensor
    tets: Tensor
    spacing: float
    source: Tensor

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor]:
        """Unique edges [E, 2] and, per tetrahedron, its six edges [T, 6] in TET_EDGES' order."""
        pairs = self.tets[:, torch.tensor(TET_EDGES)].reshape(-1, 2).sort(1).values
        key, place = torch.unique(
            pairs[:, 0] * len(self.nodes) + pairs[:, 1], return_inverse=True, sorted=True
        )
        ends = torch.stack([key // len(self.nodes), key % len(self.nodes)], 1)
        return ends, place.reshape(-1, 6)

    def near_surface(self, sdf: Tensor, rings: int = 0) -> TetGrid:
        """The part of the grid that the zero level of ``sdf`` [N] crosses, and ``rings`` rings of
        tetrahedra around it. Extraction from it gives the same mesh as from the whole grid."""
        inside = (sdf < 0)[self.tets]
        crossed = inside.any(1) & ~inside.all(1)
        for _ in range(rings):
            touched = torch.zeros(len(self.nodes), dtype=torch.bool)
            touched[self.tets[crossed].flatten()] = True
            crossed = touched[self.tets].any(1)
        return self._part(crossed)

    def shared_with_rest(self, part: TetGrid) -> Tensor:
        """[n] bool: nodes of ``part`` that tetrahedra outside of it use as well.

        The border of the whole grid itself does not count.
        """
        return part._uses < self._uses[part.source]

    @cached_property
    def _uses(self) -> Tensor:
        """[N] number of tetrahedra around each node."""
        return torch.bincount(self.tets.flatten(), minlength=len(self.nodes))

    def _part(self, chosen: Tensor) -> TetGrid:
        tets = self.tets[chosen]
        used = torch.zeros(len(self.nodes), dtype=torch.bool)
        used[tets.flatten()] = True
        source = used.nonzero()[:, 0]
        number = torch.cumsum(used, 0) - 1
        return TetGrid(self.nodes[source], number[tets], self.spacing, self.source[source])


def body_centred_grid(lower: ArrayLike, upper: ArrayLike, resolution: int) -> TetGrid:
    """Fill a box with cubic cells and join corners and centres into tetrahedra, 12 for each cell.

    Around every inner face of the cells, each of its four edges and the two cell centres on both
    sides make one tetrahedron. All are congruent and nearly regular, so the surface meshes are too.
    Twice the resolution in the same box gives a grid that contains all nodes of this one.

    Args:
        lower, upper: [3] corners of the box; the outermost half cell stays without tetrahedra.
        resolution: number of cells along the longest side.
    """
    low, high = np.asarray(lower, float), np.asarray(upper, float)
    spacing = float((high - low).max() / resolution)
    cells = np.maximum(2, np.ceil((high - low) / spacing - 1e-6).astype(int))
    corner_shape = cells + 1
    corner = np.arange(corner_shape.prod()).reshape(corner_shape)
    centre = np.arange(cells.prod()).reshape(cells) + corner.size

    tets = []
    for axis in range(3):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        behind = _take(centre, axis, 0, cells[axis] - 1)
        ahead = _take(centre, axis, 1, cells[axis])
        face = _take(corner, axis, 1, cells[axis])  # corners of the inner faces' planes
        ring = []
        for du, dv in ((0, 0), (1, 0), (1, 1), (0, 1)):
            shifted = _take(face, u, du, du + cells[u])
            ring.append(_take(shifted, v, dv, dv + cells[v]))
        for first, second in ((0, 1), (1, 2), (2, 3), (3, 0)):
            tets.append(np.stack([behind, ahead, ring[first], ring[second]], -1).reshape(-1, 4))

    def lattice(shape: np.ndarray, shift: float) -> np.ndarray:
        places = np.array(np.unravel_index(np.arange(shape.prod()), tuple(shape))).T
        return (places + shift) * spacing + low

    nodes = np.concatenate([lattice(corner_shape, 0.0), lattice(cells, 0.5)])
    all_tets = np.concatenate(tets)
    return TetGrid(
        torch.from_numpy(nodes.astype(np.float32)),
        torch.from_numpy(all_tets.astype(np.int64)),
        spacing,
        torch.arange(len(nodes)),
    )


def _take(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
    return np.take(array, np.arange(start, stop), axis=axis)
