"""All that the viewer shows of one person."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gha_core.avatar import Avatar
from gha_core.avatar.initialise import Surface
from gha_core.dataset import Dataset, View
from gha_core.errors import ArtifactError
from gha_core.pose import HeadPose
from gha_core.splits import Splits
from gha_core.tracked_face import TrackedFace

STAGES = ("ingest", "matting", "tracking", "geometry", "avatar")


@dataclass(frozen=True)
class Moment:
    """One timestep of a tracked sequence.

    Attributes:
        time: seconds; expression: [E]; views: its photos by camera.
    """

    timestep: int
    time: float
    pose: HeadPose
    expression: NDArray[np.float32]
    views: dict[str, View]


@dataclass(frozen=True)
class Subject:
    """Attributes:
    sequences: name -> moments in order.
    """

    name: str
    avatar: Avatar
    dataset: Dataset
    face: TrackedFace
    surface: Surface
    sequences: dict[str, list[Moment]]

    @staticmethod
    def load(name: str, artifacts: Path) -> Subject:
        """Read the artifacts of all stages up to the avatar.

        Raises:
            ArtifactError: one is missing or damaged.
        """
        for stage in STAGES:
            if not (artifacts / stage).is_dir():
                raise ArtifactError(f"{name} has no {stage} yet. Run: gha run {name}")
        avatar = Avatar.load(artifacts / "avatar")
        dataset = Dataset(
            artifacts / "ingest", artifacts / "matting", artifacts / "tracking", Splits()
        )
        face, surface = (
            TrackedFace.load(artifacts / "tracking"),
            Surface.load(artifacts / "geometry"),
        )
        return Subject(name, avatar, dataset, face, surface, _sequences(dataset))


def _sequences(dataset: Dataset) -> dict[str, list[Moment]]:
    sequences: dict[str, dict[int, Moment]] = {}
    for view in dataset.views:
        moments = sequences.setdefault(view.sequence, {})
        if view.timestep not in moments:
            pose, expression = view.motion
            moments[view.timestep] = Moment(view.timestep, view.time, pose, expression, {})
        moments[view.timestep].views[view.camera] = view
    return {name: list(moments.values()) for name, moments in sequences.items()}
