"""The head as Gaussians that move and change colour with expression and pose.

Stage 2 of Xu et al., Gaussian Head Avatar (CVPR 2024): neutral Gaussians and six dynamic networks,
where the expression networks act with weight λ (near the face's landmarks) and the pose networks
with 1 - λ. Four things are added. Gaussians are first carried by the tracked face model's
expression basis, and those of the torso stay behind where it is on average while the head moves, so
that the networks learn only what that misses. The pose network colours the face too: lamps stand
still in the room while the head turns. And the networks never see a coefficient outside the range
that training covered, because there they would answer with noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gha_core.avatar import quaternions
from gha_core.geometry.networks import (
    DEFORMATION_SCALE,
    ConditionedMLP,
    encoded_size,
    positional_encoding,
)
from gha_core.pose import HeadPose

ATTRIBUTE_SCALE = 0.2
SHADING_TURN = 1 / 3  # rad, at which colours change by what the network says
ATTRIBUTES = 3 + 4 + 1  # log-scale, quaternion, opacity logit
POSE = 6
# exp(log-scale) stays between these (head lengths): a runaway scale ends in NaN or in a fog.
SMALLEST, LARGEST = 2e-4, 0.2


@dataclass(frozen=True)
class HeadConfig:
    """The sizes of a :class:`GaussianHead`; with the weights they make an avatar.

    Attributes:
        gaussians, expressions: numbers of them.
        expression_gaussians: how many, counted from the front, any expression network acts on;
            face_gaussians: how many of those no pose network moves (λ = 1).
        channels: of the feature image, the first three being RGB.
        features: length of each Gaussian's vector that the networks read.
        width: of the expression networks' hidden layers; those of pose are half as wide.
        pose_shading: whether all Gaussians' colours change with the head's rotation, linearly; if
            not, the pose colours those that it controls, by a network.
        expression_networks, attribute_networks: whether there are networks that read the
            expression, and such that change size, rotation and opacity.
        view_dependence: whether colours change with the direction of sight.
    """

    gaussians: int
    expression_gaussians: int
    face_gaussians: int
    expressions: int
    channels: int = 32
    features: int = 32
    width: int = 64
    pose_shading: bool = True
    expression_networks: bool = True
    attribute_networks: bool = True
    view_dependence: bool = False


@dataclass(frozen=True)
class Neutral:
    """Gaussians of the neutral head, in head space, sorted by falling ``weight``.

    Attributes:
        positions: [N, 3]; log_scales: [N, 3]; quaternions: [N, 4]; opacities: [N] logits.
        colours: [N, 3] sRGB 0..1; features: [N, F].
        weight: [N] λ, 1 where only the expression acts, 0 where only the pose does.
        shift: [E, N, 3] displacement under each expression, from the face model.
        turn: [E, N, 3] rotation vector under each expression, likewise.
        body: [N] 0 for what goes with the head, 1 for what stays with the torso.
    """

    positions: Tensor
    log_scales: Tensor
    quaternions: Tensor
    opacities: Tensor
    colours: Tensor
    features: Tensor
    weight: Tensor
    shift: Tensor
    turn: Tensor
    body: Tensor


@dataclass(frozen=True)
class Gaussians:
    """What the splatting wants: means [N, 3], quaternions [N, 4], scales [N, 3] (not logarithms),
    opacities [N] (0..1), channels [N, C]; in head space, or in the world in metres. With
    ``harmonics`` [N, 3, 3], the first three channels change by ``harmonics @ sight``, the unit
    vector from the camera to the Gaussian (spherical harmonics of degree 1, as vectors)."""

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    channels: Tensor
    harmonics: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def moved(self, rotation: Tensor, translation: Tensor, scale: float) -> Gaussians:
        """From head space to the world.

        Args:
            rotation: [4] unit quaternion; translation: [3] m; scale: m per head length.
        """
        matrix = quaternions.to_matrix(rotation)
        harmonics = None if self.harmonics is None else self.harmonics @ matrix.T
        return Gaussians(
            scale * (self.means @ matrix.T) + translation,
            quaternions.turn(rotation, self.quaternions),
            scale * self.scales,
            self.opacities,
            self.channels,
            harmonics,
        )

    def seen_from(self, w2c: Tensor) -> Tensor:
        """[N, C] channels as the camera [4, 4] sees them."""
        if self.harmonics is None:
            return self.channels
        first, rest = self.channels.split([3, self.channels.shape[1] - 3], 1)
        return torch.cat([first + shine(self.harmonics, self.means.detach(), w2c), rest], 1)


def shine(harmonics: Tensor, means: Tensor, w2c: Tensor) -> Tensor:
    """[N, 3] what a camera [4, 4] sees of harmonics [N, 3, 3] at means [N, 3]: see Gaussians."""
    eye = -w2c[:3, 3] @ w2c[:3, :3]
    sight = nn.functional.normalize(means - eye, dim=-1)
    return (harmonics * sight[:, None]).sum(-1)


class Silent(nn.Module):
    """In the place of a network that is left out: says nothing about any point."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.out = out

    def forward(self, points: Tensor, condition: Tensor | None = None) -> Tensor:
        return points.new_zeros(len(points), self.out)


