"""Ingest: a raw capture of any format becomes tables of cropped frames and of cameras."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.contact_sheet import ViewKey, views_sheet
from gha_core.artifacts.images import Image, encode_jpeg, encode_png
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import TableWriter, write_table
from gha_core.cameras import Camera
from gha_core.capture import Capture, SequenceInfo, Timestep, open_capture
from gha_core.capture.crop import Crop, Undistorter, square, whole
from gha_core.capture.framing import frame_face, frame_rig, frame_tracked
from gha_core.errors import CaptureError, locate
from gha_core.processors import cores
from gha_core.progress import track
from tasks.stage import Inputs, StageParams

_FACE_SAMPLES = 24
_PREVIEW_TIMESTEPS, _PREVIEW_CAMERAS = 6, 16
# A picture whose brightest and darkest pixels differ by less than this (levels) shows nothing.
_BLANK_RANGE = 4
# Metres; from FLAME's origin, which is in the head, to the crown, with hair.
_HEAD_RADIUS = 0.2


class Params(StageParams):
    """How a capture is read."""

    image_size: int = Field(256, ge=64, le=4096, description="side of the stored frames, px")
    crop: Literal["auto", "none"] | tuple[int, int, int] = Field(
        "auto",
        description="auto: a square around the head where it is tracked or found (one camera), or "
        "around the point that all cameras look at; none: the whole photo, longer side = size; "
        "[x, y, side] in source px",
    )
    sequences: tuple[str, ...] = Field(
        ("*",), min_length=1, description="patterns of the sequences to use"
    )
    cameras: tuple[str, ...] = Field(
        ("*",), min_length=1, description="patterns of the cameras to use"
    )
    fps: float | None = Field(None, gt=0, description="use so many timesteps per second; null: all")
    stride: int = Field(1, ge=1, description="use every n-th of these timesteps")
    pick: Literal["first", "sharpest"] = Field(
        "first", description="which of the timesteps that fps and stride pass over: first is quick"
    )
    max_frames: int | None = Field(
        None, ge=1, description="at most so many timesteps per sequence; null: all"
    )
    unequal_length: Literal["fail", "shortest"] = Field(
        "fail", description="videos of one sequence that differ in length: stop, or cut to shortest"
    )
    colour_correction: bool = Field(
        True, description="apply the capture's colour calibration where it has one"
    )
    focal_length: float | None = Field(
        None, description="px of the source, for captures without calibration; null: unknown"
    )
    jpeg_quality: int = Field(95, ge=50, le=100, description="of the stored frames")
    max_rejected: float = Field(
        0.2, ge=0, le=1, description="stop if more than this fraction of the frames is unusable"
    )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Read ``inputs.capture`` and write frames, cameras, backgrounds and rejects to ``out``, and
    the mattes and the tracking that the capture came with.

    Raises:
        CaptureError: the capture cannot be used, or too many of its frames.
    """
    capture = open_capture(
        inputs.capture,
        inputs.format,
        sequences=params.sequences,
        cameras=params.cameras,
        unequal_length=params.unequal_length,
        colour_correction=params.colour_correction,
        focal_length=params.focal_length,
    )
    wanted = {sequence.name: stored_windows(sequence, params) for sequence in capture.sequences}
    crops, notes = _choose_crops(capture, params, wanted, str(inputs.capture))
    pictures = {
        camera.name: _Pictures(camera, crops[camera.name], capture) for camera in capture.cameras
    }
    write_table(
        out / "cameras.parquet",
        schemas.CAMERAS,
        [each.camera_row(inputs.subject) for each in pictures.values()],
    )
    backgrounds = [
        row for each in pictures.values() if (row := each.background_row(inputs.subject))
    ]
    write_table(out / "backgrounds.parquet", schemas.BACKGROUNDS, backgrounds)
    tracked = _tracking_rows(capture, wanted, inputs.subject)
    write_table(out / "given_tracking.parquet", schemas.GIVEN_TRACKING, tracked)

    tally = _Tally(wanted, list(pictures))
    total = len(pictures) * sum(len(window) for each in wanted.values() for window in each)
    views = _sharpest(_views(capture, pictures, wanted, inputs.subject, params.jpeg_quality, total))
    with (
        TableWriter(out / "frames.parquet", schemas.FRAMES) as frames,
        TableWriter(out / "mattes.parquet", schemas.ALPHA) as mattes,
    ):
        for view in views:
            if view.image is None:
                tally.reject(view.row)
                continue
            frames.write(view.row)
            tally.accept(view.row, view.image)
            if view.matte is not None:
                mattes.write(view.matte)
    write_table(out / "rejects.parquet", schemas.REJECTS, tally.rejects)
    tally.check(params.max_rejected, inputs.capture)

    known = capture.calibrated or params.focal_length is not None
    (out / "preview.jpg").write_bytes(encode_jpeg(views_sheet(tally.preview), 90))
    write_json(
        out / "summary.json",
        {
            "format": capture.format,
            "focal_length": "given" if known else "assumed",  # tracking looks for a likelier one
            "sequences": {
                sequence.name: {
                    "timesteps": len(wanted[sequence.name]),
                    "of": sequence.frames,
                    "rate": sequence.rate,
                }
                for sequence in capture.sequences
            },
            "cameras": {name: each.summary() for name, each in pictures.items()},
            "frames": tally.accepted,
            "rejects": len(tally.rejects),
            "backgrounds": len(backgrounds),
            "mattes": mattes.count,
            "tracked": len(tracked),
            "warnings": [*capture.notes, *notes, *_crop_notes(pictures)],
        },
    )


