"""Rotations as quaternions, w-x-y-z, batched over leading dimensions."""

from __future__ import annotations

import torch
from torch import Tensor


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product [..., 4]: rotates by ``b`` first, then by ``a``."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def turn(rotation: Tensor, quaternions: Tensor) -> Tensor:
    """[N, 4] ``quaternions`` followed by one and the same ``rotation`` [4]: :func:`multiply` as a
    product of matrices, which is several times faster."""
    w, x, y, z = rotation.unbind()
    rows = [w, x, y, z, -x, w, z, -y, -y, -z, w, x, -z, y, -x, w]
    return quaternions @ torch.stack(rows).reshape(4, 4)


def from_rotvec(rotvec: Tensor) -> Tensor:
    """Axis-angle [..., 3] (rad) to unit quaternions [..., 4]; smooth at zero."""
    half = rotvec / 2
    # torch.sinc is sin(pi x)/(pi x); the offset keeps the gradient of the norm finite at zero.
    angle = torch.sqrt((half * half).sum(-1, keepdim=True) + 1e-20)
    return torch.cat([torch.cos(angle), half * torch.sinc(angle / torch.pi)], -1)


def to_matrix(quaternion: Tensor) -> Tensor:
    """Quaternions [..., 4] of any length but zero to rotation matrices [..., 3, 3]."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def facing(direction: Tensor) -> Tensor:
    """The shortest rotation [..., 4] that turns +z to the unit ``direction`` [..., 3].

    Undefined only for -z itself, where any half turn about an axis across will do: x is taken.
    """
    x, y, z = direction.unbind(-1)
    across = x * x + y * y
    # 1 + z, without the cancellation near -z.
    w = torch.where(z < 0, across / (1 - z).clamp_min(1), 1 + z)
    quaternion = torch.stack([w, -y, x, torch.zeros_like(z)], -1)
    opposite = torch.tensor([0.0, 1.0, 0.0, 0.0]).to(quaternion)
    quaternion = torch.where(((z < 0) & (across < 1e-30))[..., None], opposite, quaternion)
    return quaternion / quaternion.norm(dim=-1, keepdim=True)
