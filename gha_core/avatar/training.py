"""The training of an avatar: a fixed number of steps, resumable, the same bytes every time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gha_core.avatar import quaternions
from gha_core.avatar.denormals import flush_denormals
from gha_core.avatar.head import GaussianHead, Gaussians
from gha_core.avatar.milestones import keep, milestones
from gha_core.avatar.relocation import Shown, relocate, shown
from gha_core.avatar.rendering import render_colours, render_features
from gha_core.avatar.samples import Batch, Frame, TrainingViews
from gha_core.avatar.super_resolution import SuperResolution
from gha_core.avatar.windows import Window
from gha_core.checkpoint import (
    Checkpoint,
    optimiser_tensors,
    read_checkpoint,
    restore_optimiser,
    write_checkpoint,
)
from gha_core.errors import NotFiniteError, StageError, locate
from gha_core.losses import PerceptualDistance, l1, soft_iou, structural_dissimilarity
from gha_core.progress import track

History = list[tuple[int, str, float]]  # step, loss term, mean value since the row before
Terms = dict[str, float]
KINDS = ("small", "picture")
EXPRESSION_BOUND = 0.1
RELOCATION_STEPS = 24  # whose views tell where Gaussians are wanted
LOG_EVERY = 25  # steps; a row of the history is the mean over them


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam at the first step."""

    positions: float = 2e-3
    scales: float = 1.5e-2
    rotations: float = 1.5e-2
    opacities: float = 2e-2
    colours: float = 1.5e-2
    features: float = 1.5e-2
    body: float = 2e-2
    harmonics: float = 2e-3
    networks: float = 2e-3
    super_resolution: float = 2e-3
    pose_correction: float = 5e-5
    expression_correction: float = 0.0
    camera_colour: float = 0.0


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
        steps: in all; views: per step, drawn side by side.
        final_rate: the learning rates fall exponentially to this share; warm_up: steps over which
            they first rise to it, evenly.
        crop: side of the part of each picture that is drawn at full size, px; the small
            picture that a super-resolution network reads is always whole.
        sharp: whether colours are drawn at full size (see :mod:`gha_core.avatar.rendering`).
        relocations: how often, evenly over the first half, Gaussians that hardly show are moved to
            where the error is; relocated: share of them that is moved each time.
        checkpoint_seconds: time between checkpoints; it does not change the result.
    """

    steps: int
    views: int
    rates: Rates
    weights: Weights
    final_rate: float
    crop: int
    sharp: bool
    relocations: int
    relocated: float
    checkpoint_seconds: float
    warm_up: int = 0

    def rate(self, step: int) -> float:
        """The learning rates at this step, as a share of those at the first."""
        rising = min(1.0, (step + 1) / (self.warm_up + 1))
        return float(rising * self.final_rate ** (step / self.steps))

    def relocates_before(self, step: int) -> bool:
        """Whether Gaussians are moved before this step."""
        every = self.steps // (2 * self.relocations) if self.relocations else 0
        return every > 0 and 0 < step <= every * self.relocations and step % every == 0


class Corrections(nn.Module):
    """What tracking missed of every training frame: a small turn (rad) and shift (head lengths),
    and a change of at most EXPRESSION_BOUND of each expression; and by how much every training
    camera's colours differ from what all cameras see on average. The finished avatar knows nothing
    of them: test frames are not corrected, and unknown cameras see the mean colours."""

    def __init__(self, frames: int, expressions: int, cameras: int) -> None:
        super().__init__()
        self.poses = nn.Parameter(torch.zeros(frames, 6))
        self.expressions = nn.Parameter(torch.zeros(frames, expressions))
        self.colours = nn.Parameter(torch.zeros(cameras, 3, 4))

    def pose(self, frame: Frame) -> tuple[Tensor, Tensor]:
        """Rotation quaternion [4] and translation [3] m of a frame's head in the world."""
        turn, shift = self.poses[frame.index].split(3)
        rotation = quaternions.from_rotvec(torch.as_tensor(frame.pose.rotation).float())
        translation = torch.as_tensor(frame.pose.translation).float()
        turned = quaternions.multiply(rotation, quaternions.from_rotvec(turn))
        return turned, translation + frame.pose.scale * shift

    def expression(self, frame: Frame) -> Tensor:
        """[E] coefficients of a frame."""
        change = EXPRESSION_BOUND * torch.tanh(self.expressions[frame.index] / EXPRESSION_BOUND)
        return torch.from_numpy(frame.expression) + change

    def seen_by(self, cameras: Sequence[int], picture: Tensor, alpha: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] over white in the colours of these B cameras.

        A colour c becomes (I + A) c + b, with the 3 x 4 numbers [A, b] of each camera less their
        mean over all cameras, so that colours which all cameras share stay the avatar's own. What
        is behind the person (alpha [B, 1, H, W] < 1) stays white: the footage was matted.
        """
        drift = (self.colours - self.colours.mean(0))[list(cameras)]
        person = torch.cat([picture - (1 - alpha), alpha], 1)
        return picture + torch.einsum("bij,bjhw->bihw", drift, person)


def train(
    head: GaussianHead,
    super_resolution: SuperResolution | None,
    views: TrainingViews,
    perceptual: PerceptualDistance | None,
    config: TrainingConfig,
    work: Path,
    fingerprint: str,
) -> History:
    """Train both modules in place, continuing from the checkpoint in ``work`` if there is one.

    Args:
        super_resolution: None draws the pictures by the Gaussians' colours alone.
        perceptual: None leaves that term out.
        work: folder for the checkpoint and the states at milestones.
        fingerprint: of all that the result depends on; other checkpoints are ignored.

    Returns:
        The history of the loss terms, from the first step on.

    Raises:
        StageError: a loss or parameter is NaN or infinite; names step, tensor and frame. The last
            checkpoint, written before, stays.
    """
    cameras = len(views.cameras)
    corrections = Corrections(len(views.frames), head.config.expressions, cameras)
    modules = nn.ModuleDict({"head": head, "corrections": corrections})
    if super_resolution is not None:
        modules["super_resolution"] = super_resolution
    drawing = [] if super_resolution is None else list(super_resolution.parameters())
    corrections.poses.requires_grad_(config.rates.pose_correction > 0)
    corrections.expressions.requires_grad_(config.rates.expression_correction > 0)
    corrections.colours.requires_grad_(config.rates.camera_colour > 0)
    # What pictures depend on beside the Gaussians in the world, and what those depend on.
    beside = [*drawing, *([corrections.colours] if corrections.colours.requires_grad else [])]
    own = [*head.parameters(), corrections.poses, corrections.expressions]
    own = [each for each in own if each.requires_grad]
    optimiser = _optimiser(head, drawing, corrections, config.rates)
    history: History = []
    start = 0
    found = read_checkpoint(work, fingerprint)
    if found is not None:
        start, history = found.step, found.history
        modules.load_state_dict(found.part("model"))
        head.count_controlled()
        restore_optimiser(optimiser, found.part("optimiser"))
    saved = time.monotonic()

    def save(step: int) -> None:
        _check_finite(modules.named_parameters(), step, None)
        tensors = {f"model.{name}": tensor for name, tensor in modules.state_dict().items()}
        tensors |= {f"optimiser.{k}": tensor for k, tensor in optimiser_tensors(optimiser).items()}
        write_checkpoint(work, Checkpoint(step, tensors, history, fingerprint))

    def move(frame: Frame) -> Gaussians:
        expression = corrections.expression(frame)
        head_space = head(expression, head.condition(frame.pose))
        rotation, translation = corrections.pose(frame)
        return head_space.moved(rotation, translation, frame.pose.scale)

    def draw(
        world: Gaussians, frame: Frame, batch: Batch, step: int, place: int, share: float
    ) -> Lesson:
        """Draw one view and compare; gradients of the loss times ``share``, down to the Gaussians
        in the world."""
        leaves = {name: part.detach().requires_grad_() for name, part in world.tensors().items()}
        try:
            drawn = _draw(Gaussians(**leaves), batch, config, super_resolution)
            if corrections.colours.requires_grad:
                drawn = drawn.seen_by(corrections, batch.cameras)
        except NotFiniteError:
            _check_finite(modules.named_parameters(), step, frame)
            _check_finite(leaves.items(), step, frame)
            raise
        # The costly term in every other step, in turns small and at full size if both are drawn.
        kinds = KINDS if drawn.small is not None else KINDS[1:]
        kind = None if step % 2 else kinds[(step // 2 + place) % len(kinds)]
        terms = loss_terms(drawn, perceptual, kind)
        loss = sum(
            (getattr(config.weights, name.split("_")[0]) * value for name, value in terms.items()),
            torch.zeros(()),
        )
        if not torch.isfinite(loss):
            _check_finite(modules.named_parameters(), step, frame)
            _check_finite(leaves.items(), step, frame)
            _check_finite(terms.items(), step, frame)
        gradients = torch.autograd.grad(
            share * loss, [*leaves.values(), *beside], allow_unused=True
        )
        return Lesson({name: float(term.detach()) for name, term in terms.items()}, gradients)

    def learn(world: Gaussians, lessons: list[Lesson]) -> tuple[Tensor, ...]:
        """The gradients of one frame's views, down to the parameters of head and corrections."""
        outputs = list(world.tensors().values())
        gradients = [_total(column) for column in zip(*(x.gradients for x in lessons), strict=True)]
        return torch.autograd.grad(
            outputs, own, gradients[: len(outputs)], materialize_grads=True, allow_unused=True
        )

    def make_room(step: int, pool: ThreadPoolExecutor) -> None:
        """Move Gaussians to where the views of the next steps are wrong."""
        jobs = []
        for ahead in range(step, step + RELOCATION_STEPS):
            for frame, batches in views.at_step(ahead, config.views):
                with torch.no_grad():
                    world = move(frame)
                jobs += [pool.submit(shown, world, batch) for batch in batches]
        seen = reduce(Shown.__add__, (job.result() for job in jobs))
        relocate(head, optimiser, seen, round(config.relocated * head.config.gaussians))

    named = [(f"the gradient of {name}", each) for name, each in modules.named_parameters()]

    def check_gradients(step: int, frame: Frame) -> None:
        known = [(name, each.grad) for name, each in named if each.grad is not None]
        # A sum is NaN or infinite if any number is, and much quicker than to ask for each.
        if not torch.stack([gradient.sum() for _, gradient in known]).isfinite().all():
            _check_finite(known, step, frame)

    base = [group["lr"] for group in optimiser.param_groups]
    window: list[Terms] = []
    kept = milestones(config.steps)
    steps = range(start, config.steps)
    with _side_by_side(config.views) as pool:
        samples = views.at_step(start, config.views) if steps else []
        for step in track(steps, "training avatar", config.steps, start):
            if step in kept:
                keep(work, step, {"head": head, "super_resolution": super_resolution})
            if config.relocates_before(step):
                make_room(step, pool)
            frames = [frame for frame, _ in samples]
            share = 1 / sum(len(batches) for _, batches in samples)
            worlds = [move(frame) for frame in frames]
            jobs = [
                [
                    pool.submit(draw, world, frame, view, step, place, share)
                    for place, view in enumerate(batches)
                ]
                for world, (frame, batches) in zip(worlds, samples, strict=True)
            ]
            if step + 1 < config.steps:  # while the others draw
                with _threads(1):
                    samples = views.at_step(step + 1, config.views)
            lessons = [[job.result() for job in of_frame] for of_frame in jobs]
            learned = [learn(*each) for each in zip(worlds, lessons, strict=True)]
            drawn = [lesson for of_frame in lessons for lesson in of_frame]
            for parameter, *gradients in zip(own, *learned, strict=True):
                parameter.grad = _total(gradients)
            tails = [lesson.gradients[len(worlds[0].tensors()) :] for lesson in drawn]
            for parameter, *gradients in zip(beside, *tails, strict=True):
                parameter.grad = _total(gradients)
            check_gradients(step, frames[0])
            for group, rate in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = rate * config.rate(step)
            optimiser.step()
            window += [lesson.terms for lesson in drawn]
            if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
                history += [(step + 1, *row) for row in _means(window)]
                window = []
                # Only here, so that a window of the history is never cut by a kill.
                if time.monotonic() - saved > config.checkpoint_seconds or step + 1 == config.steps:
                    save(step + 1)
                    saved = time.monotonic()
    return history


