"""The avatar's picture: quickly and small while something moves, in full when it rests."""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.avatar import Avatar, quaternions
from gha_core.avatar.head import Gaussians
from gha_core.avatar.rendering import render_colours
from gha_core.cameras import Camera
from gha_core.pose import HeadPose

Coefficients = NDArray[np.float32]


class Painter:
    """Draws one avatar, for one client at a time."""

    def __init__(self, avatar: Avatar) -> None:
        self._avatar = avatar
        self._turn = Lock()
        self._known: tuple[bytes, Gaussians] | None = None

    def sketch(self, camera: Camera, pose: HeadPose, expression: Coefficients) -> Image:
        """[H, W, 3] the Gaussians' colours on white, without super-resolution."""
        with self._turn, torch.no_grad():
            world = self._world(pose, expression)
            K = torch.from_numpy(camera.K).float()[None]
            w2c = torch.from_numpy(camera.w2c).float()[None]
            drawn, _ = render_colours(world, K, w2c, [(0, 0)], camera.width, camera.height)
            levels = (drawn[0].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
            return np.ascontiguousarray(levels.numpy())

    def picture(self, camera: Camera, pose: HeadPose, expression: Coefficients) -> Image:
        """[H, W, 3] all that the avatar can do."""
        with self._turn:
            return self._avatar.render(camera, pose, expression)[0]

    def gaussians(self, pose: HeadPose, expression: Coefficients) -> Gaussians:
        """The Gaussians in the world."""
        with self._turn, torch.no_grad():
            return self._world(pose, expression)

    def _world(self, pose: HeadPose, expression: Coefficients) -> Gaussians:
        """The networks run only if the head moved since."""
        asked = b"".join(
            np.asarray(part, np.float64).tobytes()
            for part in (pose.rotation, pose.translation, pose.scale, expression)
        )
        if self._known is None or self._known[0] != asked:
            head = self._avatar.head
            gaussians = head(torch.from_numpy(np.asarray(expression)), head.condition(pose))
            rotation = quaternions.from_rotvec(torch.as_tensor(pose.rotation).float())
            place = torch.as_tensor(pose.translation).float()
            self._known = asked, gaussians.moved(rotation, place, pose.scale)
        return self._known[1]
