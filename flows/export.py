"""``gha export``: files of an avatar that other programs open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.avatar import Avatar
from gha_core.avatar.initialise import TrackedFace
from gha_core.cameras import Camera
from gha_core.dataset import Dataset
from gha_core.errors import ArtifactError, ParameterError
from gha_core.evaluation import regions
from gha_core.evaluation.scoring import TASKS, choose_views
from gha_core.export import baking, loss, page, splats, targets
from gha_core.export.face import vertex_colours, write_glb
from gha_core.export.fit import fit
from gha_core.export.ply import write_ply
from gha_core.export.spz import write_spz
from gha_core.pose import HeadPose
from gha_core.progress import track
from gha_core.reenactment import frontal_camera, read_motion
from gha_core.splits import Splits
from tasks.parameters import resolve

SUBJECTS, OUTPUTS = Path("data", "subjects"), Path("outputs")
FORMATS = ("ply", "spz", "glb", "html")
NEUTRAL = "neutral"
FRAME_TARGETS, BAKED_TARGETS = 40, 240  # full renders that an export is fitted to
FRAME_STEPS, BAKED_STEPS = 240, 240  # of the fits to them
LOSS_VIEWS = 24  # held-out views that the loss of baking is measured on
LARGEST_PAGE = 30e6  # bytes


@dataclass(frozen=True)
class Exported:
    """A file, and what a person should know of it."""

    path: Path
    note: str


def export(
    name: str, formats: Sequence[str], frame: str = NEUTRAL, folder: Path | None = None
) -> Iterator[Exported]:
    """Write ``folder/NAME….FORMAT`` for each format, each complete or not at all.

    Args:
        frame: of the plain 3DGS files: "neutral", or SEQUENCE:TIMESTEP as it was tracked.
        folder: default: outputs/.

    Raises:
        ArtifactError: a stage that is read is missing or damaged.
        ParameterError: an unknown format or frame.
    """
    for each in formats:
        if each not in FORMATS:
            raise ParameterError(f"There is no format {each!r}; known are: {', '.join(FORMATS)}.")
    source = Source(name)
    moment, label = source.moment(frame)
    folder = folder or OUTPUTS
    folder.mkdir(parents=True, exist_ok=True)
    if {"ply", "spz"} & set(formats):
        plain, note = _plain(source, moment)
        for each, write in (("ply", write_ply), ("spz", write_spz)):
            if each in formats:
                path = folder / f"{name}_{label}.{each}"
                yield written(path, partial(write, splats=plain), note)
    if "glb" in formats:
        yield written(folder / f"{name}.glb", *_face(source))
    if "html" in formats:
        text, note = _page(source)
        yield written(folder / f"{name}.html", lambda to: _text(to, text), note)


class Source:
    """What is read of a subject."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = {
            stage: _folder(name, stage).absolute() for stage in ("ingest", "matting", "tracking")
        }
        self.avatar = Avatar.load(_folder(name, "avatar"))
        # Not needed to draw it, but all that was held out stays out of what is fitted.
        self.splits: Splits = resolve(Path(), "avatar", name).splits

    @cached_property
    def dataset(self) -> Dataset:
        return Dataset(
            self.folder["ingest"], self.folder["matting"], self.folder["tracking"], self.splits
        )

    @cached_property
    def cameras(self) -> list[Camera]:
        """Those that training saw."""
        used = {view.camera for view in self.dataset.train}
        return [self.dataset.cameras[name] for name in sorted(used)]

    @cached_property
    def motions(self) -> list[baking.Motion]:
        """Of the timesteps that training saw."""
        moments = {(v.sequence, v.timestep): v.motion for v in self.dataset.train}
        return [moments[key] for key in sorted(moments)]

    @property
    def mean_pose(self) -> HeadPose:
        return splats.mean_training_pose(self.avatar.head)

    @property
    def licences(self) -> str:
        each = [f"{model}: {licence}" for model, licence in self.avatar.licences.items()]
        return "; ".join(each) or "none recorded"

    def moment(self, frame: str) -> tuple[baking.Motion, str]:
        """Pose and expression of a frame, and how files call it."""
        if frame == NEUTRAL:
            return (self.mean_pose, self.rest), NEUTRAL
        sequence, _, timestep = frame.rpartition(":")
        known = read_motion(self.folder["tracking"])
        for motion in known:
            if (motion.sequence, str(motion.timestep)) == (sequence, timestep.lstrip("0") or "0"):
                return (motion.pose, motion.expression), f"{sequence}_{motion.timestep:05d}"
        extent: dict[str, list[int]] = {}
        for motion in known:
            extent.setdefault(motion.sequence, []).append(motion.timestep)
        listed = ", ".join(f"{key}:{min(t)} to {key}:{max(t)}" for key, t in extent.items())
        raise ParameterError(
            f"{self.name} has no tracked frame {frame!r}. It is {NEUTRAL}, or one of {listed}."
        )

    @property
    def rest(self) -> NDArray[np.float32]:
        return np.zeros(self.avatar.head.config.expressions, np.float32)


