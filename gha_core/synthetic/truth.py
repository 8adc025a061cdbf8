"""The truth about a demo capture, for tests only: no stage may read it.

``OUT/truth`` holds ``truth.json`` (names, settings, person), ``identity.safetensors`` (identity
[I], neutral_vertices [V, 3] in head space), per sequence ``<SEQ>.safetensors`` (expression [T, E],
rotation, translation [T, 3], scale [T], vertices [T, V, 3] in world metres with the face model's
topology, neck bent as filmed) and ``mattes.parquet`` (the schema of ``alpha``, source pixels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gha_core.artifacts.images import decode_matte, encode_png
from gha_core.artifacts.schemas import ALPHA
from gha_core.artifacts.stage_folder import read_json, write_json
from gha_core.artifacts.tables import read_rows, write_table
from gha_core.cameras import Camera
from gha_core.faces import FaceModel
from gha_core.pose import HeadPose
from gha_core.synthetic.person import Person

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class SequenceTruth:
    """``expression`` [T, E], ``poses`` of length T, ``vertices`` [T, V, 3] in world metres."""

    expression: Floats
    poses: tuple[HeadPose, ...]
    vertices: Floats


@dataclass(frozen=True)
class Truth:
    """What is true of a capture; ``vertices`` and masks follow the face model's topology."""

    identity: Floats
    neutral_vertices: Floats
    expression_names: tuple[str, ...]
    sequences: Mapping[str, SequenceTruth]
    cameras: Mapping[str, Camera]
    person: Mapping[str, Any]
    folder: Path

    def mattes(self) -> dict[tuple[str, int, str], NDArray[np.uint8]]:
        """[H, W] 8-bit coverage by (sequence, timestep, camera), source pixels."""
        return {
            (row["sequence"], row["timestep"], row["camera"]): decode_matte(row["alpha"])
            for row in read_rows(self.folder / "mattes.parquet", ALPHA)
        }


def load_truth(folder: Path) -> Truth:
    """Read ``OUT/truth``."""
    facts = read_json(folder / "truth.json")
    identity = load_file(folder / "identity.safetensors")
    sequences = {}
    for name in facts["sequences"]:
        data = load_file(folder / f"{name}.safetensors")
        poses = zip(data["rotation"], data["translation"], data["scale"], strict=True)
        sequences[name] = SequenceTruth(
            data["expression"],
            tuple(HeadPose(rotation, place, float(scale)) for rotation, place, scale in poses),
            data["vertices"],
        )
    return Truth(
        identity=identity["identity"],
        neutral_vertices=identity["neutral_vertices"],
        expression_names=tuple(facts["expression_names"]),
        sequences=sequences,
        cameras={row["camera"]: Camera.from_row(row) for row in facts["cameras"]},
        person=facts["person"],
        folder=folder,
    )


class Recorder:
    """Writes the truth while a capture is filmed."""

    def __init__(
        self, folder: Path, subject: str, model: FaceModel, person: Person, cameras: list[Camera]
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.subject = folder, subject
        self._facts: dict[str, Any] = {
            "subject": subject,
            "expression_names": list(model.expression_names),
            "cameras": [camera.row(subject) for camera in cameras],
            "sequences": [],
            "person": {
                "sex": person.sex,
                "hair_style": person.hair_style,
                "tone": person.tone,
                "head_length": person.head_length,
            },
        }
        self._mattes: list[dict[str, Any]] = []
        neutral = person.neutral(model).astype(np.float32)
        save_file(
            {"identity": person.identity, "neutral_vertices": neutral},
            folder / "identity.safetensors",
        )

    def sequence(
        self, name: str, expression: list[Floats], poses: list[HeadPose], vertices: Floats,
        mattes: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        save_file(
            {
                "expression": np.stack(expression).astype(np.float32),
                "rotation": np.stack([pose.rotation for pose in poses]),
                "translation": np.stack([pose.translation for pose in poses]),
                "scale": np.array([pose.scale for pose in poses]),
                "vertices": vertices.astype(np.float32),
            },
            self.folder / f"{name}.safetensors",
        )
        self._facts["sequences"].append(name)
        self._mattes += mattes

    def finish(self, settings: dict[str, Any]) -> None:
        write_table(self.folder / "mattes.parquet", ALPHA, self._mattes)
        write_json(self.folder / "truth.json", {**self._facts, "settings": settings})


def matte_row(
    subject: str, sequence: str, timestep: int, camera: Camera, alpha: Floats
) -> dict[str, Any]:
    """A row of ``mattes.parquet`` from coverage [H, W] in 0..1."""
    levels = (np.clip(alpha, 0, 1) * 255 + 0.5).astype(np.uint8)
    return {
        "subject": subject,
        "sequence": sequence,
        "timestep": timestep,
        "camera": camera.name,
        "alpha": encode_png(levels),
        "width": camera.width,
        "height": camera.height,
    }
