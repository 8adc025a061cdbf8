"""What an exported avatar should look like: full renders of the avatar, from many sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from gha_core.avatar import Avatar
from gha_core.cameras import Camera
from gha_core.pose import HeadPose

# How far from the capture's cameras an exported avatar is looked at, too (degrees).
YAW, PITCH = 12.0, 6.0


@dataclass(frozen=True)
class Shot:
    """A camera's view of the avatar in a pose, [E] expression."""

    camera: Camera
    pose: HeadPose
    expression: NDArray[np.float32]


@dataclass(frozen=True)
class Target:
    """The avatar's picture of a shot.

    Attributes:
        K: [3, 3]; w2c: [4, 4]; light: [H, W, 3] sRGB 0..1 times alpha; alpha: [H, W, 1].
    """

    K: Tensor
    w2c: Tensor
    light: Tensor
    alpha: Tensor

    def over(self, background: Tensor) -> Tensor:
        """[H, W, 3] over a colour [3]."""
        return self.light + (1 - self.alpha) * background


def target(avatar: Avatar, shot: Shot) -> Target:
    """Render a shot in full."""
    image, matte = avatar.render(shot.camera, shot.pose, shot.expression)
    colour = torch.from_numpy(image).float() / 255
    alpha = torch.from_numpy(matte).float()[..., None] / 255
    return Target(
        torch.from_numpy(shot.camera.K).float(),
        torch.from_numpy(shot.camera.w2c).float(),
        # The avatar is drawn on white; what is left without the white is what it adds itself.
        (colour - (1 - alpha)).clamp_min(0),
        alpha,
    )


def shots(
    cameras: Sequence[Camera],
    motions: Sequence[tuple[HeadPose, NDArray[np.float32]]],
    count: int,
    rng: np.random.Generator,
) -> list[Shot]:
    """``count`` shots: every motion about as often, each from a random camera, as often as not
    carried around the head, so that the views between the capture's cameras count."""
    chosen = []
    for index in range(count):
        if index % len(motions) == 0:
            order = rng.permutation(len(motions))
        pose, expression = motions[order[index % len(motions)]]
        camera = cameras[int(rng.integers(len(cameras)))]
        if rng.random() < 0.5:
            yaw, pitch = rng.uniform(-1, 1, 2) * (YAW, PITCH)
            camera = around(camera, pose.translation, yaw, pitch)
        chosen.append(Shot(camera, pose, expression))
    return chosen


def around(camera: Camera, centre: NDArray[np.float64], yaw: float, pitch: float) -> Camera:
    """``camera`` carried around ``centre`` (world, m), still facing it: by ``yaw`` about its
    vertical axis, then ``pitch`` about its horizontal one; degrees."""
    local = camera.w2c[:3, :3] @ centre + camera.w2c[:3, 3]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xy", [pitch, yaw], degrees=True).as_matrix()
    turn[:3, 3] = local - turn[:3, :3] @ local
    return replace(camera, w2c=turn @ camera.w2c)
