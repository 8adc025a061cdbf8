"""EWA projection of 3D Gaussians to the image: the specification, in plain PyTorch.

A Gaussian with covariance Σ = R diag(s)² Rᵀ becomes, to first order about its mean, the 2D Gaussian
with covariance J W Σ Wᵀ Jᵀ, where W is the rotation world -> camera and J the Jacobian of the
perspective projection (Zwicker et al., EWA volume splatting, 2001). Differentiable in every input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gha_core.splatting.scene import Scene

NEAR = 0.01  # m; what is nearer, or behind the camera, is culled
DILATION = 0.3  # px²; added to both axes so that no Gaussian is thinner than about a pixel
MIN_ALPHA = 1.0 / 255.0  # what adds less than one 8-bit level to a pixel is dropped
MAX_ALPHA = 0.999  # keeps 1 / (1 - alpha) in the gradient bounded
MIN_TRANSMITTANCE = 1e-4  # a pixel is finished when less than this would still shine through

# Beyond these sizes squares and determinants leave the range of float32.
_MAX_INPUT = 1e6
MAX_VARIANCE = 1e12  # px²
# The linearisation about the mean is meaningless far outside of the image: the direction at which
# the Jacobian is taken stays within this part of the image size of the border.
_MARGIN = 0.15


@dataclass(frozen=True)
class Projected:
    """N Gaussians seen by V cameras.

    Attributes:
        means2d: [V, N, 2] px, first pixel's centre at (0.5, 0.5).
        conics: [V, N, 3] the inverse covariance ((a, b), (b, c)) as (a, b, c), 1 / px².
        depths: [V, N] z in camera space, m.
        visible: [V, N] bool; False for what is culled. Such rows hold finite, meaningless numbers.
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    visible: Tensor


def project(scene: Scene) -> Projected:
    """Project the Gaussians into all views; features play no part.

    Culled (``visible`` False, gradient zero) are Gaussians that are nearer than ``NEAR``, whose
    opacity is below ``MIN_ALPHA``, whose quaternion is zero, or that have an absurdly large number
    (beyond ``_MAX_INPUT``) in any of their parameters. Opacities decide only what is visible.
    """
    K, w2c, opacities = scene.K, scene.w2c, scene.opacities
    usable = usable_rows(scene)
    means, quaternions, scales = neutralise(scene, ~usable)

    # Components lead and Gaussians trail: sums of three run over leading dimensions, which is
    # several times faster than bmm on many 3x3 matrices, and gives the same bits on any number of
    # threads.
    turn = w2c[:, :3, :3].permute(1, 2, 0)[..., None]  # [3, 3, V, 1]
    local = (turn * means.T[:, None]).sum(1) + w2c[:, :3, 3].T[:, :, None]  # [3, V, N]
    depths = local[2]
    in_front = (depths > NEAR) & usable
    z = torch.where(in_front, depths, 1.0)
    x, y = local[0] / z, local[1] / z

    fx, skew, cx = (K[:, 0, i, None] for i in range(3))
    fy, cy = K[:, 1, 1, None], K[:, 1, 2, None]
    means2d = torch.stack([fx * x + skew * y + cx, fy * y + cy], -1)

    # Rows of J W, [3, V, N] each; the last column of J is minus the (limited) image direction.
    limited_x = _limit(x, -cx / fx, (scene.width - cx) / fx)
    limited_y = _limit(y, -cy / fy, (scene.height - cy) / fy)
    row_u = (fx * turn[0] + skew * turn[1] - (fx * limited_x + skew * limited_y) * turn[2]) / z
    row_v = (fy * turn[1] - fy * limited_y * turn[2]) / z

    # (J W) (R S): its rows' inner products are the 2D covariance.
    axes = scaled_axes(quaternions, scales)  # [3, 3, N]
    factor_u = (row_u[:, None] * axes[:, :, None]).sum(0)
    factor_v = (row_v[:, None] * axes[:, :, None]).sum(0)
    uu, vv = (factor_u * factor_u).sum(0), (factor_v * factor_v).sum(0)
    bounded = ((uu < MAX_VARIANCE) & (vv < MAX_VARIANCE)).detach()
    factor_u = torch.where(bounded, factor_u, 0.0)
    factor_v = torch.where(bounded, factor_v, 0.0)
    uu = torch.where(bounded, uu, 0.0) + DILATION
    vv = torch.where(bounded, vv, 0.0) + DILATION
    uv = (factor_u * factor_v).sum(0)
    # uu vv - uv² by Lagrange's identity, as a sum: for a long needle that difference is nothing but
    # rounding.
    normal = torch.linalg.cross(factor_u, factor_v, dim=0)
    determinant = DILATION * (uu + vv - DILATION) + (normal * normal).sum(0)
    conics = torch.stack([vv / determinant, -uv / determinant, uu / determinant], -1)
    in_range = means2d.detach().abs().amax(-1) < _MAX_INPUT
    means2d = torch.where(in_range[..., None], means2d, 0.0)
    visible = in_front & bounded & in_range & (opacities >= MIN_ALPHA)
    return Projected(means2d, conics, depths, visible.detach())


def neutralise(scene: Scene, bad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means, quaternions and scales, with points at the origin instead of the bad [N] ones, which
    get zero gradient."""
    # torch.where (not a product): what overflows in the bad rows and their gradients must not
    # reach anything else.
    identity = scene.quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    return (
        torch.where(bad[:, None], 0.0, scene.means),
        torch.where(bad[:, None], identity, scene.quaternions),
        torch.where(bad[:, None], 0.0, scene.scales),
    )


def usable_rows(scene: Scene) -> Tensor:
    """[N] bool: every parameter of the Gaussian is a number of reasonable size."""
    usable = torch.ones(len(scene.means), dtype=torch.bool, device=scene.means.device)
    for value in (scene.means, scene.quaternions, scene.scales, scene.opacities):
        bounded = value.detach().abs() < _MAX_INPUT  # False for NaN
        usable &= bounded.all(-1) if bounded.ndim > 1 else bounded
    return usable & (scene.quaternions.detach().abs().amax(-1) > 1e-12)


def _limit(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    margin = _MARGIN * (high - low)
    return torch.minimum(torch.maximum(value, low - margin), high + margin)


def scaled_axes(quaternions: Tensor, scales: Tensor) -> Tensor:
    """[3, 3, N] rotation matrices whose columns are multiplied by the scales."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rotation = torch.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]).reshape(3, 3, -1)  # fmt: skip
    return rotation * scales.T
