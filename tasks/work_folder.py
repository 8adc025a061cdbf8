"""Scratch folders that survive a kill, and are thrown away as soon as they would be stale.

A checkpoint may only be continued with the same parameters, inputs and code, or the result is not
the one that an uninterrupted run gives. So a work folder is named by a fingerprint of them all.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

import gha_core
from tasks.parameters import Resolved

SOURCES = (".py", ".cpp", ".h")


def prepare(parent: Path, resolved: Resolved, upstream: Iterable[Path]) -> Path:
    """The folder inside ``parent`` for exactly these parameters, inputs and code; older ones go.

    Args:
        upstream: output folders of earlier stages; absent ones count as absent.
    """
    folder = parent / _fingerprint(resolved, upstream)
    if parent.exists():
        for other in parent.iterdir():
            if other != folder:
                shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(resolved: Resolved, upstream: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(resolved.params.model_dump_json().encode())
    digest.update(f"{resolved.splits.model_dump_json()} {resolved.seed}".encode())
    code = [Path(gha_core.__file__).parent, Path(__file__).parent]
    files = [(folder, path) for folder in upstream for path in folder.rglob("*")]
    files += [(root, path) for root in code for path in root.rglob("*") if path.suffix in SOURCES]
    for folder, path in sorted(files):
        if path.is_file():
            digest.update(f"{folder.name}/{path.relative_to(folder)}".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
