"""Ingest: a raw capture of any format becomes tables of cropped frames and of cameras."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.contact_sheet import ViewKey, views_sheet
from gha_core.artifacts.images import Image, encode_jpeg, encode_png
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import TableWriter, write_table
from gha_core.cameras import Camera
from gha_core.capture import Capture, Timestep, open_capture
from gha_core.capture.crop import Crop, Undistorter, square, whole
from gha_core.capture.framing import frame_face, frame_rig
from gha_core.errors import CaptureError, locate
from gha_core.processors import cores
from gha_core.progress import track
from tasks.stage import Inputs, StageParams

_FACE_SAMPLES = 24
_PREVIEW_TIMESTEPS, _PREVIEW_CAMERAS = 6, 16
# A picture whose brightest and darkest pixels differ by less than this (levels) shows nothing.
_BLANK_RANGE = 4


class Params(StageParams):
    """How a capture is read."""

    image_size: int = Field(256, ge=64, le=4096, description="side of the stored frames, px")
    crop: Literal["auto", "none"] | tuple[int, int, int] = Field(
        "auto",
        description="auto: a square around the head (one camera) or around the point that all "
        "cameras look at; none: the whole photo, longer side = size; [x, y, side] in source px",
    )
    sequences: tuple[str, ...] = Field(
        ("*",), min_length=1, description="patterns of the sequences to use"
    )
    cameras: tuple[str, ...] = Field(
        ("*",), min_length=1, description="patterns of the cameras to use"
    )
    stride: int = Field(1, ge=1, description="use every n-th timestep")
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
        None, description="px of the source, for captures without calibration; null: assumed"
    )
    jpeg_quality: int = Field(95, ge=50, le=100, description="of the stored frames")
    max_rejected: float = Field(
        0.2, ge=0, le=1, description="stop if more than this fraction of the frames is unusable"
    )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Read ``inputs.capture`` and write frames, cameras, backgrounds and rejects to ``out``.

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
    wanted = {
        sequence.name: range(sequence.frames)[:: params.stride][: params.max_frames]
        for sequence in capture.sequences
    }
    crops, notes = _choose_crops(capture, params, wanted, str(inputs.capture))
    pictures = {
        camera.name: _Pictures(camera, crops[camera.name], capture) for camera in capture.cameras
    }
    write_table(
        out / "cameras.parquet",
        schemas.CAMERAS,
        [pictures[name].stored_camera.row(inputs.subject) for name in pictures],
    )
    backgrounds = [
        row for each in pictures.values() if (row := each.background_row(inputs.subject))
    ]
    write_table(out / "backgrounds.parquet", schemas.BACKGROUNDS, backgrounds)

    tally = _Tally(wanted, list(pictures))
    with TableWriter(out / "frames.parquet", schemas.FRAMES) as frames:
        for row, image in _rows(capture, pictures, wanted, inputs.subject, params.jpeg_quality):
            if image is None:
                tally.reject(row)
            else:
                frames.write(row)
                tally.accept(row, image)
    write_table(out / "rejects.parquet", schemas.REJECTS, tally.rejects)
    tally.check(params.max_rejected, inputs.capture)

    (out / "preview.jpg").write_bytes(encode_jpeg(views_sheet(tally.preview), 90))
    write_json(
        out / "summary.json",
        {
            "format": capture.format,
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
            "warnings": [*capture.notes, *notes, *_crop_notes(pictures)],
        },
    )


class _Pictures:
    """What happens to every picture of one camera: undistort, crop, resize, correct its colours."""

    def __init__(self, camera: Camera, crop: Crop, capture: Capture) -> None:
        self.source, self.crop, self._capture = camera, crop, capture
        self._undistort = Undistorter(camera)
        plain = Camera(camera.name, camera.K, camera.w2c, camera.width, camera.height)
        self.stored_camera = plain.transformed(
            crop.transform, crop.stored_width, crop.stored_height
        )

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

    def frame_row(
        self, subject: str, sequence: str, timestep: Timestep, quality: int
    ) -> tuple[dict[str, Any], Image | None]:
        """The row of the frames table and the picture in it, or a row of rejects and None."""
        key = {
            "subject": subject,
            "sequence": sequence,
            "timestep": timestep.index,
            "camera": self.source.name,
        }
        image = timestep.images[self.source.name]
        if image is None:
            return {**key, "reason": "the frame cannot be decoded"}, None
        stored = self.stored(image)
        luma = cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY)
        if int(luma.max()) - int(luma.min()) < _BLANK_RANGE:
            return {**key, "reason": "the frame is blank: all its pixels are alike"}, None
        row = {
            **key,
            "image": encode_jpeg(stored, quality),
            "width": self.crop.stored_width,
            "height": self.crop.stored_height,
            "time": timestep.seconds,
            "sharpness": float(cv2.Laplacian(luma, cv2.CV_32F).var()),
            "transform": self.crop.transform.ravel().tolist(),
            "source_width": self.source.width,
            "source_height": self.source.height,
        }
        return row, stored

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
    capture: Capture, params: Params, wanted: dict[str, range], where: str
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
    if len(cameras) > 1:
        return frame_rig(cameras, params.image_size)
    only = cameras[0].name
    return {only: frame_face(_samples(capture, wanted), params.image_size, where)}, []


def _samples(capture: Capture, wanted: dict[str, range]) -> list[Image]:
    """Some frames of the only camera, evenly over all sequences."""
    each = max(1, _FACE_SAMPLES // len(wanted))
    images = []
    for sequence, timesteps in wanted.items():
        some = timesteps[:: max(1, len(timesteps) // each)]
        undistort = Undistorter(capture.cameras[0])
        for timestep in track(
            capture.frames(sequence, some), f"looking for the face in {sequence}", len(some)
        ):
            images += [undistort(each) for each in timestep.images.values() if each is not None]
    if not images:
        raise CaptureError("None of the frames sampled to find the face can be decoded.")
    return images


def _rows(
    capture: Capture, pictures: dict[str, _Pictures], wanted: dict[str, range], subject: str,
    quality: int,
) -> Iterator[tuple[dict[str, Any], Image | None]]:  # fmt: skip
    """All rows in the order of the table. While one timestep is encoded, the next is decoded."""
    pending: deque[list[Future]] = deque()
    with ThreadPoolExecutor(cores()) as pool:
        for sequence, timesteps in wanted.items():
            for timestep in track(
                capture.frames(sequence, timesteps), f"reading {sequence}", len(timesteps)
            ):
                pending.append(
                    [
                        pool.submit(each.frame_row, subject, sequence, timestep, quality)
                        for each in pictures.values()
                    ]
                )
                if len(pending) > 1:
                    yield from (future.result() for future in pending.popleft())
        while pending:
            yield from (future.result() for future in pending.popleft())


@dataclass
class _Tally:
    """Counts what was stored and keeps a few pictures for the preview."""

    wanted: dict[str, range]
    cameras: list[str]
    accepted: int = 0
    rejects: list[dict[str, Any]] = field(default_factory=list)
    preview: dict[ViewKey, Image] = field(default_factory=dict)

    def __post_init__(self) -> None:
        moments = [(name, index) for name, steps in self.wanted.items() for index in steps]
        places = np.linspace(0, len(moments) - 1, min(_PREVIEW_TIMESTEPS, len(moments)))
        self._moments = {moments[round(place)] for place in places}
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
