"""The folder of one stage: it appears complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gha_core.errors import ArtifactError


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``out``; on a clean exit it is synced and takes ``out``'s place.

    On an error the sibling is removed and an earlier ``out`` stays as it was. A sibling left by a
    killed run is removed by the next one (the caller holds the stage's lock).
    """
    out = Path(out)
    temporary = out.with_name(f".{out.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _sync(temporary)
        old = out.with_name(f".{out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.rename(old)
        temporary.rename(out)
        _sync_path(out.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Sorted keys and a final newline, so that equal content gives equal bytes; NaN is refused."""
    Path(path).write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. Run the stage that writes it.") from None
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}). Run its stage again.") from None


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def licences(folder: Path) -> dict[str, str]:
    """Model -> licence, of what had a part in an artifact, as its summary records them.

    Nothing for an artifact that has no summary: it came from elsewhere.
    """
    summary = folder / "summary.json"
    return read_json(summary).get("licences", {}) if summary.is_file() else {}
