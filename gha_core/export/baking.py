"""The avatar without its networks: Gaussians that follow each coefficient linearly.

The networks are sampled over what the training saw and over each expression alone; to every
Gaussian's place, turn, size, opacity and colour the nearest linear function of the coefficients is
fitted by least squares. Then colours, opacities and sizes are refined until pictures of the baked
avatar come near the full renders, super-resolution included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gha_core.artifacts.images import Image
from gha_core.avatar import quaternions
from gha_core.avatar.head import LARGEST, POSE, SMALLEST, GaussianHead
from gha_core.cameras import Camera
from gha_core.export.fit import error
from gha_core.export.splats import Splats
from gha_core.export.targets import Shot, Target
from gha_core.geometry.networks import DEFORMATION_SCALE
from gha_core.pose import HeadPose
from gha_core.progress import track

# What a Gaussian learns of each coefficient, in this order: places are head lengths, turns rotation
# vectors (rad), sizes logarithms, opacities logits, colours sRGB 0..1.
PARTS = {"place": 3, "turn": 3, "size": 3, "opacity": 1, "colour": 3}
WIDTH = sum(PARTS.values())
# Of the ridge against coefficients that hardly vary in the samples; relative to one sample.
RIDGE = 0.03
MIXED = 160  # samples of two training moments mixed: one's expression in the other's pose
# Adam's rates at first (they fall to a tenth), of each part at rest and of what it learned.
REST_RATES = {"place": 2e-4, "turn": 1e-3, "size": 1e-2, "opacity": 3e-2, "colour": 5e-3}
LEARNED_RATES = {"opacity": 1e-2, "colour": 3e-3}

Motion = tuple[HeadPose, NDArray[np.float32]]


@dataclass(frozen=True)
class Baked:
    """N Gaussians in head space and what moves them; E expressions.

    Attributes:
        means: [N, 3]; quaternions: [N, 4] unit; rest: [N, 13] of ``PARTS`` at rest, place and turn
            being zero there.
        body: [N] 0 for what goes with the head, 1 for what stays with the torso.
        carried: [E, N, 6] place and turn by the face model, per unit of a coefficient of any size.
        learned: [E + 6, N, 13] what the networks add, per unit of a coefficient, or of the pose
            (rotation vector in rad, translation in head lengths), within ``low`` and ``high``.
        low, high: [E + 6] what training covered.
    """

    means: Tensor
    quaternions: Tensor
    rest: Tensor
    body: Tensor
    carried: Tensor
    learned: Tensor
    low: Tensor
    high: Tensor

    def splats(self, expression: Tensor, condition: Tensor) -> Splats:
        """The Gaussians in head space, in head lengths.

        Args:
            expression: [E]; condition: [6] of :meth:`GaussianHead.condition`.
        """
        seen = torch.cat([expression, condition]).clamp(self.low, self.high)
        values = self.rest + torch.tensordot(seen, self.learned, 1)
        carried = torch.tensordot(expression, self.carried, 1)
        place, turn, size, opacity, colour = values.split(list(PARTS.values()), 1)
        rotation, offset = condition.split(3)
        back = quaternions.to_matrix(quaternions.from_rotvec(rotation))
        means = self.means + carried[:, :3]
        body = self.body[:, None]
        means = torch.lerp(means, (means - offset) @ back, body) + place
        turn = turn + carried[:, 3:] - body * rotation
        return Splats(
            means,
            quaternions.multiply(quaternions.from_rotvec(turn), self.quaternions),
            size.exp().clamp(SMALLEST, LARGEST),
            torch.sigmoid(opacity[:, 0]),
            colour,
        )


@dataclass(frozen=True)
class BakedAvatar:
    """A baked avatar that can be scored like a full one."""

    baked: Baked
    head: GaussianHead

    @torch.no_grad()
    def render(
        self, camera: Camera, pose: HeadPose, expression: NDArray[np.float32]
    ) -> tuple[Image, Image]:
        """As :meth:`gha_core.avatar.Avatar.render`."""
        local = self.baked.splats(torch.from_numpy(expression), self.head.condition(pose))
        K, w2c = torch.from_numpy(camera.K).float(), torch.from_numpy(camera.w2c).float()
        picture, alpha = local.moved(pose).render(
            K, w2c, camera.width, camera.height, torch.ones(3)
        )
        image, matte = (
            (values.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            for values in (picture, alpha)
        )
        return image, matte


def bake(head: GaussianHead, motions: Sequence[Motion], seed: int = 0) -> Baked:
    """Fit the linear functions to the networks.

    Args:
        motions: pose and [E] expression of the training timesteps.
    """
    count, expressions = head.config.gaussians, head.config.expressions
    low, high = torch.cat([head.expression_range, head.pose_range], 1)
    with torch.no_grad():
        body = torch.sigmoid(head.body)
        samples = _samples(head, motions, low, high, np.random.default_rng((seed, 11)))
        gram = RIDGE * torch.eye(expressions + POSE + 1)
        gram[-1, -1] = 0
        right = torch.zeros(expressions + POSE + 1, count * WIDTH)
        for expression, condition, weight in track(
            samples, "sampling the avatar", total=len(samples)
        ):
            seen = torch.cat([expression, condition]).clamp(low, high)
            row = torch.cat([seen, torch.ones(1)])
            gram += weight * torch.outer(row, row)
            right.addr_(weight * row, _learned(head, expression, condition).ravel())
        solved = torch.linalg.solve(gram.double(), right.double()).float()
    learned = solved.unflatten(1, (count, WIDTH))
    return Baked(
        means=head.positions.detach().clone(),
        quaternions=torch.nn.functional.normalize(head.quaternions.detach(), dim=-1),
        rest=learned[-1].clone(),
        body=body,
        carried=torch.cat([head.shift, head.turn], -1),
        learned=learned[:-1].clone(),
        low=low,
        high=high,
    )


def refine(
    baked: Baked,
    targets: Sequence[tuple[Shot, Tensor, Target]],
    steps: int,
    seed: int = 0,
) -> Baked:
    """Bring pictures of the baked avatar nearer to full renders; Adam, a random target per step.

    Args:
        targets: shots, their conditions [6], and what they should look like.
    """
    rest = dict(zip(PARTS, baked.rest.split(list(PARTS.values()), 1), strict=True))
    learned = dict(zip(PARTS, baked.learned.split(list(PARTS.values()), 2), strict=True))
    rest = {name: value.clone() for name, value in rest.items()}
    learned = {name: value.clone() for name, value in learned.items()}
    refined = [(rest[name], rate) for name, rate in REST_RATES.items()]
    refined += [(learned[name], rate) for name, rate in LEARNED_RATES.items()]
    groups = [{"params": [value.requires_grad_(True)], "lr": rate} for value, rate in refined]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / max(steps, 1)))

    def current() -> Baked:
        return replace(
            baked,
            rest=torch.cat(list(rest.values()), 1),
            learned=torch.cat(list(learned.values()), 2),
        )

    rng = np.random.default_rng((seed, 13))
    for _ in track(range(steps), "refining the baked avatar", total=steps):
        shot, condition, target = targets[int(rng.integers(len(targets)))]
        head = current().splats(torch.from_numpy(shot.expression), condition)
        loss = error(head.moved(shot.pose), target, rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    with torch.no_grad():
        return current()


def _samples(
    head: GaussianHead,
    motions: Sequence[Motion],
    low: Tensor,
    high: Tensor,
    rng: np.random.Generator,
) -> list[tuple[Tensor, Tensor, float]]:
    """Expressions, conditions and their weights: training moments, mixtures of them, and each
    expression alone, half and as far as training saw it."""
    expressions = [torch.from_numpy(np.asarray(expression)) for _, expression in motions]
    conditions = [head.condition(pose) for pose, _ in motions]
    rest = torch.zeros(POSE)
    samples = [(e, c, 2.0) for e, c in zip(expressions, conditions, strict=True)]
    samples += [(torch.zeros(len(low) - POSE), rest, 2.0)]
    for _ in range(min(MIXED, 3 * len(motions))):
        first, second = rng.integers(len(motions), size=2)
        samples.append((expressions[first], conditions[second], 0.5))
    for index in range(len(low) - POSE):
        for share in (0.5, 1.0) if high[index] > 0.02 else ():
            alone = torch.zeros(len(low) - POSE)
            alone[index] = share * high[index]
            samples.append((alone, rest, 0.5))
    return samples


def _learned(head: GaussianHead, expression: Tensor, condition: Tensor) -> Tensor:
    """[N, 13] what :class:`Baked` has to learn: the avatar without what carries it."""
    deformation, attributes, colour = head.dynamics(expression, condition)
    colour = (head.colours + colour)[:, :3]
    if head.harmonics is not None:  # as seen from the front; `refine` fits the mean of all views
        colour = colour - head.harmonics[..., 2]
    stretch, bend, veil = attributes.split([3, 4, 1], -1)
    rest = torch.nn.functional.normalize(head.quaternions, dim=-1)
    bent = torch.nn.functional.normalize(head.quaternions + bend, dim=-1)
    inverse = rest * torch.tensor([1.0, -1.0, -1.0, -1.0])
    turn = _rotvec(quaternions.multiply(bent, inverse))
    return torch.cat(
        [
            DEFORMATION_SCALE * deformation,
            turn,
            head.log_scales + stretch,
            (head.opacities + veil[:, 0])[:, None],
            colour,
        ],
        1,
    )


def _rotvec(quaternion: Tensor) -> Tensor:
    """Unit quaternions [..., 4] to axis-angle [..., 3], rad, at most half a turn."""
    positive = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = positive[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, positive[..., :1])
    return positive[..., 1:] * torch.where(sine > 1e-8, angle / sine.clamp_min(1e-8), 2.0)