Window = list[int]
"""Timesteps of a sequence of which one is stored."""


def stored_windows(sequence: SequenceInfo, params: Params) -> list[Window]:
    """What to choose from for every stored timestep."""
    timesteps = list(sequence.timesteps)
    windows: list[Window] = [[each] for each in timesteps]
    if params.fps is not None and params.fps < sequence.rate:
        moments: dict[int, Window] = {}
        for each in timesteps:
            # Rounded, for 24 of 72 frames per second is every third in spite of 1/3.
            place = round((each - timesteps[0]) * params.fps / sequence.rate, 6)
            moments.setdefault(int(place), []).append(each)
        windows = list(moments.values())
    windows = [
        list(chain(*windows[i : i + params.stride])) for i in range(0, len(windows), params.stride)
    ]
    windows = windows[: params.max_frames]
    return windows if params.pick == "sharpest" else [window[:1] for window in windows]


def _tracking_rows(
    capture: Capture, wanted: dict[str, list[Window]], subject: str
) -> list[dict[str, Any]]:
    if capture.tracking is None:
        return []
    chosen = {(name, t) for name, windows in wanted.items() for window in windows for t in window}
    return [
        {
            "subject": subject,
            "sequence": key[0],
            "timestep": key[1],
            "model": capture.tracking.model,
            "rotation": face.rotation,
            "root": face.root,
            "translation": face.translation,
            "scale": face.scale,
            "coefficients": [(name, each) for name, each in sorted(face.coefficients.items())],
        }
        for key, face in capture.tracking.frames.items()
        if key in chosen
    ]


@dataclass(frozen=True)
class _View:
    """One picture on its way to the tables.

    Attributes:
        row: of the frames table; of the rejects if there is no image.
        image: as stored; matte: the row of the mattes table, if the capture has one.
        window: number of its window in its sequence.
    """

    row: dict[str, Any]
    image: Image | None
    matte: dict[str, Any] | None = None
    window: int = 0

    @property
    def moment(self) -> tuple[str, int]:
        return self.row["sequence"], self.row["timestep"]


