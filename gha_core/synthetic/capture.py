"""Films the demo person: a raw NeRSemble-v2 tree, and the truth beside it.

``OUT/<ID>`` is what a person would register; nothing in it says more than a real capture does.
``OUT/truth`` holds what only tests may read (:mod:`gha_core.synthetic.truth`).
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import encode_jpeg
from gha_core.cameras import Camera
from gha_core.errors import ParameterError
from gha_core.faces import head_model
from gha_core.pose import HeadPose
from gha_core.progress import track
from gha_core.synthetic import light, shapes, studio, truth
from gha_core.synthetic.actor import Actor
from gha_core.synthetic.performance import Performance, perform
from gha_core.synthetic.person import draw_person
from gha_core.synthetic.render import render

Image = NDArray[np.uint8]
Floats = NDArray[np.floating]

SEQUENCES = ("EMO-1-shout+laugh", "SEN-01-cramp_small_danger", "FREE")
LAMP_SAMPLES = (5, 2, 2, 9)  # of key, fill, rim and the room
NECK = np.array([0.0, -0.42, -0.12])  # where the head turns, head space
MIDDLE = np.array([0.0, 0.0, 0.06])  # what the rig looks at, head space


@dataclass(frozen=True)
class Settings:
    """What to film.

    Attributes:
        seed: of the person, the performance and the studio.
        subject: NeRSemble's three-digit id.
        cameras: 2..10. timesteps: frames of each of SEQUENCES.
        width, height: pixels, portrait. fps: of the videos.
        noise: standard deviation of the sensor's noise, 8-bit levels.
        crf: quality of the H.264 videos (lower is better).
    """

    seed: int = 1
    subject: str = "001"
    cameras: int = 10
    timesteps: tuple[int, ...] = (36, 36, 24)
    width: int = 288
    height: int = 384
    fps: int = 15
    noise: float = 1.2
    crf: int = 13

    def __post_init__(self) -> None:
        if not 2 <= self.cameras <= len(studio.RIG):
            raise ParameterError(
                f"The demo studio has 2 to {len(studio.RIG)} cameras, not {self.cameras}."
            )
        if len(self.timesteps) != len(SEQUENCES) or min(self.timesteps) < 1:
            raise ParameterError(
                f"Give the number of timesteps of each of the {len(SEQUENCES)} sequences, "
                f"not {self.timesteps}."
            )
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 32:
            raise ParameterError(
                f"H.264 needs an even image size of at least 32 pixels, not "
                f"{self.width}x{self.height}."
            )


SIZES = {
    "demo": Settings(),
    "small": Settings(cameras=4, timesteps=(8, 8, 6), width=144, height=192),
}


@dataclass(frozen=True)
class _Shot:
    """One timestep as filmed: the face model's ``vertices`` and, per camera, image and matte."""

    vertices: Floats
    images: list[Image]
    mattes: list[dict[str, Any]]


def film(out: Path, settings: Settings, workers: int | None = None) -> Path:
    """Write the capture to ``out/<subject>`` and the truth to ``out/truth``; equal settings give
    equal files. Returns the capture's folder.

    Args:
        workers: threads; all processors by default.

    Raises:
        ParameterError: ``out`` already holds a capture.
    """
    capture, facts = Path(out) / settings.subject, Path(out) / "truth"
    for folder in (capture, facts):
        if folder.exists():
            raise ParameterError(f"{folder} exists already; choose another folder or delete it.")
    studio_rng = np.random.default_rng([settings.seed, 10])
    cameras = studio.rig(settings.cameras, settings.width, settings.height, studio_rng)
    lights, ambient = studio.lights(studio_rng)
    lamps = light.sample_lamps(lights, ambient, studio_rng, LAMP_SAMPLES)
    model = head_model()
    person = draw_person(settings.seed, model, shapes.sex_direction(model))
    actor = Actor(model, person, lamps)
    scale = person.head_length
    rest = HeadPose(np.zeros(3), studio.HEAD_CENTRE - scale * MIDDLE, scale)
    plates = {
        camera.name: studio.background(camera, np.random.default_rng([settings.seed, 11, number]))
        for number, camera in enumerate(cameras)
    }

    def shoot(number: int, t: int, expression: Floats, pose: HeadPose) -> _Shot:
        stage = actor.stage(expression, pose, rest)
        images, mattes = [], []
        for c, camera in enumerate(cameras):
            picture = render(actor, stage, camera, lights)
            behind = plates[camera.name] * (1 - picture.alpha[..., None])
            sensor = np.random.default_rng([settings.seed, 13, number, t, c])
            images.append(expose(picture.colour + behind, settings, sensor))
            mattes.append(
                truth.matte_row(settings.subject, SEQUENCES[number], t, camera, picture.alpha)
            )
        return _Shot(stage.model_vertices, images, mattes)

    _write_calibration(capture, cameras)
    _write_plates(capture, cameras, plates, settings)
    mattes: list[dict[str, Any]] = []
    recorder = truth.Recorder(facts, settings.subject, model, person, actor.neutral, cameras)
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        for number, (name, count) in enumerate(zip(SEQUENCES, settings.timesteps, strict=True)):
            rng = np.random.default_rng([settings.seed, 12, number])
            acted = perform(name, model.expression_names, count, settings.fps, rng)
            poses = [_pose(acted, t, rest) for t in range(count)]
            folder = capture / "sequences" / name / "images"
            folder.mkdir(parents=True)
            shots = pool.map(shoot, repeat(number), range(count), acted.expression, poses)
            vertices = []
            with ExitStack() as stack:
                videos = [
                    stack.enter_context(Video(folder / f"cam_{camera.name}.mp4", camera, settings))
                    for camera in cameras
                ]
                for shot in track(shots, f"filming {name}", count):
                    vertices.append(shot.vertices)
                    mattes.extend(shot.mattes)
                    for video, image in zip(videos, shot.images, strict=True):
                        video.add(image)
            recorder.sequence(name, acted.expression, poses, np.stack(vertices))
    recorder.finish(mattes, asdict(settings))
    return capture


