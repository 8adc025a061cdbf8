"""From the geometry network to a mesh, and the pre-fit that makes the first mesh a sphere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gha_core.adam import Adam, Group
from gha_core.errors import StageError
from gha_core.geometry.expression_prior import FaceSearch
from gha_core.geometry.marching import Crossing, blend, cross, interpolate
from gha_core.geometry.networks import HeadNetworks
from gha_core.geometry.tetrahedra import Lattice
from gha_core.tracked_face import TrackedFace

# Cells along the longest side, where the search begins. In a box of about 1.5 head lengths, eight
# of them make one wave of the highest frequency that the network is given.
COARSEST = 16
_CHUNK = 16384  # points at a time: what the layers put out stays in the cache


@dataclass(frozen=True)
class Surface:
    """The extracted neutral mesh, with gradients to the geometry network.

    Attributes:
        vertices: [V, 3] head space; faces: [F, 3]; features: [V, 128].
        offsets: [n, 3] head lengths, of the lattice nodes that carry it.
        candidates: [V, 2] faces of the tracked mesh near each vertex.
        spacing: of the lattice.
    """

    vertices: Tensor
    faces: Tensor
    features: Tensor
    offsets: Tensor
    candidates: Tensor
    spacing: float


class Extractor:
    """Extracts the surface of the geometry network on one lattice.

    The network is evaluated without gradient to find the crossed edges, and again with gradient at
    their ends only: the same mesh and gradients as with gradients everywhere, at a fraction of the
    cost. The edges are looked for from coarse to fine, anew every time, so there is no state that
    a moving surface could leave behind.

    Args:
        offset_scale: head lengths that a vertex offset of 1 moves a node.
        coarsest: cells along the longest side to begin with, at least; with the lattice's own
            number every node is looked at. In between, a part of the surface is missed if it is so
            small that it lies between nodes of the coarsest level and shows in none of them.
    """

    def __init__(
        self, lattice: Lattice, offset_scale: float, face: TrackedFace, coarsest: int = COARSEST
    ) -> None:
        self.lattice, self.offset_scale = lattice, offset_scale
        self._levels = int(math.log2(max(1.0, max(lattice.cells) / coarsest)))
        self._search = FaceSearch(face.vertices, face.faces)
        self._near = torch.full((len(lattice),), -1, dtype=torch.int32)  # face; -1: never asked

    def surface(self, networks: HeadNetworks, where: str) -> Surface:
        """The surface, with gradients.

        Raises:
            StageError: there is none.
        """
        with torch.no_grad():
            crossing = self._cross(networks, where)
        nodes = self.lattice.positions(crossing.nodes)
        values = networks.neutral(nodes)
        offsets = values.offset * self.offset_scale
        vertices, weights = interpolate(nodes + offsets, values.sdf, crossing.pairs)
        return Surface(
            vertices,
            crossing.faces,
            blend(values.features, weights, crossing.pairs),
            offsets,
            self._near_faces(crossing.nodes, nodes)[crossing.pairs],
            self.lattice.spacing,
        )

    def _cross(self, networks: HeadNetworks, where: str) -> Crossing:
        sdf, known = self._guess(networks)
        while True:
            tets = self.lattice.crossed_tets(sdf)
            # Every corner of a crossed tetrahedron is looked at, so that whatever part of the
            # surface has been met is followed wherever it goes.
            missing = torch.unique(tets[~known[tets]])
            if not len(missing):
                break
            sdf[missing] = _sdf(networks, self.lattice.positions(missing))
            known[missing] = True
        if not len(tets):
            raise _empty(sdf, where)
        return cross(tets, sdf)

    def _guess(self, networks: HeadNetworks) -> tuple[Tensor, Tensor]:
        """[N] signed distances, and [N] where they are the network's own. Elsewhere they are
        interpolated from coarser levels, and further from zero there than neighbouring nodes of
        those levels ever are from each other."""
        cells, points = self.lattice.cells, self.lattice.points
        step = 2**self._levels
        shape = [-(-count // step) + 1 for count in cells]  # may reach over the box
        known = torch.ones(shape, dtype=torch.bool)
        sdf = _sdf(networks, points(step * known.nonzero())).reshape(shape)
        while step > 1:
            step //= 2
            margin, size = _largest_step(sdf), [2 * count - 1 for count in sdf.shape]
            sdf = F.interpolate(sdf[None, None], size, mode="trilinear", align_corners=True)[0, 0]
            known = sdf.abs() <= margin
            sdf[known] = _sdf(networks, points(step * known.nonzero()))
        x, y, z = (slice(count + 1) for count in cells)
        sdf, known = sdf[x, y, z], known[x, y, z]

        centres = F.avg_pool3d(sdf[None], 2, stride=1)[0]
        known_centres = centres.abs() <= (_largest_step(sdf) if self._levels else torch.inf)
        centres[known_centres] = _sdf(networks, points(known_centres.nonzero() + 0.5))
        return (
            torch.cat([sdf.flatten(), centres.flatten()]),
            torch.cat([known.flatten(), known_centres.flatten()]),
        )

    def _near_faces(self, numbers: Tensor, nodes: Tensor) -> Tensor:
        """[n] a face of the tracked mesh near each node [n, 3] with numbers [n]."""
        new = self._near[numbers] < 0
        if new.any():
            self._near[numbers[new]] = self._search.near(nodes[new], 1)[:, 0].int()
        return self._near[numbers].long()


def _sdf(networks: HeadNetworks, points: Tensor) -> Tensor:
    return torch.cat([networks.sdf(part) for part in points.split(_CHUNK)])


def _largest_step(values: Tensor) -> Tensor:
    """The largest difference between neighbours in [X, Y, Z], along the axes."""
    return torch.stack([values.diff(dim=axis).abs().amax() for axis in range(3)]).amax()


def fit_sphere(
    networks: HeadNetworks, lattice: Lattice, radius: float, steps: int, seed: int
) -> None:
    """Train the geometry network to the sphere around the head's origin, so that the first
    extraction is not empty."""
    draw = torch.Generator().manual_seed(seed)
    optimiser = Adam([Group(list(networks.geometry.parameters()), 2e-3)])
    for _ in range(steps):
        points = lattice.positions(torch.randint(len(lattice), (2048,), generator=draw))
        values = networks.neutral(points)
        error = (values.sdf - torch.tanh(points.norm(dim=1) - radius)).square().mean()
        loss = error + 0.01 * values.offset.square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _empty(sdf: Tensor, where: str) -> StageError:
    """Why there is no surface."""
    if not torch.isfinite(sdf).all():
        return StageError(
            f"The signed distance became NaN or infinite at {where}. Lower geometry.learning_rate."
        )
    around = f"everywhere ({float(sdf.min()):.3g} to {float(sdf.max()):.3g})"
    if sdf.median() >= 0:
        return StageError(
            f"The mesh is empty at {where}: the signed distance is positive {around}. The "
            "silhouettes shrank the head away: most often the mattes miss the head, or the tracked "
            "pose or scale puts it beside the person. Look at the previews of matting and tracking."
        )
    return StageError(
        f"The mesh is empty at {where}: the signed distance is negative {around}, the head fills "
        "its whole box. Most often the mattes cover the whole image, or the tracked scale is far "
        "too small. Look at the previews of matting and tracking."
    )
