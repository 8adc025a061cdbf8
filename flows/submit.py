"""``gha submit``: videos of a benchmark's hold-out cameras, packed as it wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gha_core.avatar import Avatar
from gha_core.errors import ArtifactError, ParameterError
from gha_core.evaluation.submission import BENCHMARKS, Entrant, Submission, pack
from tasks.parameters import find_subject

CAPTURES = Path("data", "captures")
SUBJECTS = Path("data", "subjects")
OUTPUTS = Path("outputs")


def submit_nersemble(
    task: str, names: Sequence[str], output: Path | None, partial: bool
) -> tuple[Path, Submission]:
    """Write the zip of a task; returns where, and what is in it.

    Raises:
        GhaError: no such task, an avatar is not made yet, or see
            :func:`gha_core.evaluation.submission.pack`.
    """
    if task not in BENCHMARKS:
        raise ParameterError(f"There is no task {task!r}; there are: {', '.join(BENCHMARKS)}.")
    if output is not None and output.is_dir():
        raise ParameterError(f"--output {output} is a folder; name the zip to write.")
    entrants = [_entrant(name) for name in dict.fromkeys(names)]
    path = output or OUTPUTS / f"nersemble_{task}.zip"
    return path, pack(BENCHMARKS[task], entrants, path, partial)


def _entrant(name: str) -> Entrant:
    find_subject(Path(), name)
    folder = SUBJECTS / name
    for stage in ("tracking", "avatar"):
        if not (folder / stage).is_dir():
            raise ArtifactError(f"{name} has no {stage} yet. Run: gha run {name}")
    capture = (CAPTURES / name).resolve()
    return Entrant(name, capture, folder / "tracking", Avatar.load(folder / "avatar"))
