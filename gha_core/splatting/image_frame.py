"""What both CUDA packages need: one camera for all, and only Gaussians that they can draw.

Seen through the image frame, every camera is the same: u = W (x / z + 1) / 2 and
v = H (y / z + 1) / 2. World -> camera -> image frame is one linear map, and EWA projection is the
same whichever frame the covariance is carried through. So the packages need not know principal
points or skew, and the gradients with respect to intrinsics and pose are ordinary ones of that map.
z stays metres.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gha_core.errors import ParameterError
from gha_core.splatting.projection import MAX_VARIANCE, NEAR, neutralise, project, usable_rows
from gha_core.splatting.scene import Scene
from gha_core.splatting.twin import footprints

_TILE = 16  # px, of both packages


def to_image_frame(scene: Scene) -> Tensor:
    """[V, 3, 4] maps from the world to the frame in which the image is |x| <= z, |y| <= z."""
    K = scene.K
    size = K.new_tensor([[2 / scene.width], [2 / scene.height]])
    forward = K.new_tensor([0.0, 0.0, 1.0])
    across = size * torch.triu(K)[:, :2] - forward
    frame = torch.cat([across, forward.expand(len(K), 1, 3)], 1)
    return frame @ scene.w2c[:, :3]


def drawable(scene: Scene, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same Gaussians, with opacity 0 for those that would be infinite or not a number.

    The twin leaves out a Gaussian for the view in which it is absurdly large; here it is left out
    of all views.

    Args:
        frames: [V, 3, 4] of :func:`to_image_frame`.

    Returns:
        means, quaternions, scales, opacities.
    """
    bad = ~usable_rows(scene)
    with torch.no_grad():
        depths = scene.means @ frames[:, 2, :3].T + frames[:, 2, 3]
        stretch = frames[:, :, :3].abs().sum((1, 2)) * max(scene.width, scene.height)
        widest = scene.scales.abs().amax(-1)[:, None] * stretch / depths
        bad |= ((depths > NEAR) & ~(widest < MAX_VARIANCE**0.5)).any(-1)
    means, quaternions, scales = neutralise(scene, bad)
    return means, quaternions, scales, torch.where(bad, 0.0, scene.opacities)


def check_intersections(scene: Scene) -> None:
    """Refuse what would overflow the 32-bit counters of the packages, which do not look.

    Raises:
        ParameterError: more than 2³¹ intersections of Gaussians and tiles.
    """
    columns, rows = -(-scene.width // _TILE), -(-scene.height // _TILE)
    if len(scene.K) * len(scene.means) * columns * rows < 2**31:
        return
    with torch.no_grad():
        seen = project(scene)
        low, high = footprints(seen.means2d, seen.conics, scene.opacities)
        last = low.new_tensor([columns - 1, rows - 1])
        first_tile = (low / _TILE).floor().clamp_min(0)
        last_tile = torch.minimum((high / _TILE).floor(), last)
        tiles = (last_tile - first_tile + 1).clamp_min(0).prod(-1)
        count = int((tiles * seen.visible).double().sum())
    if count >= 2**31:
        raise ParameterError(
            f"{scene.work} makes about {count} intersections; at most 2³¹ can be counted. Draw "
            "fewer views at a time, or fewer or smaller Gaussians."
        )