class GaussianHead(nn.Module):
    """Neutral Gaussians (parameters), what carries them (buffers), and the six networks."""

    weight: Tensor
    shift: Tensor
    turn: Tensor
    encoding: Tensor
    expression_range: Tensor
    pose_range: Tensor
    pose_origin: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        n, e, f, c = config.gaussians, config.expressions, config.features, config.channels
        self.positions = nn.Parameter(torch.zeros(n, 3))
        self.log_scales = nn.Parameter(torch.zeros(n, 3))
        self.quaternions = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(n, 1))
        self.opacities = nn.Parameter(torch.zeros(n))
        self.colours = nn.Parameter(torch.zeros(n, c))
        self.features = nn.Parameter(torch.zeros(n, f))
        self.body = nn.Parameter(torch.zeros(n))
        self.harmonics = nn.Parameter(torch.zeros(n, 3, 3)) if config.view_dependence else None
        width, half, pose = config.width, config.width // 2, encoded_size(POSE)
        shown, attributes = config.expression_networks, config.attribute_networks
        self.colour_expression = _network(shown, f, e, [width] * 2, c)
        self.colour_pose = (
            _network(True, f, 0, [half], 3 * c)
            if config.pose_shading
            else _network(True, f, pose, [half], c)
        )
        self.deformation_expression = _network(shown, encoded_size(3), e, [width] * 3, 3)
        self.deformation_pose = _network(True, encoded_size(3), pose, [width] * 2, 3)
        self.attributes_expression = _network(shown and attributes, f, e, [width] * 2, ATTRIBUTES)
        self.attributes_pose = _network(attributes, f, pose, [half] * 2, ATTRIBUTES)
        buffers = {
            "weight": torch.zeros(n),
            "shift": torch.zeros(e, n, 3),
            "turn": torch.zeros(e, n, 3),
            # Of the first positions: the name by which the deformation fields know a Gaussian. It
            # stays while the position is refined, and costs nothing.
            "encoding": torch.zeros(n, encoded_size(3)),
            "expression_range": torch.tensor([0.0, 1.0])[:, None].repeat(1, e),
            "pose_range": torch.tensor([-1.0, 1.0])[:, None].repeat(1, POSE),
            "pose_origin": torch.tensor([0.0, 0, 0, 0, 0, 0, 1]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def start_from(self, neutral: Neutral) -> None:
        """Take the neutral Gaussians as they are; everything the networks add is zero so far."""
        with torch.no_grad():
            self.positions.copy_(neutral.positions)
            self.log_scales.copy_(neutral.log_scales)
            self.quaternions.copy_(neutral.quaternions)
            self.opacities.copy_(neutral.opacities)
            self.colours.zero_()
            self.colours[:, :3] = neutral.colours
            self.features.copy_(neutral.features)
            self.body.copy_(torch.logit(neutral.body.clamp(0.01, 0.99)))
            self.weight.copy_(neutral.weight)
            self.shift.copy_(neutral.shift)
            self.turn.copy_(neutral.turn)
            self.encoding.copy_(positional_encoding(neutral.positions))

    def of_each_gaussian(self) -> dict[str, nn.Parameter]:
        """The parameters whose rows are Gaussians, by name."""
        parts = {
            "positions": self.positions,
            "scales": self.log_scales,
            "rotations": self.quaternions,
            "opacities": self.opacities,
            "colours": self.colours,
            "features": self.features,
            "body": self.body,
            "harmonics": self.harmonics,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def count_controlled(self) -> None:
        """Note in the configuration how many Gaussians the expression controls."""
        self.config = replace(
            self.config,
            expression_gaussians=int((self.weight > 0).sum()),
            face_gaussians=int((self.weight == 1).sum()),
        )

    def set_ranges(self, poses: list[HeadPose], expressions: NDArray[np.float32]) -> None:
        """Learn what the training frames cover: their mean pose, and the extent of all inputs.

        Args:
            poses: one per timestep; expressions: [T, E].
        """
        origin = mean_pose(poses)
        self.pose_origin.copy_(torch.tensor([*origin.rotation, *origin.translation, origin.scale]))
        conditions = np.stack([self._relative(pose) for pose in poses])
        for buffer, values in ((self.pose_range, conditions), (self.expression_range, expressions)):
            extent = np.stack([values.min(0), values.max(0)])
            buffer.copy_(torch.from_numpy(extent.astype(np.float32)))

    def condition(self, pose: HeadPose) -> Tensor:
        """[6] rotation (rad) and translation (head lengths) from the mean training pose."""
        return torch.from_numpy(self._relative(pose).astype(np.float32))

    def _relative(self, pose: HeadPose) -> NDArray[np.float64]:
        origin = self.pose_origin.double().numpy()
        matrix = HeadPose(origin[:3], origin[3:6], origin[6]).matrix
        offset = (pose.translation - origin[3:6]) @ matrix / origin[6]
        return np.concatenate([_rotvec(matrix.T @ pose.matrix), offset])

    def forward(self, expression: Tensor, pose: Tensor) -> Gaussians:
        """The Gaussians in head space.

        Args:
            expression: [E] coefficients; pose: [6] of :meth:`condition`.
        """
        deformation, attributes, colour = self.dynamics(expression, pose)
        shift = torch.tensordot(expression, self.shift, 1)
        turn = torch.tensordot(expression, self.turn, 1)
        position, stay = self._left_behind(self.positions + shift, pose)
        turn = turn + stay
        stretch, bend, veil = attributes.split([3, 4, 1], -1)
        return Gaussians(
            means=position + DEFORMATION_SCALE * deformation,
            quaternions=quaternions.multiply(
                quaternions.from_rotvec(turn), self.quaternions + bend
            ),
            scales=(self.log_scales + stretch).exp().clamp(SMALLEST, LARGEST),
            opacities=torch.sigmoid(self.opacities + veil[:, 0]),
            channels=self.colours + colour,
            harmonics=self.harmonics,
        )

    def dynamics(self, expression: Tensor, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the networks add to the neutral Gaussians, from the arguments of :meth:`forward`:
        displacement [N, 3] in units of ``DEFORMATION_SCALE``, attributes [N, 8], channels [N, C].
        """
        seen = expression.clamp(self.expression_range[0], self.expression_range[1])
        turning = positional_encoding(pose.clamp(self.pose_range[0], self.pose_range[1]))
        by_expression = slice(0, self.config.expression_gaussians)
        by_pose = slice(self.config.face_gaussians, self.config.gaussians)
        near, far = self.features[by_expression], self.features[by_pose]

        deformation = self._blend(
            torch.tanh(self.deformation_expression(self.encoding[by_expression], seen)),
            torch.tanh(self.deformation_pose(self.encoding[by_pose], turning)),
        )
        attributes = ATTRIBUTE_SCALE * self._blend(
            self.attributes_expression(near, seen), self.attributes_pose(far, turning)
        )
        colour = self.colour_expression(near, seen)
        if self.config.pose_shading:
            shading = self._shading(pose)
            weight = self.weight[by_expression, None]
            lit, rest = shading.split([len(colour), len(shading) - len(colour)])
            colour = torch.cat([torch.addcmul(lit, weight, colour), rest])
        else:
            colour = self._blend(colour, self.colour_pose(far, turning))
        return deformation, attributes, colour

    def _shading(self, pose: Tensor) -> Tensor:
        """[N, C] by how much the head's rotation changes each channel: so much per axis, times the
        rotation.

        What a matte surface receives is to first order linear in its normal (spherical harmonics
        of degree 1), so linear in a small turn. A network that reads the pose learns the training
        poses as well, but at their border errs by tenths of the whole change.
        """
        turn = pose.clamp(self.pose_range[0], self.pose_range[1])[:3] / SHADING_TURN
        slopes = self.colour_pose(self.features)
        return (slopes.view(len(slopes), -1, 3) * turn).sum(-1)

    def _left_behind(self, points: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Undo the head's movement as far as each Gaussian belongs to the torso: the moved points,
        and the rotation vectors [N, 3] by which their Gaussians turn."""
        rotation, offset = pose.split(3)
        body = torch.sigmoid(self.body)[:, None]
        back = quaternions.to_matrix(quaternions.from_rotvec(rotation))
        return torch.lerp(points, (points - offset) @ back, body), -body * rotation

    def _blend(self, by_expression: Tensor, by_pose: Tensor) -> Tensor:
        """λ-blend of what the expression says about the first Gaussians and the pose about the
        last ones; where λ is 0 or 1 the network that has no say was not asked."""
        near, far = self.config.face_gaussians, self.config.expression_gaussians
        face, left = by_expression.split([near, far - near])
        right, rest = by_pose.split([far - near, len(by_pose) - (far - near)])
        between = torch.lerp(right, left, self.weight[near:far, None])
        return torch.cat([face, between, rest])


def _network(
    wanted: bool, points: int, condition: int, hidden: Sequence[int], out: int
) -> nn.Module:
    """A network whose first answers are zero."""
    return ConditionedMLP(points, condition, hidden, out, 0.0) if wanted else Silent(out)


def mean_pose(poses: list[HeadPose]) -> HeadPose:
    """The mean place and scale, and the rotation nearest to the mean of the rotation matrices."""
    left, _, right = np.linalg.svd(np.mean([pose.matrix for pose in poses], axis=0))
    rotation = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    return HeadPose(
        _rotvec(rotation),
        np.mean([pose.translation for pose in poses], axis=0),
        float(np.mean([pose.scale for pose in poses])),
    )


def _rotvec(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """[3, 3] rotation to axis-angle [3], rad."""
    return np.asarray(cv2.Rodrigues(matrix)[0], float).ravel()
