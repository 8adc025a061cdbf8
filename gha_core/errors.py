"""Errors that people read.

Every error that a user can cause is a :class:`GhaError` whose text is a sentence: what was found,
where (file, sequence, timestep, camera), what to do. The command line prints the sentence and no
traceback; anything else that escapes is a bug of ours and does show one.
"""

from __future__ import annotations


class GhaError(Exception):
    """Base of all errors whose text is meant for a user."""


class CaptureError(GhaError):
    """The raw capture cannot be used as it is; running again without changing it is pointless."""


class ArtifactError(GhaError):
    """An artifact is missing, incomplete, of another schema version, or does not fit its schema."""


class ParameterError(GhaError):
    """A parameter is unknown, of the wrong type, or out of range."""


class NotFiniteError(ParameterError):
    """A tensor holds NaN or infinity; the text names it and where."""


class AssetError(GhaError):
    """A model file is missing, cannot be fetched, or is not the file that was pinned."""


class StageError(GhaError):
    """A stage cannot produce a usable result from its (well-formed) inputs."""


def locate(
    sequence: str | None = None, timestep: int | None = None, camera: str | None = None
) -> str:
    """Human form of a row key, e.g. ``sequence FREE, timestep 12, camera 222200037``."""
    parts = []
    if sequence is not None:
        parts.append(f"sequence {sequence}")
    if timestep is not None:
        parts.append(f"timestep {timestep}")
    if camera is not None:
        parts.append(f"camera {camera}")
    return ", ".join(parts)
