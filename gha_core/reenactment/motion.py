"""What a driver does: head pose and expression of every timestep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from gha_core.artifacts import schemas
from gha_core.artifacts.tables import read_rows
from gha_core.errors import ArtifactError, ParameterError
from gha_core.pose import HeadPose

Coefficients = NDArray[np.float32]


@dataclass(frozen=True)
class Motion:
    """Pose and expression of one timestep of a driver.

    Attributes:
        expression: [E] float32 coefficients.
    """

    sequence: str
    timestep: int
    pose: HeadPose
    expression: Coefficients


def read_motion(tracking: Path, sequence: str | None = None) -> list[Motion]:
    """The tracked motion of one sequence (or of all), in order.

    Raises:
        ArtifactError: the artifact has no such sequence.
    """
    rows = list(read_rows(tracking / "tracking.parquet", schemas.TRACKING))
    known = sorted({row["sequence"] for row in rows})
    if sequence is not None and sequence not in known:
        raise ArtifactError(
            f"{tracking} has no sequence {sequence!r}. It has: {', '.join(known) or 'none'}."
        )
    return [
        Motion(
            row["sequence"],
            row["timestep"],
            HeadPose(np.array(row["rotation"]), np.array(row["translation"]), row["scale"]),
            np.array(row["expression"], np.float32),
        )
        for row in rows
        if sequence is None or row["sequence"] == sequence
    ]


def read_expression_names(tracking: Path) -> tuple[str, ...]:
    """What the tracked coefficients mean, in order.

    Raises:
        ArtifactError: ``identity.safetensors`` is missing or damaged.
    """
    path = tracking / "identity.safetensors"
    try:
        with safe_open(path, "np") as file:
            return tuple(json.loads((file.metadata() or {})["expression_names"]))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. Run the tracking stage.") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Run the tracking stage again.") from None


def in_terms_of(
    wanted: Sequence[str], motions: Sequence[Motion], names: Sequence[str]
) -> list[Motion]:
    """``motions`` with their coefficients in the order ``wanted``; 0 for those that they lack.

    Args:
        names: of the coefficients as they are.

    Raises:
        ParameterError: the two have no name in common.
    """
    if tuple(wanted) == tuple(names):
        return list(motions)
    place = {name: index for index, name in enumerate(names)}
    common = [(index, place[name]) for index, name in enumerate(wanted) if name in place]
    if not common:
        raise ParameterError(
            f"The driver's coefficients ({names[0]}, …) and the avatar's ({wanted[0]}, …) have no "
            "name in common: they were tracked with different face models. Track the driver with "
            "the avatar's (tracking.face_model)."
        )
    to, source = (list(indices) for indices in zip(*common, strict=True))
    moved = []
    for motion in motions:
        expression = np.zeros(len(wanted), np.float32)
        expression[to] = motion.expression[source]
        moved.append(replace(motion, expression=expression))
    return moved
