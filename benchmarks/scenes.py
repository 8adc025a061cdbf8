"""Synthetic inputs: a head-sized shell of Gaussians, an avatar around it, and pictures of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gha_core.avatar.head import GaussianHead, HeadConfig, Neutral
from gha_core.avatar.samples import Batch, Frame
from gha_core.avatar.super_resolution import SCALE
from gha_core.pose import HeadPose

EXPRESSIONS, ACTIVE = 52, 20  # coefficients, and how many are not zero at a time


@dataclass(frozen=True)
class Shell:
    """Arguments of the splatting: Gaussians as large as their spacing on an ellipsoid that fills
    most of the image of each camera."""

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    K: Tensor
    w2c: Tensor


def shell(count: int, channels: int, views: int, size: int) -> Shell:
    random = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=-1)
    spacing = math.sqrt(4 * math.pi * 0.1**2 / count)
    return Shell(
        means=direction * torch.tensor([0.08, 0.12, 0.10]),
        quaternions=torch.randn(count, 4, generator=random),
        scales=spacing * (0.4 + 0.6 * torch.rand(count, 3, generator=random)),
        opacities=0.3 + 0.65 * torch.rand(count, generator=random),
        features=torch.randn(count, channels, generator=random),
        K=_intrinsics(size).repeat(views, 1, 1),
        w2c=torch.stack([_pose(0.5 * (view - (views - 1) / 2)) for view in range(views)]),
    )


def avatar_head(
    count: int, channels: int = 32, width: int = 64, features: int = 32
) -> GaussianHead:
    """A head with the shares that the face model gives: expressions reach 60 % of the Gaussians,
    and 40 % nothing else. Its networks answer with small numbers, as after some training."""
    torch.manual_seed(0)
    near, face = int(0.6 * count), int(0.4 * count)
    config = HeadConfig(count, near, face, EXPRESSIONS, channels, features, width)
    head = GaussianHead(config)
    ball = shell(count, features, 1, 1)
    between = torch.linspace(1, 0, near - face + 2)[1:-1]
    head.start_from(
        Neutral(
            positions=5 * ball.means,
            log_scales=(5 * ball.scales).log(),
            quaternions=torch.nn.functional.normalize(ball.quaternions, dim=-1),
            opacities=torch.logit(ball.opacities),
            colours=torch.rand(count, 3),
            features=ball.features,
            weight=torch.cat([torch.ones(face), between, torch.zeros(count - near)]),
            shift=0.01 * torch.randn(EXPRESSIONS, count, 3),
            turn=0.01 * torch.randn(EXPRESSIONS, count, 3),
            body=torch.full((count,), 0.1),
        )
    )
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if ".layers." in name:
                parameter.add_(0.02 * torch.randn(parameter.shape))
    return head


def moment(index: int) -> Frame:
    """A frame's pose and expression; no pictures."""
    random = np.random.default_rng((7, index))
    expression = np.zeros(EXPRESSIONS, np.float32)
    active = random.permutation(EXPRESSIONS)[:ACTIVE]
    expression[active] = random.random(ACTIVE, np.float32)
    pose = HeadPose(0.2 * random.standard_normal(3), 0.01 * random.standard_normal(3), 0.2)
    return Frame(index, pose, expression, np.zeros((1, 3), np.float32), ())


def pictures(step: int, views: int, size: int, scale: int = SCALE) -> list[Batch]:
    """Noise as seen by ``views`` cameras, a batch each, ``scale`` pixels per feature pixel."""
    batches = []
    for view in range(views):
        random = torch.Generator().manual_seed(views * step + view)
        small = size // scale
        batches.append(
            Batch(
                K=_intrinsics(size)[None],
                w2c=_pose(0.5 * (view - (views - 1) / 2))[None],
                truth=torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8,
                                    generator=random),
                small=torch.rand(1, 3, small, small, generator=random),
                alpha=torch.rand(1, 1, small, small, generator=random),
                weight=torch.ones(1, 1, size, size),
                small_weight=torch.ones(1, 1, small, small),
                focus=[(size / 2, size / 2)],
                cameras=(view,),
            )
        )  # fmt: skip
    return batches


def _intrinsics(size: int) -> Tensor:
    focal = 3.6 * size
    return torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])


def _pose(turn: float) -> Tensor:
    """World to camera, 1 m in front of the origin, turned about it (rad)."""
    w2c = torch.eye(4)
    w2c[0, 0] = w2c[2, 2] = math.cos(turn)
    w2c[0, 2], w2c[2, 0] = math.sin(turn), -math.sin(turn)
    w2c[2, 3] = 1.0
    return w2c
