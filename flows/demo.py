"""The demo: synthetic people, filmed by the project, so that everything can be tried at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from flows import project
from gha_core.errors import StageError
from tasks.parameters import read_subjects

FIRST = "demo"
FIRST_SEED = 2
STUDIO = Path("data", "studio")


def names(people: int) -> list[str]:
    """``demo``, ``demo-2``, ``demo-3``…: every one another person."""
    return [FIRST if number == 1 else f"{FIRST}-{number}" for number in range(1, people + 1)]


def register(name: str) -> None:
    """Film the person of this name unless that is done, and register the capture.

    The truth about the person stays in the studio's folder; what is registered has none of it.

    Raises:
        StageError: the filming failed.
    """
    studio = STUDIO / name
    if not studio.exists():
        number = int(name.removeprefix(FIRST).lstrip("-") or 1)
        _film(studio, FIRST_SEED + number - 1)
    (capture,) = (folder for folder in studio.iterdir() if folder.name != "truth")
    held_out = read_subjects(Path())[FIRST].overrides["splits"]
    project.add_subject(name, capture, "nersemble", held_out)


def _film(studio: Path, seed: int) -> None:
    unfinished = studio.with_name(f".{studio.name}.filming")
    shutil.rmtree(unfinished, ignore_errors=True)
    arguments = [sys.executable, "-m", "gha_core.synthetic", str(unfinished), "--seed", str(seed)]
    if subprocess.run(arguments, check=False, stdout=subprocess.DEVNULL).returncode:
        raise StageError(f"The demo capture {studio} could not be made; see the lines above.")
    unfinished.rename(studio)