class _Pictures:
    """What happens to every picture of one camera: undistort, crop, resize, correct its colours."""

    def __init__(self, camera: Camera, crop: Crop, capture: Capture) -> None:
        self.source, self.crop, self._capture = camera, crop, capture
        self._undistort = Undistorter(camera)
        plain = Camera(camera.name, camera.K, camera.w2c, camera.width, camera.height)
        self.stored_camera = plain.transformed(
            crop.transform, crop.stored_width, crop.stored_height
        )

    def camera_row(self, subject: str) -> dict[str, Any]:
        return {
            **self.stored_camera.row(subject),
            "source_K": self.source.K.ravel().tolist(),
            "source_distortion": np.asarray(self.source.distortion, float).tolist(),
        }

    def stored(self, image: Image) -> Image:
        # Colours last: the correction is per pixel, and there are fewer of them now.
        return self._capture.correct(self.source.name, self.crop.apply(self._undistort(image)))

    def background_row(self, subject: str) -> dict[str, Any] | None:
        plate = self._capture.background(self.source.name)
        if plate is None:
            return None
        # Lossless: a plate is few bytes, and its noise is what matting measures frames against.
        return {
            "subject": subject,
            "camera": self.source.name,
            "image": encode_png(self.stored(plate)),
            "width": self.crop.stored_width,
            "height": self.crop.stored_height,
        }

    def view(
        self, subject: str, sequence: str, timestep: Timestep, window: int, quality: int
    ) -> _View:
        """The picture as it is stored, or why there is none."""
        name = self.source.name
        key = {
            "subject": subject,
            "sequence": sequence,
            "timestep": timestep.index,
            "camera": name,
        }
        image = timestep.images.get(name)
        if image is None:
            absent = name not in timestep.images
            why = "the capture has no picture of it" if absent else "the frame cannot be decoded"
            return _View({**key, "reason": why}, None, None, window)
        stored = self.stored(image)
        luma = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)
        if int(luma.max()) - int(luma.min()) < _BLANK_RANGE:
            why = "the frame is blank: all its pixels are alike"
            return _View({**key, "reason": why}, None, None, window)
        size = {"width": self.crop.stored_width, "height": self.crop.stored_height}
        row = {
            **key,
            **size,
            "image": encode_jpeg(stored, quality),
            "time": timestep.seconds,
            "sharpness": float(cv2.Laplacian(luma, cv2.CV_32F).var()),
            "transform": self.crop.transform.ravel().tolist(),
            "source_width": self.source.width,
            "source_height": self.source.height,
        }
        matte = timestep.mattes.get(name)
        if matte is None:
            return _View(row, stored, None, window)
        alpha = encode_png(self.crop.apply(self._undistort(self._fitting(matte))))
        return _View(row, stored, {**key, **size, "alpha": alpha}, window)

    def _fitting(self, matte: Image) -> Image:
        """The matte at the size of the photo."""
        size = (self.source.width, self.source.height)
        if matte.shape[:2] == size[::-1]:
            return matte
        return cv2.resize(matte, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)

    def summary(self) -> dict[str, Any]:
        crop = self.crop
        return {
            "source": [self.source.width, self.source.height],
            "crop": [crop.x, crop.y, crop.width, crop.height],
            "stored": [crop.stored_width, crop.stored_height],
            "focal_length": round(float(self.stored_camera.K[0, 0]), 3),
            "outside_photo": round(crop.padding(self.source.width, self.source.height), 4),
        }


def _choose_crops(
    capture: Capture, params: Params, wanted: dict[str, list[Window]], where: str
) -> tuple[dict[str, Crop], list[str]]:
    cameras = capture.cameras
    if params.crop == "none":
        return {
            each.name: whole(each.width, each.height, params.image_size) for each in cameras
        }, []
    if params.crop != "auto":
        x, y, side = params.crop
        for camera in cameras:
            crop = square(x, y, side, params.image_size) if side > 0 else None
            if crop is None or crop.padding(camera.width, camera.height) >= 1:
                raise CaptureError(
                    f"ingest.crop [{x}, {y}, {side}] shows nothing of camera {camera.name}, whose "
                    f"photos are {camera.width}x{camera.height}. Give [x, y, side] in source "
                    "pixels."
                )
        return {each.name: square(x, y, side, params.image_size) for each in cameras}, []
    heads = _tracked_heads(capture)
    if heads is not None:
        return frame_tracked(cameras, heads, _HEAD_RADIUS, params.image_size), []
    if len(cameras) > 1:
        return frame_rig(cameras, params.image_size)
    only = cameras[0].name
    return {only: frame_face(_samples(capture, wanted), params.image_size, where)}, []


def _tracked_heads(capture: Capture) -> NDArray[np.float64] | None:
    """[N, 3] where a tracking in metres has the head; FLAME's origin is in it, near the neck."""
    tracking = capture.tracking
    if tracking is None or tracking.model != "FLAME":
        return None
    return np.array([face.translation for face in tracking.frames.values()])


