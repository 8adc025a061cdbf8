"""Run one stage outside of the project, with given parameters: ``python -m tasks.rehearsal FILE``.

The file is JSON, see :class:`Rehearsal`. Nothing in data/ is read but the capture, and nothing is
written there. Exit status as of ``python -m tasks``.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gha_core.artifacts import stage_folder
from gha_core.errors import GhaError
from gha_core.splits import Splits
from tasks.stage import Inputs


@dataclass(frozen=True)
class Rehearsal:
    """What to run.

    Attributes:
        capture, format: the raw capture.
        artifacts: folder of all stages' folders, this one's included.
        params, splits: as in params.yaml.
    """

    stage: str
    capture: str
    format: str
    artifacts: str
    params: dict[str, Any]
    splits: dict[str, Any]
    seed: int


def run(rehearsal: Rehearsal) -> None:
    """Run it here; its artifact lies where ``artifacts`` says."""
    module = importlib.import_module(f"tasks.{rehearsal.stage}")
    artifacts = Path(rehearsal.artifacts)
    work = artifacts / f".{rehearsal.stage}.work"
    work.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(
        subject="rehearsal",
        capture=Path(rehearsal.capture),
        format=rehearsal.format,
        artifacts=artifacts,
        work=work,
        splits=Splits.model_validate(rehearsal.splits),
        seed=rehearsal.seed,
    )
    with stage_folder.writing(artifacts / rehearsal.stage) as out:
        module.run(inputs, module.Params.model_validate(rehearsal.params), out)


def main(arguments: list[str]) -> int:
    try:
        run(Rehearsal(**json.loads(Path(arguments[0]).read_text())))
    except GhaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
