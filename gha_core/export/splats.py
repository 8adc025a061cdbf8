"""Gaussians as every 3DGS program knows them: a place, a shape, an opacity and a colour each, which
may change with the direction of sight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gha_core.avatar import quaternions
from gha_core.avatar.head import GaussianHead, shine
from gha_core.pose import HeadPose
from gha_core.splatting import rasterize_gaussians

SMALLEST_OPACITY = 1 / 255  # fainter Gaussians are never drawn


@dataclass(frozen=True)
class Splats:
    """N Gaussians; in the world, or on stage (see :func:`stage_pose`), in metres.

    Attributes:
        means: [N, 3]; quaternions: [N, 4] w-x-y-z, of unit length.
        scales: [N, 3] standard deviations; opacities: [N] 0..1; colours: [N, 3] sRGB 0..1.
        harmonics: [N, 3, 3] as those of :class:`gha_core.avatar.head.Gaussians`, if any.
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    colours: Tensor
    harmonics: Tensor | None = None

    def __len__(self) -> int:
        return len(self.means)

    def moved(self, pose: HeadPose) -> Splats:
        """Under the similarity transform ``x -> scale R x + translation``."""
        rotation = torch.as_tensor(pose.matrix).float()
        translation = torch.as_tensor(pose.translation).float()
        turn = quaternions.from_rotvec(torch.as_tensor(pose.rotation).float())
        return replace(
            self,
            means=pose.scale * (self.means @ rotation.T) + translation,
            quaternions=quaternions.turn(turn, self.quaternions),
            scales=pose.scale * self.scales,
            harmonics=None if self.harmonics is None else self.harmonics @ rotation.T,
        )

    def visible(self) -> Splats:
        """Without the Gaussians that no renderer draws."""
        keep = self.opacities >= SMALLEST_OPACITY
        parts = {name: part[keep] for name, part in vars(self).items() if part is not None}
        return Splats(**parts)

    def upright(self) -> Splats:
        """The same Gaussians, with their axes renamed so that each turns as little as possible.

        An ellipsoid has 24 frames. In the nearest one w is at least 0.85, which formats that store
        x, y, z alone and recompute w need.
        """
        frames = _frames()
        candidates = quaternions.multiply(self.quaternions[:, None], frames)
        best = candidates[..., 0].abs().argmax(1)
        turned = candidates[torch.arange(len(self)), best]
        # An axis of the new frame is one of the old ones, up to its sign.
        order = quaternions.to_matrix(frames).abs().argmax(1)[best]
        sign = torch.where(turned[:, :1] < 0, -1.0, 1.0)
        return replace(self, quaternions=sign * turned, scales=self.scales.gather(1, order))

    def render(
        self, K: Tensor, w2c: Tensor, width: int, height: int, background: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[..., H, W, 3] over the background [3], not clamped, and alpha [..., H, W].

        Colours that change with the sight are those that the one camera w2c [4, 4] sees.
        """
        colours = self.colours
        if self.harmonics is not None:
            colours = (colours + shine(self.harmonics, self.means, w2c)).clamp_min(0)
        splat = rasterize_gaussians(
            self.means, self.quaternions, self.scales, self.opacities, colours,
            K, w2c, width, height, background,
        )  # fmt: skip
        return splat.features, splat.alpha


def stage_pose(head: GaussianHead) -> HeadPose:
    """World <- stage: where the origin is between the ears of the mean training pose, +x to the
    subject's left, +y up and +z out of the face, in metres."""
    origin = head.pose_origin.double().numpy()
    return HeadPose(origin[:3], origin[3:6], 1.0)


def inverse(pose: HeadPose) -> HeadPose:
    """The transform that undoes ``pose``."""
    back = pose.matrix.T / pose.scale
    return HeadPose(-np.asarray(pose.rotation), -back @ pose.translation, 1 / pose.scale)


def mean_training_pose(head: GaussianHead) -> HeadPose:
    """Where the head was on average."""
    origin = head.pose_origin.double().numpy()
    return HeadPose(origin[:3], origin[3:6], float(origin[6]))


@torch.no_grad()
def of_frame(head: GaussianHead, pose: HeadPose, expression: Tensor) -> Splats:
    """The avatar's Gaussians in the world, with their first three channels as colours.

    Args:
        expression: [E] coefficients.
    """
    gaussians = head(expression, head.condition(pose))
    local = Splats(
        gaussians.means,
        torch.nn.functional.normalize(gaussians.quaternions, dim=-1),
        gaussians.scales,
        gaussians.opacities,
        gaussians.channels[:, :3],
        gaussians.harmonics,
    )
    return local.moved(pose)


def _frames() -> Tensor:
    """[24, 4] the rotations of a cube."""
    values = torch.tensor([-1.0, 0.0, 1.0])
    every = torch.cartesian_prod(values, values, values, values)
    # To the 4 axes, 12 edges and 8 diagonals of the 4D cube; one of each pair q, -q.
    squares = every.square().sum(1)
    every = every[torch.isin(squares, torch.tensor([1.0, 2.0, 4.0]))]
    first = every[torch.arange(len(every)), (every != 0).float().argmax(1)]
    return torch.nn.functional.normalize(every[first > 0], dim=1)