def _samples(capture: Capture, wanted: dict[str, list[Window]]) -> list[Image]:
    """Some frames of the only camera, evenly over all sequences."""
    each = max(1, _FACE_SAMPLES // len(wanted))
    images = []
    for sequence, windows in wanted.items():
        timesteps = [window[0] for window in windows]
        some = timesteps[:: max(1, len(timesteps) // each)]
        undistort = Undistorter(capture.cameras[0])
        for timestep in track(
            capture.frames(sequence, some), f"looking for the face in {sequence}", len(some)
        ):
            images += [undistort(each) for each in timestep.images.values() if each is not None]
    if not images:
        raise CaptureError("None of the frames sampled to find the face can be decoded.")
    return images


def _views(
    capture: Capture, pictures: dict[str, _Pictures], wanted: dict[str, list[Window]],
    subject: str, quality: int, total: int,
) -> Iterator[_View]:  # fmt: skip
    """All views in the order of the table. While one timestep is encoded, the next is decoded."""

    def views() -> Iterator[_View]:
        pending: deque[list[Future[_View]]] = deque()
        with ThreadPoolExecutor(cores()) as pool:
            for sequence, windows in wanted.items():
                place = {t: number for number, window in enumerate(windows) for t in window}
                for timestep in capture.frames(sequence, list(place)):
                    window = place[timestep.index]
                    pending.append(
                        [
                            pool.submit(each.view, subject, sequence, timestep, window, quality)
                            for each in pictures.values()
                        ]
                    )
                    if len(pending) > 1:
                        yield from (future.result() for future in pending.popleft())
            while pending:
                yield from (future.result() for future in pending.popleft())

    return track(views(), "reading frames", total)


def _sharpest(views: Iterator[_View]) -> Iterator[_View]:
    """Of every window the views of the timestep that is sharpest on average; the others pass by,
    so that no more than two timesteps are held."""
    for _, window in groupby(views, lambda view: (view.row["sequence"], view.window)):
        best: list[_View] = []
        most = -1.0
        for _, moment in groupby(window, lambda view: view.moment):
            those = list(moment)
            sharp = float(np.mean([view.row.get("sharpness", 0.0) for view in those]))
            if sharp > most:
                best, most = those, sharp
        yield from best


@dataclass
class _Tally:
    """Counts what was stored and keeps a few pictures for the preview."""

    wanted: dict[str, list[Window]]
    cameras: list[str]
    accepted: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    preview: dict[ViewKey, Image] = field(default_factory=dict)

    def __post_init__(self) -> None:
        windows = [(name, window) for name, each in self.wanted.items() for window in each]
        places = np.linspace(0, len(windows) - 1, min(_PREVIEW_TIMESTEPS, len(windows)))
        some = [windows[round(place)] for place in places]
        self._moments = {(name, timestep) for name, window in some for timestep in window}
        places = np.linspace(0, len(self.cameras) - 1, min(_PREVIEW_CAMERAS, len(self.cameras)))
        self.preview_cameras = [self.cameras[round(place)] for place in places]

    def accept(self, row: dict[str, Any], image: Image) -> None:
        self.accepted += 1
        moment = (row["sequence"], row["timestep"])
        if moment in self._moments and row["camera"] in self.preview_cameras:
            self.preview[*moment, row["camera"]] = image

    def reject(self, row: dict[str, Any]) -> None:
        self.rejects.append(row)

    def check(self, max_rejected: float, capture: Path) -> None:
        total = self.accepted + len(self.rejects)
        if not self.accepted or len(self.rejects) > max_rejected * total:
            first = self.rejects[0]
            where = locate(first["sequence"], first["timestep"], first["camera"])
            raise CaptureError(
                f"{len(self.rejects)} of {total} frames of {capture} are unusable, the first at "
                f"{where}: {first['reason']}. Copy the videos again, or raise ingest.max_rejected."
            )


def _crop_notes(pictures: dict[str, _Pictures]) -> list[str]:
    notes = []
    for name, each in pictures.items():
        outside = each.crop.padding(each.source.width, each.source.height)
        if outside > 0:
            notes.append(f"{outside:.0%} of camera {name}'s crop lies outside its photo.")
    least = min(each.crop.width for each in pictures.values())
    stored = max(each.crop.stored_width for each in pictures.values())
    if least < stored:
        notes.append(
            f"Crops from {least} px on are enlarged to {stored} px: the capture has less detail "
            "than ingest.image_size asks for."
        )
    return notes
