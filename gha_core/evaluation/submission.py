"""Submissions to the NeRSemble benchmark: the avatar as the hold-out cameras would see it.

A zip of ``<ID>/<SEQUENCE>/cam_<serial>.mp4``: H.264 at crf 14, as many frames as the sequence has,
the person over white as in the task's own pictures.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from gha_core.artifacts.images import Image
from gha_core.artifacts.videos import write_video
from gha_core.cameras import Camera
from gha_core.capture import Capture, open_capture
from gha_core.capture.nersemble import (
    CALIBRATION,
    calibrated_cameras,
    participant_folder,
)
from gha_core.capture.tracked import TrackedFace
from gha_core.errors import ArtifactError, ParameterError
from gha_core.evaluation.scoring import Drivable, side_by_side
from gha_core.fitting import rotations
from gha_core.fitting.given_poses import GivenPoses, adopt
from gha_core.pose import HeadPose
from gha_core.progress import track
from gha_core.reenactment import Motion, read_motion

CRF = 14
# Fewer tracked timesteps than this share are no sequence with gaps, but another choice of frames.
_LEAST_TRACKED = 0.8
_RIDGE = 1e-2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Benchmark:
    """One task.

    Attributes:
        sequences: participant -> the sequences to render.
        cameras: serials to render them from.
        width, height: of the videos, px.
        rate: frames per second, where no video of the sequence says it.
    """

    name: str
    sequences: Mapping[str, tuple[str, ...]]
    cameras: tuple[str, ...]
    width: int
    height: int
    rate: float


_MONO = ("EMO-1-shout+laugh", "FREE", "SEN-09-frown_events_bad", "SEN-10-port_strong_smokey")
BENCHMARKS = {
    task.name: task
    for task in (
        Benchmark(
            "nvs",
            {
                "388": ("GLASSES",),
                "422": ("EXP-2-eyes",),
                "443": ("FREE",),
                "445": ("EXP-6-tongue-1",),
                "475": ("HAIR",),
            },
            ("222200046", "222200037", "222200039"),
            1100,
            1604,
            73.0,
        ),
        Benchmark(
            "mono",
            dict.fromkeys(("393", "404", "461", "477", "486"), _MONO),
            ("222200046", "220700191", "222200039", "222200037"),
            512,
            512,
            24.3,
        ),
    )
}


@dataclass(frozen=True)
class Entrant:
    """One participant's avatar.

    Attributes:
        subject: what people here call it; for sentences.
        capture: the participant's folder of the benchmark; tracking: our artifact.
    """

    subject: str
    capture: Path
    tracking: Path
    avatar: Drivable

    @property
    def participant(self) -> str:
        return participant_folder(self.capture).name


@dataclass(frozen=True)
class Submission:
    """What was packed: name in the zip -> number of frames; and what to know about it."""

    videos: dict[str, int]
    notes: list[str]


def pack(task: Benchmark, entrants: Sequence[Entrant], path: Path, partial: bool) -> Submission:
    """Render all videos and write the zip, complete or not at all.

    Args:
        partial: whether participants of the task may be missing.

    Raises:
        ParameterError: a participant is not of the task, named twice, or missing.
        ArtifactError: a sequence has no motion to drive the avatar with.
        CaptureError: the calibration lacks a hold-out camera, or cannot be read.
    """
    known = _participants(task, entrants, partial)
    submission = Submission({}, [])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    video = path.with_name(f".{path.name}.mp4")
    try:
        # Videos do not get smaller by deflating.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for participant, entrant in known.items():
                for name, frames, rate in _videos(task, entrant, submission.notes):
                    shown = track(frames, name, total=len(frames))
                    drawn = side_by_side(lambda job: _drawn(*job), shown)
                    count = write_video(video, drawn, rate, CRF)
                    archive.write(video, f"{participant}/{name}")
                    submission.videos[f"{participant}/{name}"] = count
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        video.unlink(missing_ok=True)
    return submission


def _participants(
    task: Benchmark, entrants: Sequence[Entrant], partial: bool
) -> dict[str, Entrant]:
    known: dict[str, Entrant] = {}
    listed = ", ".join(task.sequences)
    for entrant in entrants:
        participant = entrant.participant
        if participant not in task.sequences:
            raise ParameterError(
                f"{entrant.subject} is participant {participant} (the name of its capture's "
                f"folder), who is not in the task {task.name}: {listed}."
            )
        if participant in known:
            raise ParameterError(
                f"{known[participant].subject} and {entrant.subject} are both participant "
                f"{participant}; name one of them."
            )
        known[participant] = entrant
    missing = [each for each in task.sequences if each not in known]
    if missing and not partial:
        raise ParameterError(
            f"The task {task.name} has participants {listed}; {', '.join(missing)} is missing. Add "
            "the subject, or give --partial for a zip that the benchmark may not take."
        )
    return known


Job = tuple[Drivable, Camera, Motion]


def _videos(
    task: Benchmark, entrant: Entrant, notes: list[str]
) -> Iterator[tuple[str, list[Job], float]]:
    """(name, what to draw in each frame, frames per second) of one participant's videos."""
    root = participant_folder(entrant.capture)
    capture = open_capture(root, "nersemble")
    cameras = _cameras(task, root)
    rates = {each.name: each.rate for each in capture.sequences}
    notes += [f"{entrant.subject}: {note}" for note in capture.notes]
    for sequence in task.sequences[entrant.participant]:
        motions = _motions(entrant, capture, sequence, notes)
        for camera in cameras:
            jobs = [(entrant.avatar, camera, motion) for motion in motions]
            yield f"{sequence}/cam_{camera.name}.mp4", jobs, rates.get(sequence, task.rate)


