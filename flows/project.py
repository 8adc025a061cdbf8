"""The project's folder and the edits that gha makes in it: subjects and links to their captures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from gha_core.errors import CaptureError, ParameterError
from tasks.parameters import (
    SECTIONS,
    SUBJECTS_FILE,
    Subject,
    check_subject_name,
    read_subjects,
    read_yaml,
)

CAPTURES = Path("data", "captures")


def enter() -> Path:
    """Make the project that the current folder is part of the current folder; return it.

    Raises:
        ParameterError: no folder from here up is a project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / ".dvc").is_dir():
            os.chdir(folder)
            return folder
    raise ParameterError(
        f"{here} is not inside a gha project (a folder with dvc.yaml and .dvc). "
        "Change to your clone of gha."
    )


def add_subject(name: str, capture: Path, format: str, splits: Mapping[str, Any]) -> None:
    """Register a capture under a new name: an entry in subjects.yaml and a link in data/captures.

    Args:
        capture: absolute, or relative to the project.
        splits: what this subject holds out; empty: as before, or what params.yaml says.

    Raises:
        CaptureError: there is nothing at ``capture``.
        ParameterError: the name cannot be used or is taken by another capture.
    """
    check_subject_name(name)
    if not capture.exists():
        raise CaptureError(f"The capture {capture} does not exist.")
    known = read_subjects(Path()).get(name)
    if known and known.capture.resolve() != capture.resolve():
        raise ParameterError(
            f"The name {name} is taken by {known.capture}. Choose another, or change the entry in "
            f"{SUBJECTS_FILE}."
        )
    if capture.is_relative_to(Path.cwd()):
        capture = capture.relative_to(Path.cwd())
    _link(name, capture)
    yaml, content = _load()
    entry = content["subjects"].setdefault(name, CommentedMap())
    entry["capture"], entry["format"] = str(capture), format
    if splits and dict(entry.get("splits") or {}) != splits:
        entry["splits"] = CommentedMap(splits)
        entry["splits"].fa.set_flow_style()
    _store(yaml, content)


def tidy() -> dict[str, Subject]:
    """Put back what DVC needs and people remove: empty sections, links to captures. All subjects.

    Raises:
        ParameterError: subjects.yaml or params.yaml has a mistake in its outline.
    """
    subjects = read_subjects(Path())
    entries = (read_yaml(Path(SUBJECTS_FILE)).get("subjects") or {}).values()
    if any(set(SECTIONS) - set(entry) for entry in entries):
        _store(*_load())
    for subject in subjects.values():
        link = CAPTURES / subject.name
        if not link.exists() and subject.capture.exists():
            _link(subject.name, subject.capture)
    return subjects


def _link(name: str, capture: Path) -> None:
    link = CAPTURES / name
    if link.exists() and link.resolve() == capture.resolve():
        return
    if link.exists() and not link.is_symlink():
        raise CaptureError(f"{link} is in the way: move it, or give the subject another name.")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    # Captures are big and often elsewhere; DVC hashes through the link, nothing is copied.
    link.symlink_to(capture.resolve())


def _load() -> tuple[YAML, CommentedMap]:
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 100, True
    path = Path(SUBJECTS_FILE)
    content = yaml.load(path) if path.exists() else None
    content = CommentedMap() if content is None else content
    if content.get("subjects") is None:
        content["subjects"] = CommentedMap()
    return yaml, content


def _store(yaml: YAML, content: CommentedMap) -> None:
    for entry in content["subjects"].values():
        for section in SECTIONS:
            if not entry.get(section):
                # Written out although empty: DVC tracks it by name.
                entry[section] = CommentedMap()
                entry[section].fa.set_flow_style()
    path = Path(SUBJECTS_FILE)
    temporary = path.with_suffix(".yaml.writing")
    with temporary.open("w") as file:
        yaml.dump(content, file)
    temporary.replace(path)
