"""Raw captures: one protocol, one small module per format.

``open_capture(path, format)`` gives a :class:`Capture`; ``detect_format(path)`` says which format a
path is of. A format is an :class:`Adapter`: a module of this package, listed below, or of another
package that registers it under the entry point group ``gha.captures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from gha_core.capture import (
    colmap,
    generic,
    monocular,
    nersemble,
    nersemble_v1,
    reference_layout,
    transforms,
)
from gha_core.capture.capture import (
    Adapter,
    Capture,
    Options,
    SequenceInfo,
    Timestep,
    UnequalLength,
)
from gha_core.errors import CaptureError

ENTRY_POINTS = "gha.captures"
_OWN: tuple[Adapter, ...] = (
    nersemble,
    nersemble_v1,
    generic,
    transforms,
    colmap,
    reference_layout,
    monocular,
)

__all__ = [
    "Adapter",
    "Capture",
    "Options",
    "SequenceInfo",
    "Timestep",
    "adapters",
    "detect_format",
    "open_capture",
]


def adapters() -> dict[str, Adapter]:
    """All formats by name: those of this package, and those that other packages registered.

    Raises:
        CaptureError: a registered one cannot be imported, is no adapter, or takes a used name.
    """
    known = {each.NAME: each for each in _OWN}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        package = point.dist.name if point.dist else "an unknown package"
        where = f"The capture format {point.name} of {package} ({point.value})"
        try:
            adapter = point.load()
        except Exception as error:  # whatever another package's import raises
            raise CaptureError(
                f"{where} cannot be loaded ({error}). Update or uninstall {package}."
            ) from error
        if not all(hasattr(adapter, name) for name in ("NAME", "WHAT", "detect", "read")):
            raise CaptureError(f"{where} is no adapter: it needs NAME, WHAT, detect and read.")
        if adapter.NAME in known:
            raise CaptureError(f"{where} takes the name {adapter.NAME!r}, which is in use.")
        known[adapter.NAME] = adapter
    return known


def detect_format(path: Path) -> str:
    """The format of a capture, judged by names only (cheap, nothing is decoded).

    Raises:
        CaptureError: the path does not exist, or looks like none of the known formats, or several.
    """
    path = Path(path)
    if not path.exists():
        raise CaptureError(f"The capture {path} does not exist.")
    known = adapters()
    fits = [name for name, adapter in known.items() if adapter.detect(path)]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise CaptureError(
            f"{path} looks like several formats: {_listed(known, fits)}. Say which with --format, "
            f"e.g. --format {fits[0]}."
        )
    if path.is_file():
        raise CaptureError(
            f"{path} is a file that does not look like a video. Give a video file, or the folder "
            f"of a capture; known formats: {_listed(known)}. To read it as a video anyway, add "
            "--format monocular."
        )
    found = sorted(each.name + ("/" if each.is_dir() else "") for each in path.iterdir())
    shown = ", ".join(found[:8]) + (", …" if len(found) > 8 else "")
    raise CaptureError(
        f"{path} is of no known format; it contains {shown or 'nothing'}. Known formats: "
        f"{_listed(known)}."
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
        format: the name of an adapter, or "auto".
        sequences, cameras, unequal_length, colour_correction, focal_length: see :class:`Options`.

    Raises:
        CaptureError: the format is unknown, or the capture cannot be used.
    """
    path = Path(path)
    if format == "auto":
        format = detect_format(path)
    known = adapters()
    if format not in known:
        raise CaptureError(
            f"The capture format {format!r} is unknown. Known formats: {_listed(known)}."
        )
    if not path.exists():
        raise CaptureError(f"The capture {path} does not exist.")
    options = Options(sequences, cameras, unequal_length, colour_correction, focal_length)
    return known[format].read(path, options)


def _listed(known: dict[str, Adapter], names: Sequence[str] | None = None) -> str:
    return "; ".join(f"{name} ({known[name].WHAT})" for name in names or known)
