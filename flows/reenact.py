"""``gha reenact``: a video of one subject's avatar, driven by tracked motion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gha_core.artifacts.images import Image
from gha_core.artifacts.videos import write_video
from gha_core.avatar import Avatar
from gha_core.cameras import Camera
from gha_core.dataset import Dataset, View
from gha_core.errors import ArtifactError, ParameterError
from gha_core.progress import track
from gha_core.reenactment import Motion, at_height, frontal_camera, read_motion, retarget
from gha_core.splits import Splits
from tasks.parameters import read_subjects

SUBJECTS = Path("data", "subjects")
OUTPUTS = Path("outputs")


@dataclass(frozen=True)
class Driver:
    """Who moves the avatar: a subject, and one of its sequences (None: all of them)."""

    subject: str
    sequence: str | None


def parse_driver(text: str, name: str) -> Driver:
    """``SEQUENCE`` of the subject itself, ``SUBJECT``, or ``SUBJECT:SEQUENCE``.

    Raises:
        ParameterError: it is neither; the text names what there is.
    """
    subjects = read_subjects(Path())
    subject, _, sequence = text.rpartition(":")
    if subject in subjects:
        return Driver(subject, sequence)
    own = sorted({motion.sequence for motion in read_motion(_folder(name, "tracking"))})
    if text in own:
        return Driver(name, text)
    if text in subjects:
        return Driver(text, None)
    raise ParameterError(
        f"--driver {text!r} is neither a sequence of {name} ({', '.join(own)}) nor a subject "
        f"({', '.join(subjects)}) nor SUBJECT:SEQUENCE."
    )


def reenact(
    name: str, driver: Driver, camera: str | None, height: int | None, output: Path | None
) -> Path:
    """Write the video: the driver's photo (if its frames are at hand) beside the avatar.

    Args:
        camera: a camera of the avatar's own capture; by default the most frontal one.
        height: of the avatar's picture, in pixels; by default that of the camera's frames.

    Raises:
        ArtifactError: the avatar, or the driver's tracking, is not made yet.
        ParameterError: the capture has no such camera.
    """
    avatar = Avatar.load(_folder(name, "avatar"))
    own = Dataset(_folder(name, "ingest"), None, _folder(name, "tracking"), Splits())
    target = read_motion(_folder(name, "tracking"))
    poses = [motion.pose for motion in target]
    if camera is not None and camera not in own.cameras:
        raise ParameterError(
            f"{name} has no camera {camera!r}. It has: {', '.join(sorted(own.cameras))}."
        )
    chosen = own.cameras[camera] if camera else frontal_camera(list(own.cameras.values()), poses)
    chosen = at_height(chosen, height or chosen.height)

    motions = read_motion(_folder(driver.subject, "tracking"), driver.sequence)
    photos, views = own, own.views
    if driver.subject != name:
        motions = retarget(motions, target)
        photos = Dataset(
            _folder(driver.subject, "ingest"), None, _folder(driver.subject, "tracking"), Splits()
        )
        views = photos.views
    beside = _photos(photos, views, motions, camera if driver.subject == name else None)
    path = output or OUTPUTS / f"{name}_by_{driver.subject}_{driver.sequence or 'all'}.mp4"
    times = [view.time for view in beside.values() if view.sequence == motions[0].sequence]
    step = float(np.median(np.diff(sorted(times)))) if len(times) > 1 else 0.04
    frames = track(_frames(avatar, motions, chosen, photos, beside), "driving", total=len(motions))
    write_video(path, frames, rate=1.0 / max(step, 1e-3))
    return path


def _photos(
    photos: Dataset, views: list[View], motions: list[Motion], camera: str | None
) -> dict[tuple[str, int], View]:
    """One photo per timestep of the driver: of ``camera``, or of its most frontal one."""
    if camera is None:
        poses = [view.motion[0] for view in views]
        camera = frontal_camera(list(photos.cameras.values()), poses).name
    wanted = {(motion.sequence, motion.timestep) for motion in motions}
    return {
        (view.sequence, view.timestep): view
        for view in views
        if view.camera == camera and (view.sequence, view.timestep) in wanted
    }


def _frames(
    avatar: Avatar,
    motions: list[Motion],
    camera: Camera,
    photos: Dataset,
    beside: dict[tuple[str, int], View],
) -> Iterator[Image]:
    for motion in motions:
        image, _ = avatar.render(camera, motion.pose, motion.expression)
        view = beside.get((motion.sequence, motion.timestep))
        photo = photos.image(view) if view else np.full_like(image, 255)
        yield np.concatenate([_fitted(photo, camera.height), image], axis=1)


def _fitted(image: Image, height: int) -> Image:
    width = round(image.shape[1] * height / image.shape[0])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _folder(name: str, stage: str) -> Path:
    folder = SUBJECTS / name / stage
    if not folder.is_dir():
        raise ArtifactError(f"{name} has no {stage} yet. Run: gha run {name}")
    return folder
