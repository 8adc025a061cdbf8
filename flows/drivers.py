"""Who moves an avatar: a tracked sequence, a plain video, a file of coefficients, the webcam."""

from __future__ import annotations

import hashlib
import importlib
import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image
from gha_core.artifacts.stage_folder import writing
from gha_core.artifacts.tables import write_table
from gha_core.artifacts.videos import write_video
from gha_core.capture.streams import VIDEO_SUFFIXES
from gha_core.dataset import Dataset
from gha_core.errors import ArtifactError, CaptureError, ParameterError, StageError
from gha_core.progress import track
from gha_core.reenactment.coefficients import SUFFIXES, read_coefficients
from gha_core.reenactment.motion import Motion, read_expression_names, read_motion
from gha_core.splits import Splits
from tasks.parameters import Resolved, read_subjects, resolve
from tasks.stage import Inputs

SUBJECTS = Path("data", "subjects")
TRACKED_VIDEOS = Path("data", "drivers")
WEBCAM = "webcam"
_STAGES = ("ingest", "landmarks", "tracking")
_WEBCAM_RATE = 30.0  # frames per second, where the camera does not say


@dataclass(frozen=True)
class Driver:
    """What moves an avatar.

    Attributes:
        label: names the driver in the output's file name.
        motions: what to do, in order; names: of their coefficients; rate: motions per second.
        subject: the subject that was tracked; None if it is none of this project's.
        calm: whether coefficients are relative to the driver's face at rest already.
        photos: the driver's frames, if they are at hand.
    """

    label: str
    motions: list[Motion]
    names: tuple[str, ...]
    rate: float
    subject: str | None
    calm: bool
    photos: Dataset | None


def find_driver(text: str, name: str, seconds: float, folder: Path) -> Driver:
    """What ``--driver`` says: ``SEQUENCE`` of the subject itself, ``SUBJECT``,
    ``SUBJECT:SEQUENCE``, a video, a CSV or JSON of coefficients, ``webcam`` or ``webcam:NUMBER``.

    Args:
        name: the subject whose avatar is driven.
        seconds: how long the webcam is filmed.
        folder: where relative paths start.

    Raises:
        ParameterError: it is none of them; the text names what there is.
        GhaError: the file cannot be read, or shows no face.
    """
    path = folder / Path(text).expanduser()
    if text == WEBCAM or text.startswith(f"{WEBCAM}:"):
        return _of_webcam(text.removeprefix(WEBCAM).removeprefix(":") or "0", name, seconds)
    if path.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES):
        if not path.is_file():
            raise ParameterError(f"The driver {path} does not exist.")
        if path.suffix.lower() in SUFFIXES:
            return _of_coefficients(path, name)
        return _of_video(path, name)
    return _of_subject(*_subject_and_sequence(text, name))


def stage_folder(name: str, stage: str) -> Path:
    """The finished artifact of a stage.

    Raises:
        ArtifactError: it is not made yet.
    """
    folder = SUBJECTS / name / stage
    if not folder.is_dir():
        raise ArtifactError(f"{name} has no {stage} yet. Run: gha run {name}")
    return folder


def _subject_and_sequence(text: str, name: str) -> tuple[str, str | None]:
    subjects = read_subjects(Path())
    subject, _, sequence = text.rpartition(":")
    if subject in subjects:
        return subject, sequence
    own = sorted({motion.sequence for motion in read_motion(stage_folder(name, "tracking"))})
    if text in own:
        return name, text
    if text in subjects:
        return text, None
    raise ParameterError(
        f"--driver {text!r} is neither a sequence of {name} ({', '.join(own)}) nor a subject "
        f"({', '.join(subjects)}) nor SUBJECT:SEQUENCE, nor a video, a .csv or a .json, nor "
        f"{WEBCAM!r}."
    )


def _of_subject(subject: str, sequence: str | None) -> Driver:
    tracking = stage_folder(subject, "tracking")
    photos = Dataset(stage_folder(subject, "ingest"), None, tracking, Splits())
    return Driver(
        label=f"{subject}_{sequence or 'all'}",
        motions=read_motion(tracking, sequence),
        names=read_expression_names(tracking),
        rate=_rate(photos, sequence),
        subject=subject,
        calm=False,
        photos=photos,
    )


