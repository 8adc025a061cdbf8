"""What every capture format is read as, and what an adapter of a format is."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.capture.tracked import TrackedFaces
from gha_core.errors import CaptureError

UnequalLength = Literal["fail", "shortest"]


@dataclass(frozen=True)
class Options:
    """What of a capture is used, and how; an adapter heeds what its format has.

    Attributes:
        sequences, cameras: shell-style patterns of what to use.
        unequal_length: what to do where the videos of one sequence differ in length.
        colour_correction: apply the capture's colour calibration where it has one.
        focal_length: of captures without calibration, px of the source; None to assume one.
    """

    sequences: Sequence[str] = ("*",)
    cameras: Sequence[str] = ("*",)
    unequal_length: UnequalLength = "fail"
    colour_correction: bool = True
    focal_length: float | None = None


@dataclass(frozen=True)
class SequenceInfo:
    """One take of the capture.

    Attributes:
        timesteps: ascending numbers of its moments, as the capture counts them (videos: from 0).
        rate: moments per second.
    """

    name: str
    timesteps: Sequence[int]
    rate: float

    @property
    def frames(self) -> int:
        return len(self.timesteps)


@dataclass(frozen=True)
class Timestep:
    """The pictures of all cameras at one moment.

    Attributes:
        index: number of the moment in its sequence; the ``timestep`` of all tables.
        seconds: time since the sequence's first moment.
        images: per camera H x W x 3 uint8 sRGB at source size; None where it cannot be decoded; a
            camera that has no picture of this moment is absent.
        mattes: per camera H x W uint8, 255 = the person, where the capture has them.
    """

    index: int
    seconds: float
    images: Mapping[str, Image | None]
    mattes: Mapping[str, Image | None] = field(default_factory=dict)


class Capture(Protocol):
    """A raw capture, opened and checked: what would make it unusable is found on opening, before
    hours are spent on its frames.

    Attributes:
        format: name of the format, as ``gha add --format`` takes it.
        cameras: the chosen cameras at the size of the source frames, sorted by name.
        sequences: the chosen sequences, sorted by name.
        calibrated: whether the cameras were calibrated; else they are assumptions.
        matted: names of the cameras that come with mattes.
        tracking: the tracking that the capture came with, or None.
        notes: what was assumed or adapted, in sentences.
    """

    @property
    def format(self) -> str: ...

    @property
    def cameras(self) -> tuple[Camera, ...]: ...

    @property
    def sequences(self) -> tuple[SequenceInfo, ...]: ...

    @property
    def calibrated(self) -> bool: ...

    @property
    def matted(self) -> frozenset[str]: ...

    @property
    def tracking(self) -> TrackedFaces | None: ...

    @property
    def notes(self) -> list[str]: ...

    def frames(self, sequence: str, timesteps: Sequence[int]) -> Iterator[Timestep]:
        """Stream the given timesteps in order; no more than a few are in memory at a time."""

    def background(self, camera: str) -> Image | None:
        """The empty scene as ``camera`` sees it, at source size, or None."""

    def correct(self, camera: str, image: Image) -> Image:
        """Colour correction of a (possibly cropped and resized) frame or background."""


class Adapter(Protocol):
    """One format. The modules of this package are adapters; other packages register theirs, a
    module or any object with these attributes, under the entry point group ``gha.captures``.

    Attributes:
        NAME: as ``gha add --format`` takes it.
        WHAT: one line for people.
    """

    @property
    def NAME(self) -> str: ...

    @property
    def WHAT(self) -> str: ...

    def detect(self, path: Path) -> bool:
        """Whether ``path``, which exists, is of this format, judged by names only."""

    def read(self, path: Path, options: Options) -> Capture:
        """Open and check a capture.

        Raises:
            CaptureError: it cannot be used; the sentence says what, where, and what to do.
        """


def matching(names: Sequence[str], patterns: Sequence[str], what: str, where: Path) -> list[str]:
    """The names, sorted, that match one of the shell-style patterns.

    Args:
        what: "sequence" or "camera", for the sentence.

    Raises:
        CaptureError: a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise CaptureError(
                f"No {what} of {where} matches {pattern!r}. It has: "
                f"{', '.join(sorted(names)) or 'none'}. Correct ingest.{what}s."
            )
    return sorted(
        name for name in names if any(fnmatch.fnmatchcase(name, each) for each in patterns)
    )