@dataclass(frozen=True)
class Lesson:
    """What one view taught: its loss terms, and gradients of the Gaussians in the world and of
    what else the picture depends on."""

    terms: Terms
    gradients: tuple[Tensor, ...]


def _total(tensors: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, tensors)


@contextmanager
def _side_by_side(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share the processors; what they change for the caller is restored after.

    Two views on a core each take little more than half the time that they take one after the other
    on two cores: the tensors are too small to be worth cutting up.
    """
    each = max(1, torch.get_num_threads() // workers)

    def prepare() -> None:
        torch.set_num_threads(each)
        flush_denormals(True)

    # Adam's moments of what is rarely seen fade into denormal numbers, which are slow.
    flush_denormals(True)
    try:
        with ThreadPoolExecutor(workers, initializer=prepare) as pool:
            yield pool
    finally:
        flush_denormals(False)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Operations of this thread are cut up among so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _means(window: list[Terms]) -> list[tuple[str, float]]:
    """Per loss term its mean over those steps and frames that had it."""
    names = sorted({name for terms in window for name in terms})
    return [(name, fmean(terms[name] for terms in window if name in terms)) for name in names]


@dataclass(frozen=True)
class Drawn:
    """B views as they were drawn, beside what they should be.

    Attributes:
        picture, truth: [B, 3, s, s], a part of every view at full size.
        weight, cover: [B, 1, s, s] what of it counts, and its alpha.
        alpha, matte: [B, 1, h, w] at the features' size; inside: [B, 1, h, w], where they
            count.
        small: the small picture and its truth [B, 3, h, w]; None if it was not drawn.
    """

    picture: Tensor
    truth: Tensor
    weight: Tensor
    cover: Tensor
    alpha: Tensor
    matte: Tensor
    inside: Tensor
    small: tuple[Tensor, Tensor] | None = None

    def seen_by(self, corrections: Corrections, cameras: Sequence[int]) -> Drawn:
        """In the colours of the B cameras."""
        picture = corrections.seen_by(cameras, self.picture, self.cover)
        if self.small is None:
            return replace(self, picture=picture)
        shown, truth = self.small
        return replace(
            self, picture=picture, small=(corrections.seen_by(cameras, shown, self.alpha), truth)
        )


def _draw(
    gaussians: Gaussians,
    batch: Batch,
    config: TrainingConfig,
    super_resolution: SuperResolution | None,
) -> Drawn:
    """The ``config.crop`` px about the focus of each view, as far as the picture reaches, and with
    a super-resolution network the whole small picture that it needs anyway.

    Most of a view's time goes into full-size pixels, and a part of them teaches nearly as much.
    """
    height, width = batch.alpha.shape[-2:]
    zoom = batch.zoom if super_resolution is not None else 1.0
    window = Window.about(batch.focus, config.crop, height, width, batch.scale, zoom)

    def colours() -> tuple[Tensor, Tensor]:
        K = batch.K.clone()
        K[:, :2] *= zoom
        size = batch.scale * window.width, batch.scale * window.height
        return render_colours(gaussians, K, batch.w2c, window.places, *size)

    truth = window.of_pictures(batch.truth).float() / 255
    # Resampled, the photo's edge is a slope.
    weight = (window.of_pictures(batch.weight) > 0.999).float()
    if super_resolution is None:
        picture, cover = colours()
        matte, inside = window.of_features(batch.alpha), window.of_features(batch.small_weight)
        alpha = F.avg_pool2d(cover, batch.scale)
        return Drawn(picture.contiguous(), truth, weight, cover, alpha, matte, inside)
    image = render_features(gaussians, batch.K, batch.w2c, width, height, batch.scale)
    if config.sharp:
        colour, cover = colours()
    else:
        colour, size = None, truth.shape[-2:]
        cover = F.interpolate(window.of_features(image.alpha), size, mode="bilinear")
    picture = super_resolution(window.of_features(image.whole, image.margin), colour)
    return Drawn(
        picture, truth, weight, cover, image.alpha, batch.alpha, batch.small_weight,
        (image.colour, batch.small),
    )  # fmt: skip


def loss_terms(
    drawn: Drawn, perceptual: PerceptualDistance | None, kind: str | None
) -> dict[str, Tensor]:
    """The unweighted terms; the word before "_" names the weight.

    Args:
        kind: of KINDS, the size at which the perceptual distance is taken, if at all.
    """
    full = drawn.picture, drawn.truth, drawn.weight
    terms = {
        "picture": l1(*full),
        "structure": structural_dissimilarity(*full),
        "silhouette": soft_iou(drawn.alpha, drawn.matte, drawn.inside),
    }
    if drawn.small is not None:
        terms["small"] = l1(*drawn.small, drawn.inside)
    if perceptual is not None and kind is not None:
        if kind == "small" and drawn.small is not None:
            shown, truth, counts = *drawn.small, drawn.inside
        else:
            shown, truth, counts = full
        seen = torch.where(counts > 0, shown, truth)
        terms[f"perceptual_{kind}"] = perceptual(seen, truth)
    return terms


def _optimiser(
    head: GaussianHead, drawing: list[nn.Parameter], corrections: Corrections, rates: Rates
) -> torch.optim.Adam:
    own = head.of_each_gaussian()
    groups = [{"params": [part], "lr": getattr(rates, name)} for name, part in own.items()]
    networks = list(head.parameters())[len(own) :]
    groups.append({"params": networks, "lr": rates.networks})
    groups.append({"params": drawing, "lr": rates.super_resolution})
    groups.append({"params": [corrections.poses], "lr": rates.pose_correction})
    groups.append({"params": [corrections.expressions], "lr": rates.expression_correction})
    groups.append({"params": [corrections.colours], "lr": rates.camera_colour})
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
