"""What all stages share: the form of their parameters and of their inputs.

A stage is a module of this package with a ``Params`` class and a plain function
``run(inputs, params, out)``. It may be called from a script, a notebook or a test; caching,
scheduling and atomic replacement of its output folder are the business of whoever calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from gha_core.splits import Splits


class StageParams(BaseModel):
    """Base of the parameters of a stage: immutable, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Origin:
    """What a report says about how its subject was made. No score depends on it.

    Attributes:
        code: the version of gha, and its commit if it is known.
        parameters: section -> values, as the files of the project have them.
        seconds: stage -> wall time of its latest run on this machine.
        training: (steps done, seconds) as the latest training on this machine went on.
    """

    code: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    training: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True)
class Inputs:
    """Where a stage finds what it reads.

    Attributes:
        subject: id of the person.
        capture: the raw capture; only ingest may read it.
        format: how to read the capture: "auto" or a format's name; only ingest needs it.
        artifacts: folder with one folder per finished stage of this subject.
        work: scratch folder that survives a kill (checkpoints); whoever runs the stage removes it
            after success.
        splits: what is held out.
        seed: of every random choice in the stage.
        origin: for the report alone.
    """

    subject: str
    capture: Path
    format: str
    artifacts: Path
    work: Path
    splits: Splits = field(default_factory=Splits)
    seed: int = 0
    origin: Origin = field(default_factory=Origin)

    def __getitem__(self, stage: str) -> Path:
        """The output folder of an earlier stage."""
        return self.artifacts / stage