def _drawn(avatar: Drivable, camera: Camera, motion: Motion) -> Image:
    return avatar.render(camera, motion.pose, motion.expression)[0]


def _cameras(task: Benchmark, root: Path) -> list[Camera]:
    found = sorted(root.glob("sequences/*/images/cam_*.mp4"))
    pictures: dict[str, dict[str, Path]] = {}
    for each in found:
        pictures.setdefault(each.parents[1].name, {})[each.stem.removeprefix("cam_")] = each
    known = calibrated_cameras(root / CALIBRATION, pictures, [])
    for serial in task.cameras:
        if serial not in known:
            raise ParameterError(
                f"{root / CALIBRATION} has no camera {serial}, from which the task {task.name} "
                f"wants to see; it has {', '.join(sorted(known))}."
            )
    return [known[serial].resized(task.width, task.height) for serial in task.cameras]


def _motions(entrant: Entrant, capture: Capture, sequence: str, notes: list[str]) -> list[Motion]:
    """The head in every frame of a sequence, from 0: as we tracked it; else as the benchmark did,
    in our terms."""
    every = read_motion(entrant.tracking)
    tracked = {motion.timestep: motion for motion in every if motion.sequence == sequence}
    given = capture.tracking.frames if capture.tracking else {}
    filmed = {each.name: list(each.timesteps) for each in capture.sequences}
    wanted = filmed.get(sequence) or sorted(t for name, t in given if name == sequence)
    where = f"{sequence} of {entrant.subject}"
    if not wanted:
        raise ArtifactError(
            f"{where}: {entrant.capture} has neither videos nor tracking of this sequence."
        )
    absent = [timestep for timestep in wanted if timestep not in tracked]
    if not absent:
        return [tracked[timestep] for timestep in wanted]
    if len(absent) <= (1 - _LEAST_TRACKED) * len(wanted):
        notes.append(f"{where}: {len(absent)} of {len(wanted)} frames were not tracked; between.")
        return _between(tracked, wanted)
    if all((sequence, timestep) in given for timestep in wanted):
        notes.append(f"{where}: driven by the benchmark's tracking, translated by our training's.")
        return _translated(every, given, sequence, wanted, where)
    raise ArtifactError(
        f"{where}: {len(wanted) - len(absent)} of {len(wanted)} frames are tracked, and the "
        "benchmark wants all of them. Set ingest.stride: 1, ingest.fps: null and "
        "ingest.max_frames: null, choose the sequence in ingest.sequences, hold it out "
        "(splits.test_sequences), and run again."
    )


