"""From the geometry network to a mesh, and the pre-fit that makes the first mesh a sphere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.errors import StageError
from gha_core.geometry.expression_prior import near_faces
from gha_core.geometry.frames import TrackedFace
from gha_core.geometry.marching import blend, cross, crossed_edges, interpolate
from gha_core.geometry.networks import HeadNetworks
from gha_core.geometry.tetrahedra import TetGrid

_RINGS = 2  # of tetrahedra around the surface make the band
_FOLLOW = 4  # times at most that the band is laid again in one step


@dataclass(frozen=True)
class Surface:
    """The extracted neutral mesh, with gradients to the geometry network.

    Attributes:
        vertices: [V, 3] head space; faces: [F, 3]; features: [V, 128].
        offsets: [n, 3] head lengths, of the grid nodes that carry it.
        candidates: [V, 2] faces of the tracked mesh near each vertex.
        spacing: of the grid.
    """

    vertices: Tensor
    faces: Tensor
    features: Tensor
    offsets: Tensor
    candidates: Tensor
    spacing: float


class Extractor:
    """Extracts the surface of the geometry network on one grid.

    The network is evaluated without gradient to find the crossed edges, and again with gradient at
    their ends only: the same mesh and gradients as with gradients everywhere, at a fraction of the
    cost. Between two sweeps over the whole grid only a band of nodes around the surface is looked
    at; the band follows the surface. What appears elsewhere is found by the next sweep.

    Args:
        offset_scale: head lengths that a vertex offset of 1 moves a node.
    """

    def __init__(self, grid: TetGrid, offset_scale: float, face: TrackedFace) -> None:
        self.grid, self.offset_scale = grid, offset_scale
        self._near = near_faces(grid.nodes, face.vertices, face.faces, 1)
        self._sdf = torch.zeros(len(grid.nodes))  # as last seen: fresh in the band alone
        self._band, self._border = grid, torch.zeros(len(grid.nodes), dtype=torch.bool)

    def sweep(self, networks: HeadNetworks, where: str) -> None:
        """Look for the surface on the whole grid.

        Raises:
            StageError: there is none.
        """
        with torch.no_grad():
            parts = [networks.sdf(part) for part in self.grid.nodes.split(16384)]
        self._sdf = torch.cat(parts)
        _check_signs(self._sdf, where)
        self._lay_band()

    def surface(self, networks: HeadNetworks, where: str) -> Surface:
        """The surface near the last sweep's.

        Raises:
            StageError: it vanished.
        """
        for _ in range(_FOLLOW):
            band = self._band
            with torch.no_grad():
                sdf = networks.sdf(band.nodes)
            crossed = band.edges[0][crossed_edges(band, sdf)]
            if not len(crossed):
                self.sweep(networks, where)  # it leapt out of the band, or is gone
            elif self._border[crossed].any():
                self._sdf[band.source] = sdf
                self._lay_band()
            else:
                break
        crossing = cross(band, sdf)
        nodes = band.nodes[crossing.nodes]
        values = networks.neutral(nodes)
        offsets = values.offset * self.offset_scale
        vertices, weights = interpolate(nodes + offsets, values.sdf, crossing.pairs)
        return Surface(
            vertices,
            crossing.faces,
            blend(values.features, weights, crossing.pairs),
            offsets,
            self._near[band.source[crossing.nodes][crossing.pairs]].flatten(1),
            self.grid.spacing,
        )

    def _lay_band(self) -> None:
        self._band = self.grid.near_surface(self._sdf, _RINGS)
        self._border = self.grid.shared_with_rest(self._band)


def fit_sphere(networks: HeadNetworks, nodes: Tensor, radius: float, steps: int, seed: int) -> None:
    """Train the geometry network to the sphere around the head's origin, so that the first
    extraction is never empty.

    Raises:
        StageError: it is empty all the same.
    """
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(networks.geometry.parameters(), 2e-3)
    for _ in range(steps):
        points = nodes[torch.randint(len(nodes), (2048,), generator=draw)]
        values = networks.neutral(points)
        error = (values.sdf - torch.tanh(points.norm(dim=1) - radius)).square().mean()
        loss = error + 0.01 * values.offset.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        _check_signs(networks.sdf(nodes), "the end of the sphere pre-fit")


def _check_signs(sdf: Tensor, where: str) -> None:
    if not torch.isfinite(sdf).all():
        raise StageError(
            f"The signed distance became NaN or infinite at {where}. Lower geometry.learning_rate."
        )
    inside = float((sdf < 0).float().mean())
    if inside == 0:
        raise StageError(
            f"The mesh is empty at {where}: the signed distance is positive everywhere "
            f"({float(sdf.min()):.3g} to {float(sdf.max()):.3g}). The silhouettes shrank the "
            "head away: most often the mattes miss the head, or the tracked pose or scale puts it "
            "beside the person. Look at the previews of matting and tracking."
        )
    if inside == 1:
        raise StageError(
            f"The mesh is empty at {where}: the signed distance is negative everywhere "
            f"({float(sdf.min()):.3g} to {float(sdf.max()):.3g}), the head fills its whole box. "
            "Most often the mattes cover the whole image, or the tracked scale is far too small. "
            "Look at the previews of matting and tracking."
        )
