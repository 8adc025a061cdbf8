"""Tetrahedral grids, generated where they are needed: a body-centred cubic lattice filled with
congruent tetrahedra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

TET_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


@dataclass(frozen=True)
class Lattice:
    """Corners and centres of a box of cubic cells, to be joined into tetrahedra, 12 for each cell.

    Around every inner face of the cells, each of its four edges and the two cell centres on both
    sides make one tetrahedron; the outermost half cell stays without. All are congruent and nearly
    regular, so the surface meshes are too. Twice the resolution in the same box gives a lattice
    that contains all nodes of this one.

    Nodes are numbered: first the corners, then the centres, each in C order of x, y, z. Nothing is
    stored of them, so a lattice is as small at 512 cells as at 8.

    Attributes:
        lower: corner of the box; spacing: edge length of the cells (head space).
        cells: number of cells along x, y, z.
        dtype: of positions.
    """

    lower: tuple[float, float, float]
    spacing: float
    cells: tuple[int, int, int]
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return self.corners + math.prod(self.cells)

    @property
    def corners(self) -> int:
        """The number of cell corners, and of the first centre."""
        return math.prod(count + 1 for count in self.cells)

    def points(self, places: Tensor) -> Tensor:
        """[..., 3] places in cells from the lower corner to positions."""
        shift = torch.tensor(self.lower, dtype=torch.float64)
        return (places.double() * self.spacing + shift).to(self.dtype)

    def positions(self, nodes: Tensor) -> Tensor:
        """[n, 3] positions of the nodes with numbers [n]."""
        is_centre = nodes >= self.corners
        index = torch.where(is_centre, nodes - self.corners, nodes)
        rows = torch.where(is_centre, self.cells[1], self.cells[1] + 1)
        columns = torch.where(is_centre, self.cells[2], self.cells[2] + 1)
        places = [index // columns // rows, index // columns % rows, index % columns]
        return self.points(torch.stack(places, -1) + 0.5 * is_centre[:, None])

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[N] node values as [X + 1, Y + 1, Z + 1] of the corners and [X, Y, Z] of the centres."""
        corners, centres = values.split([self.corners, len(values) - self.corners])
        return corners.reshape([count + 1 for count in self.cells]), centres.reshape(self.cells)

    def tets(self) -> Tensor:
        """[T, 4] all tetrahedra, by node numbers; det(b - a, c - a, d - a) > 0."""
        faces = [torch.ones(self.cells, dtype=torch.bool).narrow(axis, 1, self.cells[axis] - 1)
                 for axis in range(3)]  # fmt: skip
        return self._tets_around(faces)

    def crossed_tets(self, sdf: Tensor) -> Tensor:
        """[T, 4] among them all those that the zero level of ``sdf`` [N] crosses, in the same
        order: whole faces with the tetrahedra around them, of which some may not be crossed."""
        corners, centres = self.split((sdf < 0).to(torch.uint8))
        faces = []
        for axis in range(3):
            # Six nodes around each inner face: two centres, four corners.
            inside = centres.narrow(axis, 0, self.cells[axis] - 1).clone()
            inside += centres.narrow(axis, 1, self.cells[axis] - 1)
            across = corners.narrow(axis, 1, self.cells[axis] - 1)
            u, v = (axis + 1) % 3, (axis + 2) % 3
            for du, dv in _RING:
                inside += across.narrow(u, du, self.cells[u]).narrow(v, dv, self.cells[v])
            faces.append((inside > 0) & (inside < 6))
        return self._tets_around(faces)

    def _tets_around(self, faces: Sequence[Tensor]) -> Tensor:
        """[T, 4] tetrahedra around the chosen inner faces: for each axis a mask over the cells
        behind them."""
        centre_steps = torch.tensor([self.cells[1] * self.cells[2], self.cells[2], 1])
        rows, columns = self.cells[1] + 1, self.cells[2] + 1
        corner_steps = torch.tensor([rows * columns, columns, 1])
        tets = []
        for axis, mask in enumerate(faces):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            cell = mask.nonzero()
            behind = self.corners + (cell * centre_steps).sum(1)
            ahead = behind + centre_steps[axis]
            first = (cell * corner_steps).sum(1) + corner_steps[axis]
            ring = [first + du * corner_steps[u] + dv * corner_steps[v] for du, dv in _RING]
            for side in range(4):
                tets.append(torch.stack([behind, ahead, ring[side], ring[(side + 1) % 4]], 1))
        return torch.cat(tets)


_RING = ((0, 0), (1, 0), (1, 1), (0, 1))  # the corners of a face, in turn


def fill_box(lower: ArrayLike, upper: ArrayLike, resolution: int) -> Lattice:
    """The lattice of a box with corners ``lower`` and ``upper`` [3], and ``resolution`` cells along
    its longest side."""
    low, high = np.asarray(lower, float), np.asarray(upper, float)
    spacing = float((high - low).max() / resolution)
    x, y, z = np.maximum(2, np.ceil((high - low) / spacing - 1e-6).astype(int)).tolist()
    return Lattice((float(low[0]), float(low[1]), float(low[2])), spacing, (x, y, z))