def _between(tracked: Mapping[int, Motion], wanted: Sequence[int]) -> list[Motion]:
    """Gaps filled from both sides; before the first and after the last it stands still."""
    known = sorted(tracked)
    motions = [tracked[timestep] for timestep in known]
    places = np.clip(np.array(wanted, float), known[0], known[-1])

    def curve(values: list[Any]) -> Floats:
        table = np.array(values, float).reshape(len(known), -1)
        return np.stack([np.interp(places, known, column) for column in table.T], axis=1)

    turns = Rotation.from_rotvec([motion.pose.rotation for motion in motions])
    turned = turns if len(known) == 1 else Slerp(known, turns)(places)
    rotation = np.broadcast_to(turned.as_rotvec(), (len(wanted), 3))
    translation = curve([motion.pose.translation for motion in motions])
    scale = curve([motion.pose.scale for motion in motions])[:, 0]
    expression = curve([motion.expression for motion in motions]).astype(np.float32)
    return [
        Motion(motions[0].sequence, timestep, HeadPose(*pose), coefficients)
        for timestep, *pose, coefficients in zip(
            wanted, rotation, translation, scale, expression, strict=True
        )
    ]


def _translated(
    every: Sequence[Motion],
    given: Mapping[tuple[str, int], TrackedFace],
    sequence: str,
    wanted: Sequence[int],
    where: str,
) -> list[Motion]:
    """The other tracker's motion in the terms of ours, learned where both saw the head: poses by
    :func:`gha_core.fitting.given_poses.adopt`, expressions by ridge regression."""
    ours = [motion for motion in every if (motion.sequence, motion.timestep) in given]
    if len(ours) < 2:
        raise ArtifactError(
            f"{where}: its videos are withheld, and no frame is in both the benchmark's tracking "
            "and ours, from which to learn what its coefficients mean. Train on a sequence that "
            "comes with tracking."
        )
    faces = [given[motion.sequence, motion.timestep] for motion in ours]
    faces += [given[sequence, timestep] for timestep in wanted]
    count, known = len(ours), np.arange(len(faces)) < len(ours)
    own_rotation, own_translation = (
        np.tile(np.eye(3), (len(faces), 1, 1)),
        np.zeros((len(faces), 3)),
    )
    own_rotation[:count] = [motion.pose.matrix for motion in ours]
    own_translation[:count] = [motion.pose.translation for motion in ours]
    adopted = adopt(
        GivenPoses(
            rotations.exponential(np.stack([face.rotation for face in faces])),
            rotations.exponential(np.stack([face.root for face in faces])),
            np.stack([face.translation for face in faces]),
            np.ones(len(faces), bool),
        ),
        own_rotation,
        own_translation,
        known,
    )
    names = sorted(set.intersection(*(set(face.coefficients) for face in faces)))
    if not names:
        raise ArtifactError(f"{where}: the benchmark's tracking has poses but no expressions.")
    read = np.stack([np.concatenate([face.coefficients[n] for n in names]) for face in faces])
    answers = _regress(read[known], np.stack([m.expression for m in ours]).astype(float), read)
    scale = float(np.median([motion.pose.scale for motion in ours]))
    return [
        Motion(
            sequence,
            timestep,
            HeadPose(
                Rotation.from_matrix(adopted.rotation[count + place]).as_rotvec(),
                adopted.translation[count + place],
                scale,
            ),
            answers[count + place].clip(0, 1).astype(np.float32),
        )
        for place, timestep in enumerate(wanted)
    ]


def _regress(inputs: Floats, outputs: Floats, at: Floats) -> Floats:
    """Ridge regression of ``outputs`` [n, E] on ``inputs`` [n, C], centred, answered for ``at``."""
    centre, mean = inputs.mean(0), outputs.mean(0)
    spread = inputs.std(0) + 1e-9
    x = (inputs - centre) / spread
    # With fewer moments than coefficients the dual problem is the smaller one.
    gram = x @ x.T + _RIDGE * len(x) * np.eye(len(x))
    weights = x.T @ np.linalg.solve(gram, outputs - mean)
    return np.asarray(mean + (at - centre) / spread @ weights)
