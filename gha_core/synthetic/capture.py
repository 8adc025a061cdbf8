"""Films the demo person: a raw NeRSemble-v2 tree, and the truth beside it.

``OUT/<ID>`` is what a person would register; nothing in it says more than a real capture does.
``OUT/truth`` holds what only tests may read (:mod:`gha_core.synthetic.truth`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache, partial
from itertools import islice
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
from gha_core.faces import FaceModel, head_model
from gha_core.pose import HeadPose
from gha_core.progress import track
from gha_core.synthetic import light, shapes, studio, truth
from gha_core.synthetic.actor import Actor
from gha_core.synthetic.performance import Performance, perform
from gha_core.synthetic.person import Person, draw_person
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
class _Scene:
    """What stays the same while one person is filmed; ``rest`` is the pose of the head when nothing
    moves, ``plates`` are what each camera sees without the person, linear RGB."""

    cameras: list[Camera]
    lights: list[studio.Light]
    lamps: light.Lamps
    plates: dict[str, NDArray[np.float32]]
    model: FaceModel
    person: Person
    rest: HeadPose


@dataclass(frozen=True)
class _Take:
    """What happens at timestep ``t`` of the sequence with this number."""

    number: int
    t: int
    expression: Floats
    pose: HeadPose


@dataclass(frozen=True)
class _Shot:
    """One timestep as filmed: the face model's ``vertices`` and, per camera, image and matte."""

    vertices: Floats
    images: list[Image]
    mattes: list[dict[str, Any]]


def film(out: Path, settings: Settings, crew: Callable[..., Iterable[_Shot]] = map) -> Path:
    """Write the capture to ``out/<subject>`` and the truth to ``out/truth``; equal settings give
    equal files. Returns the capture's folder.

    Args:
        crew: a ``map``, of this process or of several. It is called when the actor is ready:
            processes that are forked then share it.

    Raises:
        ParameterError: ``out`` already holds a capture.
    """
    capture, facts = Path(out) / settings.subject, Path(out) / "truth"
    for folder in (capture, facts):
        if folder.exists():
            raise ParameterError(f"{folder} exists already; choose another folder or delete it.")
    scene = _scene(settings)
    acts = [
        perform(
            name, scene.model.expression_names, count, settings.fps,
            np.random.default_rng([settings.seed, 12, number]),
        )
        for number, (name, count) in enumerate(zip(SEQUENCES, settings.timesteps, strict=True))
    ]  # fmt: skip
    takes = [
        [
            _Take(number, t, acted.expression[t], _pose(acted, t, scene.rest))
            for t in range(len(acted.expression))
        ]
        for number, acted in enumerate(acts)
    ]
    _actor(settings)  # takes seconds: made here, that forked processes find it
    shots = iter(crew(partial(_shoot, settings), [take for taken in takes for take in taken]))
    _write_calibration(capture, scene.cameras)
    _write_plates(capture, scene, settings)
    recorder = truth.Recorder(facts, settings.subject, scene.model, scene.person, scene.cameras)
    for name, taken in zip(SEQUENCES, takes, strict=True):
        folder = capture / "sequences" / name / "images"
        folder.mkdir(parents=True)
        filmed = track(islice(shots, len(taken)), f"filming {name}", len(taken))
        vertices, mattes = _write_videos(folder, filmed, scene.cameras, settings)
        recorder.sequence(
            name, [take.expression for take in taken], [take.pose for take in taken],
            vertices, mattes,
        )  # fmt: skip
    recorder.finish(asdict(settings))
    return capture


@lru_cache(1)
def _scene(settings: Settings) -> _Scene:
    rng = np.random.default_rng([settings.seed, 10])
    cameras = studio.rig(settings.cameras, settings.width, settings.height, rng)
    lights, ambient = studio.lights(rng)
    lamps = light.sample_lamps(lights, ambient, rng, LAMP_SAMPLES)
    model = head_model()
    person = draw_person(settings.seed, model, shapes.sex_direction(model))
    scale = person.head_length
    plates = {
        camera.name: studio.background(camera, np.random.default_rng([settings.seed, 11, number]))
        for number, camera in enumerate(cameras)
    }
    rest = HeadPose(np.zeros(3), studio.HEAD_CENTRE - scale * MIDDLE, scale)
    return _Scene(cameras, lights, lamps, plates, model, person, rest)


@lru_cache(1)
def _actor(settings: Settings) -> Actor:
    scene = _scene(settings)
    return Actor(scene.model, scene.person, scene.lamps)


def _shoot(settings: Settings, take: _Take) -> _Shot:
    scene, actor = _scene(settings), _actor(settings)
    stage = actor.stage(take.expression, take.pose, scene.rest)
    sequence = SEQUENCES[take.number]
    images, mattes = [], []
    for c, camera in enumerate(scene.cameras):
        picture = render(actor, stage, camera, scene.lights)
        behind = scene.plates[camera.name] * (1 - picture.alpha[..., None])
        sensor = np.random.default_rng([settings.seed, 13, take.number, take.t, c])
        images.append(expose(picture.colour + behind, settings, sensor))
        mattes.append(truth.matte_row(settings.subject, sequence, take.t, camera, picture.alpha))
    return _Shot(stage.model_vertices, images, mattes)


def _write_videos(
    folder: Path, shots: Iterable[_Shot], cameras: list[Camera], settings: Settings
) -> tuple[Floats, list[dict[str, Any]]]:
    """A video per camera; returns the vertices [T, V, 3] and the mattes' rows."""
    vertices, mattes = [], []
    with ExitStack() as stack:
        videos = [
            stack.enter_context(Video(folder / f"cam_{camera.name}.mp4", camera, settings))
            for camera in cameras
        ]
        for shot in shots:
            vertices.append(shot.vertices)
            mattes.extend(shot.mattes)
            for video, image in zip(videos, shot.images, strict=True):
                video.add(image)
    return np.stack(vertices), mattes


def expose(colour: Floats, settings: Settings, rng: np.random.Generator) -> Image:
    """Linear RGB [H, W, 3] to noisy sRGB bytes."""
    level = np.clip(colour, 0, 1) * (len(_SRGB) - 1)
    levels = _SRGB.take((level + 0.5).astype(np.int32))
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


def _write_plates(capture: Path, scene: _Scene, settings: Settings) -> None:
    folder = capture / "sequences" / "BACKGROUND"
    folder.mkdir(parents=True)
    for number, camera in enumerate(scene.cameras):
        rng = np.random.default_rng([settings.seed, 14, number])
        image = expose(scene.plates[camera.name], settings, rng)
        (folder / f"image_{camera.name}.jpg").write_bytes(encode_jpeg(image, 97))
