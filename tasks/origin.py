"""How a subject was made, for its report: code, parameters, and how long it took here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gha_core
from tasks.parameters import PARAMS_FILE, SECTIONS, STAGES, find_subject, read_yaml
from tasks.stage import Origin

_TRAINING = "training avatar"


def read_origin(root: Path, subject: str) -> Origin:
    """Of one subject of the project at ``root``; what is not known is left out."""
    values, overrides = read_yaml(root / PARAMS_FILE), find_subject(root, subject).overrides
    parameters: dict[str, Any] = {"seed": values.get("seed", 0)}
    for section in SECTIONS:
        parameters[section] = _merged(values.get(section) or {}, overrides[section])
    logs = root / "data" / "logs" / subject
    seconds = {stage: _seconds(logs / f"{stage}.json") for stage in STAGES}
    return Origin(
        code_version(),
        parameters,
        {stage: each for stage, each in seconds.items() if each},
        list(_training(logs / "avatar.progress")),
    )


def code_version() -> str:
    """``0.1.0, commit 1b9f4aa``; ``-dirty`` if files were edited since that commit."""
    try:
        number = version("gha")
    except PackageNotFoundError:
        number = "of unknown version"
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    folder = Path(gha_core.__file__).parents[1]
    with suppress(OSError):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return f"{number}, commit {done.stdout.strip()}"
    return number


def _merged(base: Any, override: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(override, dict):
        return override
    return base | {
        key: _merged(base[key], each) if key in base else each for key, each in override.items()
    }


def _seconds(record: Path) -> float:
    try:
        return float(json.loads(record.read_text())["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _training(progress: Path) -> Iterator[tuple[int, float]]:
    with suppress(OSError):
        for line in progress.read_text().splitlines():
            with suppress(ValueError, KeyError, TypeError):
                said = json.loads(line)
                if said["description"] == _TRAINING:
                    yield int(said["done"]), float(said["seconds"])
