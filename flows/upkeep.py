"""Upkeep of a project: mend what ``dvc.lock`` refers to, remove what nothing refers to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flows import dvc_bridge, lock_file
from flows.display import ARTIFACTS
from flows.project import CAPTURES
from flows.stage_process import LOGS
from gha_core.errors import GhaError

_DIRECTORY = ".dir"  # how DVC ends the hash of a folder's listing


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file of an artifact, and what was done about it.

    Attributes:
        file: path in the project.
        wrong: what is wrong, in words.
        mended: how it was mended; "" if it was not.
        todo: what a person can do then.
    """

    stage: str
    file: Path
    wrong: str
    mended: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Leftovers:
    """What belongs to subjects that dvc.yaml no longer has."""

    entries: tuple[str, ...]
    folders: tuple[Path, ...]


def check() -> Iterator[Finding]:
    """Read again every object that ``dvc.lock`` refers to, and every file of the workspace's
    outputs; mend what can be mended.

    DVC takes a read-only object of its cache for good. A damaged one is replaced by what the
    workspace or the remote has, else removed, so that the stage is made again.

    Raises:
        GhaError: ``dvc.lock`` cannot be read.
    """
    sound = cache(_mend_object)  # an object may be part of several artifacts
    for stage, entry in lock_file.read().items():
        try:
            with dvc_bridge.turn(stage, wait=False):
                for out in entry.get("outs") or []:
                    yield from _check_output(stage, out, sound)
        except BlockingIOError:
            yield Finding(stage, Path(), "is being made now", todo="check again later")


def _check_output(stage: str, out: dict[str, Any], sound: Any) -> Iterator[Finding]:
    path, md5 = Path(out["path"]), out.get("md5", "")
    if out.get("hash") != "md5" or not md5:
        return  # not kept in the cache, or by DVC 2
    members = {path: md5}
    if md5.endswith(_DIRECTORY):
        # The listing itself is no file of the workspace.
        wrong, mended = sound(md5, None)
        if wrong:
            yield _finding(stage, path, f"the cached list of its files {wrong}", mended)
        if wrong and not mended:
            return
        listing = json.loads(dvc_bridge.object_path(md5).read_text())
        members = {path / each["relpath"]: each["md5"] for each in listing}
    for file, expected in members.items():
        good = file.is_file() and _md5(file) == expected
        wrong, mended = sound(expected, file if good else None)
        if wrong:
            yield _finding(stage, file, f"its object in the cache {wrong}", mended)
        if file.is_file() and not good:
            done = ""
            if not wrong or mended:
                _link(dvc_bridge.object_path(expected), file)
                done = "replaced by what the cache has"
            yield _finding(stage, file, "is not what the stage made", done)


def _finding(stage: str, file: Path, wrong: str, mended: str) -> Finding:
    subject = stage.partition("@")[2]
    return Finding(
        stage, file, wrong, mended, "" if mended else f"make it again: gha run {subject}"
    )


def _mend_object(md5: str, copy: Path | None) -> tuple[str, str]:
    """What was wrong with an object of the cache, and how it was mended; "" for neither.

    Args:
        copy: a file that is known to have its content.
    """
    path = dvc_bridge.object_path(md5)
    present = path.is_file()
    if present and _md5(path) == md5.removesuffix(_DIRECTORY):
        return "", ""
    wrong = "is damaged" if present else "is missing"
    temporary = path.with_name(f"{path.name}.mending")
    path.parent.mkdir(parents=True, exist_ok=True)
    for source in ("the workspace", "the remote"):
        try:
            if source == "the remote":
                dvc_bridge.fetch_object(md5, temporary)
            elif copy:
                shutil.copyfile(copy, temporary)
            if temporary.exists() and _md5(temporary) == md5.removesuffix(_DIRECTORY):
                temporary.chmod(0o444)  # as DVC keeps them
                temporary.replace(path)
                return wrong, f"replaced by what {source} has"
        except GhaError:
            pass  # there is no remote, or it has it not
        finally:
            temporary.unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    return wrong, ""


def leftovers() -> Leftovers:
    """What subjects have left behind that are no longer in subjects.yaml.

    Raises:
        GhaError: dvc.yaml, subjects.yaml or dvc.lock cannot be read.
    """
    declared = set(dvc_bridge.declared())
    subjects = {name.partition("@")[2] for name in declared}
    folders = [
        path
        for parent in (ARTIFACTS, LOGS, CAPTURES)
        for path in (sorted(parent.iterdir()) if parent.is_dir() else [])
        if path.name not in subjects and (path.is_dir() or path.is_symlink())
    ]
    return Leftovers(tuple(n for n in lock_file.read() if n not in declared), tuple(folders))


def remove(left: Leftovers) -> None:
    """Remove what ``leftovers`` found; a link to a capture goes, the capture stays."""
    dvc_bridge.forget(left.entries)
    for path in left.folders:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)


def _link(source: Path, to: Path) -> None:
    temporary = to.with_name(f".{to.name}.mending")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another file system
        shutil.copyfile(source, temporary)
    temporary.replace(to)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