def expose(colour: Floats, settings: Settings, rng: np.random.Generator) -> Image:
    """Linear RGB [H, W, 3] to noisy sRGB bytes."""
    level = np.clip(colour, 0, 1) * (len(_SRGB) - 1)
    levels = _SRGB[(level + 0.5).astype(np.int32)]
    noisy = levels + rng.standard_normal(levels.shape, np.float32) * np.float32(settings.noise)
    return np.clip(noisy + 0.5, 0, 255).astype(np.uint8)


def _srgb_levels(count: int = 4096) -> NDArray[np.float32]:
    value = np.linspace(0, 1, count)
    curve = np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)
    return (255 * curve).astype(np.float32)


_SRGB = _srgb_levels()


def _pose(acted: Performance, t: int, rest: HeadPose) -> HeadPose:
    yaw, pitch, roll = acted.rotation[t]
    turn = np.eye(3)
    for axis in ([0, yaw, 0], [pitch, 0, 0], [0, 0, roll]):
        turn = turn @ cv2.Rodrigues(np.array(axis, float))[0]
    rotation = np.asarray(cv2.Rodrigues(turn)[0], float).ravel()
    pivot = rest.to_world(NECK)
    translation = pivot - rest.scale * turn @ NECK + acted.sway[t]
    return HeadPose(rotation, translation, rest.scale)


class Video:
    """An H.264 file of one camera; use as a context manager."""

    def __init__(self, path: Path, camera: Camera, settings: Settings) -> None:
        self._container = av.open(str(path), "w")
        stream = self._container.add_stream("libx264", rate=Fraction(settings.fps))
        stream.width, stream.height = camera.width, camera.height
        stream.pix_fmt = "yuv444p"  # lips and irises would lose their edges in 4:2:0
        # One thread: the number of threads changes what x264 writes.
        stream.options = {"crf": str(settings.crf), "preset": "veryfast", "threads": "1"}
        self._stream = stream

    def __enter__(self) -> Video:
        return self

    def add(self, image: Image) -> None:
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()


def _write_calibration(capture: Path, cameras: list[Camera]) -> None:
    folder = capture / "calibration"
    folder.mkdir(parents=True)
    content = {
        "world_2_cam": {camera.name: camera.w2c.tolist() for camera in cameras},
        "intrinsics": {camera.name: camera.K.tolist() for camera in cameras},
        "height": cameras[0].height,
        "width": cameras[0].width,
    }
    (folder / "camera_params.json").write_text(json.dumps(content, indent=1) + "\n")


def _write_plates(
    capture: Path, cameras: list[Camera], plates: dict[str, NDArray[np.float32]], settings: Settings
) -> None:
    folder = capture / "sequences" / "BACKGROUND"
    folder.mkdir(parents=True)
    for number, camera in enumerate(cameras):
        rng = np.random.default_rng([settings.seed, 14, number])
        image = expose(plates[camera.name], settings, rng)
        (folder / f"image_{camera.name}.jpg").write_bytes(encode_jpeg(image, 97))
