"""Gaussians that hardly show are moved to where the pictures are worst; their number stays.

Skin needs few Gaussians, hair and lashes many, and nobody knows beforehand where. A picture is
linear in the Gaussians' channels: one backward pass gives how much of it each Gaussian shows, and
how wrong the picture is there (Rota Bulò et al., Revising Densification in Gaussian Splatting,
2024). The worst are cut in two across their longest axis; the second half is one of those that
showed least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.avatar import quaternions
from gha_core.avatar.head import GaussianHead, Gaussians
from gha_core.avatar.samples import Batch
from gha_core.splatting import rasterize_gaussians

# The halves of a Gaussian lie this many of its standard deviations from its middle, and keep this
# share of its length.
APART, SHORTER = 0.7, 0.6


@dataclass(frozen=True)
class Shown:
    """What one or more pictures show of each of N Gaussians.

    Attributes:
        area: [N] pixels, by blending weight; error: [N] the same, times how wrong each pixel is
            (mean absolute difference over the channels, 0..1).
    """

    area: Tensor
    error: Tensor

    def __add__(self, other: Shown) -> Shown:
        return Shown(self.area + other.area, self.error + other.error)


def shown(world: Gaussians, batch: Batch) -> Shown:
    """What the pictures of ``batch`` show of the Gaussians, drawn at full size by their colours."""
    height, width = batch.truth.shape[-2:]
    channels = world.seen_from(batch.w2c[0]).detach()[:, :3].clone().requires_grad_()
    with torch.enable_grad():
        splat = rasterize_gaussians(
            world.means.detach(), world.quaternions.detach(), world.scales.detach(),
            world.opacities.detach(), channels, batch.K, batch.w2c, width, height, torch.ones(3),
        )  # fmt: skip
    truth = batch.truth.permute(0, 2, 3, 1).float() / 255
    weight = batch.weight[:, 0]
    error = (splat.features.detach() - truth).abs().mean(-1) * weight
    wanted = torch.stack([weight, error, torch.zeros_like(error)], -1)
    (found,) = torch.autograd.grad(splat.features, channels, wanted)
    return Shown(found[:, 0], found[:, 1])


@torch.no_grad()
def relocate(head: GaussianHead, optimiser: torch.optim.Optimizer, seen: Shown, count: int) -> None:
    """Cut the ``count`` Gaussians with the largest error in two, in place of as many that show
    least. The optimiser's moments move along."""
    by_error = torch.argsort(seen.error, descending=True, stable=True)
    parents = by_error[:count]
    rest = by_error[count:]
    spare = rest[torch.argsort(seen.area[rest], stable=True)[:count]]
    parents = parents[: len(spare)]
    source = torch.arange(len(seen.area))
    source[spare] = parents

    longest = head.log_scales[parents].argmax(1)
    turned = quaternions.to_matrix(torch.nn.functional.normalize(head.quaternions[parents], dim=-1))
    axis = turned.gather(2, longest[:, None, None].expand(-1, 3, 1))[..., 0]
    length = head.log_scales[parents].gather(1, longest[:, None]).exp()
    order = torch.argsort(head.weight[source], descending=True, stable=True)
    _rearrange(head, optimiser, source)
    for half, sign in ((parents, 1.0), (spare, -1.0)):
        head.positions[half] += sign * APART * length * axis
        head.log_scales[half, longest] += torch.tensor(SHORTER).log()
    _rearrange(head, optimiser, order)
    head.count_controlled()


def _rearrange(head: GaussianHead, optimiser: torch.optim.Optimizer, source: Tensor) -> None:
    """Gaussian i becomes what number ``source[i]`` was."""
    for parameter in head.of_each_gaussian().values():
        parameter.copy_(parameter[source])
        state: Sequence[Tensor] = [
            value
            for value in optimiser.state[parameter].values()
            if isinstance(value, Tensor) and value.shape == parameter.shape
        ]
        for moment in state:
            moment.copy_(moment[source])
    for buffer in (head.weight, head.encoding):
        buffer.copy_(buffer[source])
    for basis in (head.shift, head.turn):
        basis.copy_(basis[:, source])