def _of_coefficients(path: Path, name: str) -> Driver:
    recording = read_coefficients(path, read_expression_names(stage_folder(name, "tracking")))
    subject, photos = recording.subject, None
    if subject in read_subjects(Path()) and (SUBJECTS / subject / "ingest").is_dir():
        photos = Dataset(
            stage_folder(subject, "ingest"), None, stage_folder(subject, "tracking"), Splits()
        )
    return Driver(
        label=path.stem,
        motions=recording.motions,
        names=recording.names,
        rate=recording.rate,
        subject=subject,
        calm=subject is None,
        photos=photos,
    )


def _of_video(path: Path, name: str) -> Driver:
    folder = _tracked(path, name)
    photos = Dataset(folder / "ingest", None, folder / "tracking", Splits())
    return Driver(
        label=path.stem,
        motions=read_motion(folder / "tracking"),
        names=read_expression_names(folder / "tracking"),
        rate=_rate(photos, None),
        subject=None,
        calm=False,
        photos=photos,
    )


def _of_webcam(source: str, name: str, seconds: float) -> Driver:
    with tempfile.TemporaryDirectory(prefix="gha-webcam-") as folder:
        film = Path(folder, f"{WEBCAM}.mp4")
        camera = cv2.VideoCapture(int(source) if source.isdigit() else source)
        try:
            if not camera.isOpened():
                raise CaptureError(
                    f"The webcam {source} cannot be opened. Is it plugged in, and not in use by "
                    "another program?"
                )
            given = camera.get(cv2.CAP_PROP_FPS)
            rate = given if 1 <= given <= 240 else _WEBCAM_RATE
            count = max(1, round(seconds * rate))
            began = time.monotonic()
            frames = list(track(_filmed(camera, count), "filming", count))
            live = source.isdigit()
            if len(frames) > 1 and live:  # webcams announce a rate that poor light does not allow
                rate = len(frames) / (time.monotonic() - began)
            if not frames:
                raise CaptureError(f"The webcam {source} gives no picture.")
        finally:
            camera.release()
        write_video(film, frames, rate)
        return replace(_of_video(film, name), label=WEBCAM)


def _filmed(camera: cv2.VideoCapture, count: int) -> Iterator[Image]:
    for _ in range(count):
        good, frame = camera.read()
        if not good:
            return
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8)


def _tracked(path: Path, name: str) -> Path:
    """Frames, landmarks and tracking of a plain video, with the face model of ``name``'s avatar.

    Kept in data/drivers/ under a name that is the video's content and the parameters: asked again,
    it is there at once.

    Raises:
        CaptureError: the video is unreadable. StageError: it shows no face.
    """
    resolved = {stage: resolve(Path(), stage, name) for stage in _STAGES}
    default = type(
        resolved["ingest"].params
    )  # the subject's crop and frame rate are not the video's
    resolved["ingest"] = replace(resolved["ingest"], params=default())
    tracking = resolved["tracking"]
    given = tracking.params.model_copy(update={"poses": "auto"})
    resolved["tracking"] = replace(tracking, params=given)
    folder = TRACKED_VIDEOS / _fingerprint(path, resolved)
    if folder.is_dir():
        return folder
    try:
        with writing(folder) as new:
            for stage in _STAGES:
                _run(stage, path, new, resolved[stage])
    except (CaptureError, StageError) as error:
        raise type(error)(f"{path} cannot drive an avatar: {error}") from None
    return folder


def _run(stage: str, path: Path, artifacts: Path, resolved: Resolved) -> None:
    out, work = artifacts / stage, artifacts / "work"
    out.mkdir(parents=True)
    work.mkdir()
    inputs = Inputs("driver", path.resolve(), "monocular", artifacts, work, Splits(), resolved.seed)
    if stage == "landmarks":  # no mattes: the face that is found is the driver's
        (artifacts / "matting").mkdir()
        write_table(artifacts / "matting" / "alpha.parquet", schemas.ALPHA, [])
    with redirect_stdout(io.StringIO()):  # what stages tell their log
        importlib.import_module(f"tasks.{stage}").run(inputs, resolved.params, out)
    shutil.rmtree(work)


def _fingerprint(path: Path, resolved: dict[str, Resolved]) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    for each in resolved.values():
        digest.update(each.params.model_dump_json().encode())
    digest.update(str(schemas.VERSION).encode())
    return digest.hexdigest()[:16]


def _rate(photos: Dataset, sequence: str | None) -> float:
    """Frames per second of a sequence, or of the first."""
    sequence = sequence or photos.views[0].sequence
    times = sorted({view.time for view in photos.views if view.sequence == sequence})
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    return 1.0 / max(step, 1e-3)
