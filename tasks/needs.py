"""What each stage takes of a machine while it runs; for whoever starts it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """The share of a machine that one stage uses, so that no more run at a time than fit.

    Attributes:
        cores: the most that it keeps busy; it is given no more.
        memory: GiB at its peak: that of the demo, doubled and rounded up; of ingest that of a rig
            of 16 cameras at 1100x1604, likewise, for its pictures are not yet cropped.
        gpu: whether it has to have a GPU alone where there is one.
    """

    cores: int = 64
    memory: float = 0.5
    gpu: bool = False


NEEDS = {
    "ingest": Needs(memory=2.0),
    "matting": Needs(),
    "landmarks": Needs(memory=1.0),
    "tracking": Needs(memory=1.5),
    "geometry": Needs(memory=2.0),
    "avatar": Needs(memory=2.5),
    "evaluation": Needs(memory=1.5),
}
