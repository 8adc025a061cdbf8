"""Raw captures: one protocol, one adapter per format.

``open_capture(path, format)`` gives a :class:`Capture`; ``detect_format(path)`` says which format a
path is of. A new format is a class with the protocol's methods and an entry in both functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gha_core.capture.capture import Capture, SequenceInfo, Timestep
from gha_core.capture.monocular import MonocularCapture
from gha_core.capture.nersemble import NersembleCapture, UnequalLength, participant_folder
from gha_core.errors import CaptureError

FORMATS: dict[str, str] = {
    "nersemble": "NeRSemble v2: one participant's folder with calibration and mp4 per camera",
    "monocular": "one video file of one person, no calibration",
}

_VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts"}

__all__ = [
    "FORMATS",
    "Capture",
    "SequenceInfo",
    "Timestep",
    "detect_format",
    "open_capture",
]


def detect_format(path: Path) -> str:
    """The format of a capture, judged by names only (cheap, nothing is decoded).

    Raises:
        CaptureError: the path does not exist or looks like none of the known formats.
    """
    path = Path(path)
    if not path.exists():
        raise CaptureError(f"The capture {path} does not exist.")
    if path.is_file():
        if path.suffix.lower() in _VIDEO_SUFFIXES:
            return MonocularCapture.format
        raise CaptureError(
            f"{path} is a file that does not look like a video. Give a video file, or the folder "
            f"of a capture; known formats: {_known()}. To read it as a video anyway, add "
            "--format monocular."
        )
    if any(path.glob("sequences/*/images")) or any(path.glob("*/sequences/*/images")):
        participant_folder(path)  # a sentence if there are several
        return NersembleCapture.format
    if (path / "calibration").is_dir():
        return NersembleCapture.format
    found = sorted(each.name + ("/" if each.is_dir() else "") for each in path.iterdir())
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    raise CaptureError(
        f"{path} is of no known format; it contains {shown or 'nothing'}. Known formats: "
        f"{_known()}."
    )


def open_capture(
    path: Path,
    format: str = "auto",
    *,
    sequences: Sequence[str] = ("*",),
    cameras: Sequence[str] = ("*",),
    unequal_length: UnequalLength = "fail",
    colour_correction: bool = True,
    focal_length: float | None = None,
) -> Capture:
    """Open and check a capture.

    Args:
        format: a key of :data:`FORMATS`, or "auto".
        sequences, cameras: shell-style patterns of what to use.
        unequal_length, colour_correction: of multi-camera captures, see
            :class:`~gha_core.capture.nersemble.NersembleCapture`.
        focal_length: of uncalibrated captures, px of the source; None to assume one.

    Raises:
        CaptureError: the format is unknown, or the capture cannot be used.
    """
    path = Path(path)
    if format == "auto":
        format = detect_format(path)
    if format == NersembleCapture.format:
        if focal_length is not None:
            raise CaptureError(
                f"ingest.focal_length is given, but {path} has a calibration. Remove the parameter."
            )
        return NersembleCapture(path, sequences, cameras, unequal_length, colour_correction)
    if format == MonocularCapture.format:
        return MonocularCapture(path, sequences, cameras, focal_length)
    raise CaptureError(f"The capture format {format!r} is unknown. Known formats: {_known()}.")


def _known() -> str:
    return "; ".join(f"{name} ({what})" for name, what in FORMATS.items())