def _plain(source: Source, moment: baking.Motion) -> tuple[splats.Splats, str]:
    """Gaussians on stage that look like the full render of one moment."""
    avatar = source.avatar

    def full(count: int, seed: int) -> list[targets.Target]:
        shots = targets.shots(source.cameras, [moment], count, np.random.default_rng(seed))
        return [targets.target(avatar, shot) for shot in shots]

    fitted = start = splats.of_frame(avatar.head, moment[0], torch.from_numpy(moment[1]))
    unseen = full(8, seed=1)
    note = f"{len(start.visible())} Gaussians; "
    if avatar.super_resolution is None:  # they are all that the full render shows
        note += f"{loss.likeness(start, unseen):.1f} dB PSNR against the full render"
    else:
        fitted = fit(start, full(FRAME_TARGETS, seed=0), FRAME_STEPS)
        note += (
            f"{loss.likeness(fitted, unseen):.1f} dB PSNR against the full render "
            f"({loss.likeness(start, unseen):.1f} dB before colours were fitted)"
        )
    return fitted.moved(splats.inverse(splats.stage_pose(avatar.head))), note


def _face(source: Source) -> tuple[Callable[[Path], None], str]:
    face = TrackedFace.load(source.folder["tracking"])
    colours = vertex_colours(source.avatar, face, source.cameras, source.mean_pose)
    note = f"{len(face.vertices)} vertices, {len(face.basis)} morph targets"
    scale = source.mean_pose.scale
    return lambda to: write_glb(to, face, colours, scale, f"Licences: {source.licences}"), note


def _page(source: Source) -> tuple[str, str]:
    avatar, head = source.avatar, source.avatar.head
    rng = np.random.default_rng(0)
    baked = baking.bake(head, source.motions)
    chosen = targets.shots(source.cameras, source.motions, BAKED_TARGETS, rng)
    seen = [
        (shot, head.condition(shot.pose), targets.target(avatar, shot))
        for shot in track(chosen, "rendering in full", total=len(chosen))
    ]
    stored = page.Stored.of(baking.refine(baked, seen, BAKED_STEPS))
    shown = baking.BakedAvatar(stored.as_shown(), head)

    views = choose_views(source.dataset, LOSS_VIEWS)
    task = next((task for task in TASKS if task in views), None)
    lost = "nothing was held out, so what baking costs is not known"
    if task:
        face = regions.TrackedFace.load(source.folder["tracking"])
        full, less, between = loss.against_truth(avatar, shown, source.dataset, face, views[task])
        lost = (
            f"{less:.2f} dB PSNR of the head on {len(views[task])} held-out views, "
            f"{full:.2f} dB in full (against each other {between:.1f} dB)"
        )
    text = page.render_page(
        source.name,
        f"Baked: {lost}. Models that had a part in it: {source.licences}.",
        stored,
        avatar.expression_names,
        clips(source),
        page.first_view(
            frontal_camera(list(source.dataset.cameras.values()), [source.mean_pose]),
            source.mean_pose,
        ),
    )
    if len(text) > LARGEST_PAGE:
        raise ParameterError(
            f"The page of {source.name} would have {len(text) / 1e6:.0f} MB; more than "
            f"{LARGEST_PAGE / 1e6:.0f} MB open slowly. Train it with fewer avatar.gaussians."
        )
    return text, f"{len(text) / 1e6:.1f} MB; baked: {lost}"


def clips(source: Source) -> list[page.Clip]:
    """All tracked sequences, at their frame rate."""
    times: dict[str, dict[int, float]] = {}
    for view in source.dataset.views:
        times.setdefault(view.sequence, {})[view.timestep] = view.time
    clips = []
    for sequence, each in times.items():
        motions = read_motion(source.folder["tracking"], sequence)
        steps = np.diff(sorted(each.values()))
        clips.append(
            page.Clip(
                sequence,
                float(1 / np.median(steps)) if len(steps) and np.median(steps) > 0 else 25.0,
                np.stack([motion.expression for motion in motions]),
                np.stack([source.avatar.head.condition(m.pose).numpy() for m in motions]),
            )
        )
    return clips


def written(path: Path, write: Callable[[Path], Any], note: str) -> Exported:
    with _whole(path) as temporary:
        write(temporary)
    return Exported(path, note)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A sibling to write to, which takes the place of ``path`` when it is complete."""
    temporary = path.with_name(f".{path.stem}.writing{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _folder(name: str, stage: str) -> Path:
    folder = SUBJECTS / name / stage
    if not folder.is_dir():
        raise ArtifactError(f"{name} has no {stage} yet. Run: gha run {name}")
    return folder
