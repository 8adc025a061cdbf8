"""The training of an avatar: a fixed number of steps, resumable, the same bytes every time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gha_core.avatar import quaternions
from gha_core.avatar.checkpoint import (
    Checkpoint,
    optimiser_tensors,
    read_checkpoint,
    restore_optimiser,
    write_checkpoint,
)
from gha_core.avatar.head import GaussianHead
from gha_core.avatar.rendering import Rendering, render
from gha_core.avatar.samples import Batch, Frame, TrainingViews
from gha_core.avatar.super_resolution import SCALE, SuperResolution
from gha_core.errors import StageError, locate
from gha_core.losses import PerceptualDistance, l1, soft_iou, structural_dissimilarity
from gha_core.progress import track

LOG_EVERY = 25  # steps; a row of the history is the mean over them


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam at the first step."""

    positions: float = 2e-3
    scales: float = 5e-3
    rotations: float = 2e-3
    opacities: float = 2e-2
    colours: float = 5e-3
    features: float = 5e-3
    networks: float = 2e-3
    super_resolution: float = 2e-3
    pose_correction: float = 1e-5


@dataclass(frozen=True)
class Weights:
    """Weights of the loss terms."""

    picture: float = 1.0
    small: float = 1.0
    perceptual: float = 0.1
    structure: float = 0.2
    silhouette: float = 0.1


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: in all; views: of one frame per step.
        final_rate: the learning rates fall exponentially to this share.
        crop: side of the full-size crops that the perceptual loss sees, px.
        checkpoint_seconds: time between checkpoints; it does not change the result.
    """

    steps: int
    views: int
    rates: Rates
    weights: Weights
    final_rate: float
    crop: int
    checkpoint_seconds: float


@dataclass(frozen=True)
class Trained:
    """What came of a training besides the changed modules.

    Attributes:
        history: rows (step, term, mean value).
        seconds: spent, interrupted runs included; resumed_at: the step it continued from, or 0.
    """

    history: list[tuple[int, str, float]]
    seconds: float
    resumed_at: int


class PoseCorrections(nn.Module):
    """A small turn (rad) and shift (head lengths) per training frame, for what tracking missed."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.corrections = nn.Parameter(torch.zeros(frames, 6))

    def corrected(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Rotation quaternion [4] and translation [3] m of a frame's head in the world."""
        turn, shift = self.corrections[frame.index].split(3)
        rotation = quaternions.from_rotvec(torch.as_tensor(frame.pose.rotation).float())
        translation = torch.as_tensor(frame.pose.translation).float()
        turned = quaternions.multiply(rotation, quaternions.from_rotvec(turn))
        return turned, translation + frame.pose.scale * shift


def train(
    head: GaussianHead,
    super_resolution: SuperResolution,
    views: TrainingViews,
    perceptual: PerceptualDistance | None,
    config: TrainingConfig,
    work: Path,
    fingerprint: str,
) -> Trained:
    """Train both modules in place, continuing from the checkpoint in ``work`` if there is one.

    Args:
        perceptual: None leaves that term out.
        work: folder for the checkpoint.
        fingerprint: of all that the result depends on; other checkpoints are ignored.

    Raises:
        StageError: a loss or parameter is NaN or infinite; names step, tensor and frame. The last
            checkpoint, written before, stays.
    """
    corrections = PoseCorrections(len(views.frames))
    modules = nn.ModuleDict(
        {"head": head, "super_resolution": super_resolution, "corrections": corrections}
    )
    optimiser = _optimiser(head, super_resolution, corrections, config.rates)
    history: list[tuple[int, str, float]] = []
    start, before = 0, 0.0
    found = read_checkpoint(work, fingerprint)
    if found is not None:
        start, history, before = found.step, found.history, found.seconds
        modules.load_state_dict(_under(found.tensors, "model."))
        restore_optimiser(optimiser, _under(found.tensors, "optimiser."))
    began = saved = time.monotonic()

    def save(step: int) -> None:
        _check_finite(modules.named_parameters(), step, None)
        tensors = {f"model.{name}": tensor for name, tensor in modules.state_dict().items()}
        tensors |= {f"optimiser.{k}": tensor for k, tensor in optimiser_tensors(optimiser).items()}
        seconds = before + time.monotonic() - began
        write_checkpoint(work, Checkpoint(step, tensors, history, seconds, fingerprint))

    base = [group["lr"] for group in optimiser.param_groups]
    sums: dict[str, float] = {}
    for step in track(range(start, config.steps), "training avatar", config.steps, start):
        for group, rate in zip(optimiser.param_groups, base, strict=True):
            group["lr"] = rate * config.final_rate ** (step / config.steps)
        frame, batch = views.at_step(step, config.views)
        head_space = head(torch.from_numpy(frame.expression), head.condition(frame.pose))
        rotation, translation = corrections.corrected(frame)
        world = head_space.moved(rotation, translation, frame.pose.scale)
        size = views.width // SCALE, views.height // SCALE
        rendering = render(world, super_resolution, batch.K, batch.w2c, *size)
        terms = loss_terms(
            rendering, batch, perceptual if config.weights.perceptual else None, config.crop, step
        )
        loss = sum(
            (getattr(config.weights, name.split("_")[0]) * value for name, value in terms.items()),
            torch.zeros(()),
        )
        if not torch.isfinite(loss):
            _check_finite(modules.named_parameters(), step, frame)
            _check_finite(vars(world).items(), step, frame)
            _check_finite(vars(rendering).items(), step, frame)
            _check_finite(terms.items(), step, frame)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        for name, value in terms.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
            sums[f"{name}#"] = sums.get(f"{name}#", 0.0) + 1
        if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
            history += [
                (step + 1, name, sums[name] / sums[f"{name}#"]) for name in sums if "#" not in name
            ]
            sums = {}
            # Only here, so that a window of the history is never cut by a kill.
            if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
                save(step + 1)
                saved = time.monotonic()
    return Trained(history, before + time.monotonic() - began, start)


def loss_terms(
    rendering: Rendering,
    batch: Batch,
    perceptual: PerceptualDistance | None,
    crop: int,
    step: int,
) -> dict[str, Tensor]:
    """The unweighted terms; the word before "_" names the weight.

    The perceptual distance is taken in turns of the half-size pictures and of full-size crops about
    a point of the face: each is as good a teacher in half of the steps, and costs half.
    """
    terms = {
        "picture": l1(rendering.picture, batch.truth, batch.weight),
        "small": l1(rendering.small, batch.small, batch.small_weight),
        "structure": structural_dissimilarity(rendering.picture, batch.truth, batch.weight),
        "silhouette": soft_iou(rendering.alpha, batch.alpha, batch.small_weight),
    }
    if perceptual is None:
        return terms
    if step % 2:
        image = torch.where(batch.small_weight > 0, rendering.small, batch.small)
        terms["perceptual_small"] = perceptual(image, batch.small)
    else:
        image = torch.where(batch.weight > 0, rendering.picture, batch.truth)
        terms["perceptual_picture"] = perceptual(*_crops(image, batch, crop))
    return terms


def _crops(image: Tensor, batch: Batch, side: int) -> tuple[Tensor, Tensor]:
    height, width = image.shape[-2:]
    side = min(side, height, width)
    images, truths = [], []
    for index, (x, y) in enumerate(batch.focus.tolist()):
        left = min(max(round(x - side / 2), 0), width - side)
        top = min(max(round(y - side / 2), 0), height - side)
        window = (index, slice(None), slice(top, top + side), slice(left, left + side))
        images.append(image[window])
        truths.append(batch.truth[window])
    return torch.stack(images), torch.stack(truths)


def _optimiser(
    head: GaussianHead,
    super_resolution: SuperResolution,
    corrections: PoseCorrections,
    rates: Rates,
) -> torch.optim.Adam:
    own = {
        "positions": rates.positions,
        "log_scales": rates.scales,
        "quaternions": rates.rotations,
        "opacities": rates.opacities,
        "colours": rates.colours,
        "features": rates.features,
    }
    groups = [{"params": [getattr(head, name)], "lr": rate} for name, rate in own.items()]
    networks = [value for name, value in head.named_parameters() if name not in own]
    groups.append({"params": networks, "lr": rates.networks})
    groups.append({"params": list(super_resolution.parameters()), "lr": rates.super_resolution})
    groups.append({"params": list(corrections.parameters()), "lr": rates.pose_correction})
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def _check_finite(tensors: Iterable[tuple[str, Tensor]], step: int, frame: Frame | None) -> None:
    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            where = ""
            if frame is not None:
                view = frame.views[0]
                where = f" ({locate(view.sequence, view.timestep)})"
            raise StageError(
                f"Training the avatar broke down at step {step}{where}: {name} is NaN or infinite. "
                "The last good checkpoint is kept. Lower the learning rates of the avatar section, "
                "or look at this frame's image, matte and tracked pose."
            )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
