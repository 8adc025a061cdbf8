"""What every capture format is read as. An adapter hides one format behind :class:`Capture`."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.errors import CaptureError


@dataclass(frozen=True)
class SequenceInfo:
    """One take of the capture.

    Attributes:
        frames: number of timesteps that all cameras have.
        rate: frames per second.
    """

    name: str
    frames: int
    rate: float


@dataclass(frozen=True)
class Timestep:
    """The pictures of all cameras at one moment.

    Attributes:
        index: number of the frame in its sequence, from 0; the ``timestep`` of all tables.
        seconds: time since the sequence's first frame.
        images: per camera H x W x 3 uint8 sRGB at source size; None where it cannot be decoded.
    """

    index: int
    seconds: float
    images: Mapping[str, Image | None]


class Capture(Protocol):
    """A raw capture, opened and checked: what would make it unusable is found on opening, before
    hours are spent on its frames.

    Attributes:
        format: name of the format, as ``gha add --format`` takes it.
        cameras: the chosen cameras at the size of the source frames, sorted by name.
        sequences: the chosen sequences, sorted by name.
        notes: what was assumed or adapted, in sentences.
    """

    @property
    def format(self) -> str: ...

    @property
    def cameras(self) -> tuple[Camera, ...]: ...

    @property
    def sequences(self) -> tuple[SequenceInfo, ...]: ...

    @property
    def notes(self) -> list[str]: ...

    def frames(self, sequence: str, timesteps: range) -> Iterator[Timestep]:
        """Stream the given timesteps in order; one timestep is in memory at a time."""

    def background(self, camera: str) -> Image | None:
        """The empty scene as ``camera`` sees it, at source size, or None."""

    def correct(self, camera: str, image: Image) -> Image:
        """Colour correction of a (possibly cropped and resized) frame or background."""


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
