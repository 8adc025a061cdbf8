"""Which frames train and which are held out. Nothing that is trained may see a test row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gha_core.errors import ParameterError

Part = Literal["train", "novel_view", "novel_expression", "novel_view_and_expression"]


class Splits(BaseModel):
    """The hold-out rules. A row is a test row as soon as one of them holds it out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    test_cameras: tuple[str, ...] = Field((), description="cameras that no training step sees")
    test_sequences: tuple[str, ...] = Field((), description="sequences that no training step sees")
    test_every: int = Field(0, ge=0, description="hold out every n-th timestep; 0 = none")
    test_last: float = Field(
        0.0, ge=0.0, lt=1.0, description="hold out this last fraction of every training sequence"
    )

    def check(self, cameras: Iterable[str], sequences: Iterable[str]) -> None:
        """Raise ParameterError for a held-out name that the capture does not have, or if nothing is
        left to train on."""
        for kind, named, known in (
            ("camera", self.test_cameras, sorted(cameras)),
            ("sequence", self.test_sequences, sorted(sequences)),
        ):
            for name in named:
                if name not in known:
                    raise ParameterError(
                        f"splits.test_{kind}s names the {kind} {name!r}, which the capture does "
                        f"not have. It has: {', '.join(known)}."
                    )
            if known and set(named) >= set(known):
                raise ParameterError(
                    f"splits.test_{kind}s holds out every {kind} of the capture; leave at least "
                    "one to train on."
                )

    def is_test(self, sequence: str, position: float, timestep: int, camera: str) -> bool:
        """Whether a row is held out.

        Args:
            position: 0..1, place of the timestep in its sequence: index / count.
        """
        return camera in self.test_cameras or self.is_test_time(sequence, position, timestep)

    def is_test_time(self, sequence: str, position: float, timestep: int) -> bool:
        """Whether a timestep is held out for all cameras."""
        return (
            sequence in self.test_sequences
            or (self.test_every > 0 and timestep % self.test_every == self.test_every - 1)
            or position >= 1.0 - self.test_last
        )

    def part(self, sequence: str, position: float, timestep: int, camera: str) -> Part:
        """The evaluation task that a row belongs to."""
        time = self.is_test_time(sequence, position, timestep)
        view = camera in self.test_cameras
        if time and view:
            return "novel_view_and_expression"
        if time:
            return "novel_expression"
        return "novel_view" if view else "train"


def positions(timesteps: Mapping[str, Iterable[int]]) -> dict[tuple[str, int], float]:
    """The 0..1 place of every (sequence, timestep) in its sequence, as :class:`Splits` wants it."""
    places = {}
    for sequence, steps in timesteps.items():
        ordered = sorted(set(steps))
        for index, timestep in enumerate(ordered):
            places[sequence, timestep] = index / len(ordered)
    return places
