"""``gha reenact``: a video of one subject's avatar, moved by a driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from flows.drivers import Driver, stage_folder
from gha_core.artifacts.images import Image
from gha_core.artifacts.videos import write_video
from gha_core.avatar import Avatar
from gha_core.cameras import Camera
from gha_core.dataset import Dataset, View
from gha_core.errors import ParameterError
from gha_core.memory import keep_freed_memory
from gha_core.pose import HeadPose
from gha_core.progress import track
from gha_core.reenactment.cameras import at_size, frontal_camera, orbit, seen_as
from gha_core.reenactment.coefficients import write_coefficients
from gha_core.reenactment.motion import (
    Motion,
    in_terms_of,
    read_expression_names,
    read_motion,
)
from gha_core.reenactment.retargeting import (
    Habit,
    farthest,
    held_still,
    in_the_habit_of,
    mean_pose,
    retarget,
    smoothed,
)
from gha_core.splits import Splits

OUTPUTS = Path("outputs")
FRONT, ORBIT, DRIVER = "front", "orbit", "driver"


@dataclass(frozen=True)
class Options:
    """How a driver moves an avatar, and how that is shown.

    Attributes:
        camera: "front" (the most frontal one), "orbit", "driver" (as the driver was filmed), or a
            camera of the avatar's own capture.
        swing: of the orbit to each side, degrees.
        height, width: of the avatar's picture, px; None: as the camera's own frames.
        head_pose: whether the head moves.
        rest: "auto": expressions are relative to the driver's face at rest, unless the driver is
            the subject, or an app that did that, whose blinks end where the subject's lids are
            closed; "keep": coefficients as they are.
        smooth: seconds, standard deviation of the window in time; 0: none.
        beside: whether the driver's photo stands beside the avatar.
    """

    camera: str = FRONT
    swing: float = 30.0
    height: int | None = None
    width: int | None = None
    head_pose: bool = True
    rest: str = "auto"
    smooth: float = 0.0
    beside: bool = True


@dataclass(frozen=True)
class Scene:
    """What is filmed: one motion and one camera per frame."""

    motions: list[Motion]
    cameras: list[Camera]


def reenact(
    name: str,
    driver: Driver,
    options: Options,
    output: Path | None = None,
    coefficients: Path | None = None,
) -> Path:
    """Write the video: the driver's photo (if its frames are at hand) beside the avatar.

    Args:
        coefficients: where to write what the avatar does, as a CSV.

    Raises:
        ArtifactError: the avatar, or what it was made from, is not made yet.
        ParameterError: the capture has no such camera, or the driver's coefficients mean nothing to
            the avatar.
    """
    keep_freed_memory()
    avatar = Avatar.load(stage_folder(name, "avatar"))
    own = Dataset(stage_folder(name, "ingest"), None, stage_folder(name, "tracking"), Splits())
    scene = stage(name, driver, options, own)
    if coefficients:
        write_coefficients(coefficients, name, scene.motions, avatar.expression_names, driver.rate)
    path = output or OUTPUTS / f"{name}_by_{driver.label}.mp4"
    frames = _frames(
        avatar, scene, _photos(driver, options, name) if options.beside else {}, driver
    )
    write_video(path, track(frames, "driving", total=len(scene.motions)), rate=driver.rate)
    return path


def stage(name: str, driver: Driver, options: Options, own: Dataset) -> Scene:
    """The driver's motions for the avatar of ``name``, and where they are seen from.

    Args:
        own: the avatar's capture.
    """
    tracking = stage_folder(name, "tracking")
    names, target = read_expression_names(tracking), read_motion(tracking)
    motions = moving(name, driver, options, names, target)
    poses = [motion.pose for motion in target]
    frontal = frontal_camera(list(own.cameras.values()), poses)
    count = len(motions)
    if options.camera == ORBIT:
        base = at_size(frontal, options.height or frontal.height, options.width)
        swing = np.radians(options.swing)
        return Scene(motions, orbit(base, mean_pose(target), swing, count, driver.rate))
    if options.camera == DRIVER:
        base = _drivers_camera(name, driver, mean_pose(target))
    elif options.camera == FRONT:
        base = frontal
    elif options.camera in own.cameras:
        base = own.cameras[options.camera]
    else:
        raise ParameterError(
            f"{name} has no camera {options.camera!r}. It has: {', '.join(sorted(own.cameras))}; "
            f"there are also: {FRONT}, {ORBIT}, {DRIVER}."
        )
    return Scene(motions, [at_size(base, options.height or base.height, options.width)] * count)


def moving(
    name: str, driver: Driver, options: Options, names: Sequence[str], target: list[Motion]
) -> list[Motion]:
    """What the avatar of ``name`` does.

    Args:
        names: of the avatar's coefficients; target: how the avatar's own subject was tracked.
    """
    if options.rest not in ("auto", "keep"):
        raise ParameterError(f"--rest {options.rest!r}: it is auto or keep.")
    motions = in_terms_of(names, driver.motions, driver.names)
    if driver.subject != name:
        if not driver.calm and options.rest == "auto":
            habits = Habit.of(motions, names), Habit.of(target, names)
            motions = in_the_habit_of(motions, *habits, names)
        elif driver.calm and options.rest == "auto":
            reach = farthest(Habit.of(target, names).full, names)
            motions = [replace(motion, expression=reach * motion.expression) for motion in motions]
        motions = retarget(motions, target)
    if not options.head_pose:
        motions = held_still(motions, mean_pose(target))
    return smoothed(motions, driver.rate, options.smooth) if options.smooth > 0 else motions


def _drivers_camera(name: str, driver: Driver, target: HeadPose) -> Camera:
    if driver.photos is None:
        raise ParameterError(
            f"--camera {DRIVER}: the driver {driver.label} comes without a camera. Choose {FRONT}, "
            f"{ORBIT} or a camera of {name}."
        )
    poses = [motion.pose for motion in driver.motions]
    camera = frontal_camera(list(driver.photos.cameras.values()), poses)
    if driver.subject == name:
        return camera
    return seen_as(camera, mean_pose(driver.motions), target)


def _photos(driver: Driver, options: Options, name: str) -> dict[tuple[str, int], View]:
    """One photo per timestep of the driver: of the chosen camera, or of the most frontal one."""
    if driver.photos is None:
        return {}
    views = driver.photos.views
    camera = options.camera
    if driver.subject != name or camera not in driver.photos.cameras:
        poses = [view.motion[0] for view in views]
        camera = frontal_camera(list(driver.photos.cameras.values()), poses).name
    wanted = {(motion.sequence, motion.timestep) for motion in driver.motions}
    return {
        (view.sequence, view.timestep): view
        for view in views
        if view.camera == camera and (view.sequence, view.timestep) in wanted
    }


def _frames(
    avatar: Avatar, scene: Scene, photos: dict[tuple[str, int], View], driver: Driver
) -> Iterator[Image]:
    for motion, camera in zip(scene.motions, scene.cameras, strict=True):
        image, _ = avatar.render(camera, motion.pose, motion.expression)
        if photos and driver.photos:
            view = photos.get((motion.sequence, motion.timestep))
            photo = driver.photos.image(view) if view else _blank(driver.photos, photos)
            image = np.concatenate([_fitted(photo, camera.height), image], axis=1)
        yield image


def _blank(dataset: Dataset, photos: dict[tuple[str, int], View]) -> Image:
    camera = dataset.cameras[next(iter(photos.values())).camera]
    return np.full((camera.height, camera.width, 3), 255, np.uint8)


def _fitted(image: Image, height: int) -> Image:
    width = round(image.shape[1] * height / image.shape[0])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
