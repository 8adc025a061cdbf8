"""The six terms of the geometry stage (Xu et al. 2024, stage 1), each a mean without its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gha_core.errors import StageError


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms."""

    rgb: float = 0.1
    silhouette: float = 0.1
    landmarks: float = 1.0
    offset: float = 1.0
    surface: float = 0.3
    laplacian: float = 2.0


def rgb(rendered: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean absolute difference of [..., 3] sRGB in 0..1, weights [...]."""
    return ((rendered - image).abs().mean(-1) * weight).sum() / weight.sum().clamp_min(1.0)


def silhouette(soft: Tensor, matte: Tensor, weight: Tensor) -> Tensor:
    """1 - soft intersection over union of two [..., H, W] masks, over pixels of weight [..., H, W].

    S·A / (S + A - S·A), sums over the pixels of each image, mean over images.
    """
    both = soft * matte
    intersection = (both * weight).sum((-2, -1))
    union = ((soft + matte - both) * weight).sum((-2, -1))
    return (1 - intersection / union.clamp_min(1.0)).mean()


def landmarks(deformed: Tensor, tracked: Tensor) -> Tensor:
    """Mean squared difference of [M, 3] landmarks, head space."""
    return (deformed - tracked).square().mean()


def offset(displacements: Tensor, grid_offsets: Tensor) -> Tensor:
    """Keeps learned displacements [V, 3] and grid offsets [n, 3] (both in head lengths) small, so
    that the neutral shape itself explains what all poses and expressions have in common.

    Mean squared lengths. Hair that the pose network adds would be missing from the neutral mesh.
    """
    return displacements.square().sum(1).mean() + grid_offsets.square().sum(1).mean()


def surface(landmarks: Tensor, skin: Tensor) -> Tensor:
    """Mean |sdf| of points that must lie on the surface: the neutral landmarks [M], and (beyond
    the paper) as a second mean a sample [K] of the tracked face mesh, which knows the whole face.
    """
    return (landmarks.abs().mean() + skin.abs().mean()) / 2


def laplacian(vertices: Tensor, edges: Tensor, normals: Tensor, spacing: float) -> Tensor:
    """Roughness: mean squared normal part of the uniform Laplacian (mean of the neighbours minus
    the vertex), in units of the grid's spacing: 0.01 means bumps of a tenth of a cell.

    The tangential part only says how unevenly the grid cuts the surface, and would be ten to a
    hundred times larger. The paper's weight of 100 on both parts, in head lengths on a grid of 128
    cells over about two of them, is 0.024 in this unit.

    Args:
        vertices: [V, 3]; edges: [E, 2] unique; normals: [V, 3] unit, taken as constant.
        spacing: of the grid that the mesh came from.
    """
    first, second = edges.unbind(1)
    total = torch.zeros_like(vertices)
    total = total.index_add(0, first, vertices.index_select(0, second))
    total = total.index_add(0, second, vertices.index_select(0, first))
    degree = torch.bincount(edges.flatten(), minlength=len(vertices)).clamp_min(1)
    difference = ((total / degree[:, None] - vertices) * normals.detach()).sum(1)
    return (difference / spacing).square().mean()


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights, where: str) -> Tensor:
    """Sum of the weighted terms.

    Args:
        where: step and frame, for the sentence.

    Raises:
        StageError: a term is not finite.
    """
    for name, value in terms.items():
        if not torch.isfinite(value):
            raise StageError(
                f"The loss term {name!r} became {value.item()} at {where}. Look at the image, "
                "matte and tracked pose of this frame; if they are fine, lower "
                "geometry.learning_rate."
            )
    factors = asdict(weights)
    return torch.stack([factors[name] * value for name, value in terms.items()]).sum()
