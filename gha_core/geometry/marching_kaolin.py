"""Marching tetrahedra by kaolin (https://github.com/NVIDIAGameWorks/kaolin, Apache-2.0), on CUDA.

kaolin numbers the vertices as we do, by the sorted ends of the edges, so its faces fit to our
crossed edges, which it does not tell. It calls a positive value occupied: signs are turned, and a
node at zero stays outside. Of positively oriented tetrahedra its faces then look inwards, and are
turned. Where four edges are crossed it may cut the quad by the other diagonal.
"""

from __future__ import annotations

from torch import Tensor

from gha_core.backends import installed
from gha_core.geometry.tetrahedra import TetGrid


def missing() -> str | None:
    if installed("kaolin.ops.conversions"):
        return None
    return (
        "is not installed: see https://kaolin.readthedocs.io for the wheel of your torch and CUDA "
        "(the kaolin on PyPI is empty)"
    )


def triangles(grid: TetGrid, sdf: Tensor) -> Tensor:
    """As :func:`gha_core.geometry.marching.triangles`."""
    from kaolin.ops.conversions import marching_tetrahedra

    _, faces = marching_tetrahedra(grid.nodes[None], grid.tets, -sdf[None])
    return faces[0].flip(1)
