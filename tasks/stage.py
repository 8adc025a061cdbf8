"""What all stages share: the form of their parameters and of their inputs.

A stage is a module of this package with a ``Params`` class and a plain function
``run(inputs, params, out)``. It may be called from a script, a notebook or a test; caching,
scheduling and atomic replacement of its output folder are the business of whoever calls it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from gha_core.splits import Splits


class StageParams(BaseModel):
    """Base of the parameters of a stage: immutable, and unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    """

    subject: str
    capture: Path
    format: str
    artifacts: Path
    work: Path
    splits: Splits = field(default_factory=Splits)
    seed: int = 0

    def __getitem__(self, stage: str) -> Path:
        """The output folder of an earlier stage."""
        return self.artifacts / stage
