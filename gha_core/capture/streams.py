"""The pictures of one camera in one sequence: a video file, or numbered picture files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from gha_core.artifacts.images import Image
from gha_core.capture.video import Video, probe, read_frames
from gha_core.errors import CaptureError

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts"]
)  # fmt: skip
PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"])


class Stream(Protocol):
    """Attributes:
    path: the file, or the first of them, for sentences.
    width, height: in pixels; timesteps: ascending.
    """

    @property
    def path(self) -> Path: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def rate(self) -> float: ...

    @property
    def timesteps(self) -> Sequence[int]: ...

    def seconds(self, timestep: int) -> float:
        """Time since the first frame."""

    def read(self, timesteps: Sequence[int], threads: int) -> Iterator[Image | None]:
        """One H x W x 3 uint8 sRGB per timestep, None where decoding failed."""


@dataclass(frozen=True)
class PictureFiles:
    """Picture files by timestep, all of one camera and sequence.

    Attributes:
        rate: timesteps per second.
        limits: pictures of the same size that are black where the picture is not to be seen.
    """

    files: Mapping[int, Path]
    rate: float = 25.0
    limits: Mapping[int, Path] = field(default_factory=dict)


Source = Path | PictureFiles  # a path is that of a video


def open_stream(source: Source) -> Stream:
    """Open and check a source: videos are counted, of pictures the first is decoded.

    Raises:
        CaptureError: a video or the first picture is missing or unreadable.
    """
    if isinstance(source, Path):
        return _VideoStream(probe(source))
    timesteps = sorted(source.files)
    height, width = read_picture(source.files[timesteps[0]]).shape[:2]
    return _PictureStream(source, timesteps, width, height)


def read_picture(path: Path) -> Image:
    """H x W x 3 uint8 sRGB.

    Raises:
        CaptureError: it is missing or not a picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise CaptureError(f"The picture {path} cannot be read. Copy it again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def numbered(paths: Iterable[Path], where: str) -> dict[int, Path]:
    """Picture files by the number in their name (its last run of digits).

    Raises:
        CaptureError: a name has no number, or two have the same.
    """
    found: dict[int, Path] = {}
    for path in sorted(paths):
        digits = re.findall(r"\d+", path.stem)
        if not digits or len(digits[-1]) > 9:
            raise CaptureError(
                f"{path} has no frame number in its name. Number the pictures of {where} in their "
                "order of time."
            )
        number = int(digits[-1])
        if number in found:
            raise CaptureError(
                f"{found[number]} and {path} have the same frame number {number}. Keep one."
            )
        found[number] = path
    return dict(sorted(found.items()))


def pictures_in(folder: Path) -> list[Path]:
    return sorted(
        each for each in folder.glob("*") if each.suffix.lower() in PICTURE_SUFFIXES
        and not each.name.startswith(".")
    )  # fmt: skip


@dataclass(frozen=True)
class _VideoStream:
    video: Video

    @property
    def path(self) -> Path:
        return self.video.path

    @property
    def width(self) -> int:
        return self.video.width

    @property
    def height(self) -> int:
        return self.video.height

    @property
    def rate(self) -> float:
        return self.video.rate

    @property
    def timesteps(self) -> Sequence[int]:
        return range(self.video.frames)

    def seconds(self, timestep: int) -> float:
        return self.video.seconds(timestep)

    def read(self, timesteps: Sequence[int], threads: int) -> Iterator[Image | None]:
        for _, image in read_frames(self.video, timesteps, threads):
            yield image


@dataclass(frozen=True)
class _PictureStream:
    source: PictureFiles
    timesteps: Sequence[int]
    width: int
    height: int

    @property
    def path(self) -> Path:
        return self.source.files[self.timesteps[0]]

    @property
    def rate(self) -> float:
        return self.source.rate

    def seconds(self, timestep: int) -> float:
        return (timestep - self.timesteps[0]) / self.source.rate

    def read(self, timesteps: Sequence[int], threads: int) -> Iterator[Image | None]:
        for timestep in timesteps:
            try:
                image = read_picture(self.source.files[timestep])
                if timestep in self.source.limits:
                    image = np.minimum(image, read_picture(self.source.limits[timestep]))
            except (CaptureError, ValueError):
                yield None
                continue
            yield image if image.shape[:2] == (self.height, self.width) else None
