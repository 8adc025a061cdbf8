"""Tracking, geometry and mattes of a synthetic subject against the truth that was filmed with it.

    python benchmarks/accuracy.py data/subjects/demo data/studio/demo/truth

Millimetres in the world, over the face region of the face model: vertex to vertex for tracking
(every timestep), truth vertex to nearest surface point for the geometry stage's neutral mesh, which
is posed by the tracked pose and compared with the true neutral head in its true pose.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.spatial import cKDTree

from gha_core.artifacts import schemas
from gha_core.artifacts.images import decode_matte
from gha_core.artifacts.tables import read_rows
from gha_core.faces.identity_space import similarity_to
from gha_core.pose import HeadPose
from gha_core.synthetic.truth import Truth, load_truth
from gha_core.tracked_face import TrackedFace

SURFACE_SAMPLES = 300_000

Floats = NDArray[np.floating]


WANTED = (
    *("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthPucker"),
    *("eyeBlinkLeft", "eyeBlinkRight", "browInnerUp"),
)
_GAZE = {
    "sideways": (
        ("eyeLookOutLeft", "eyeLookInLeft"),  # to the person's left
        ("eyeLookInRight", "eyeLookOutRight"),
    ),
    "upwards": (("eyeLookUpLeft", "eyeLookDownLeft"), ("eyeLookUpRight", "eyeLookDownRight")),
}
ACTIVE = 0.3  # the truth of a coefficient must exceed this somewhere to be compared


@dataclass(frozen=True)
class Tracked:
    """A subject's tracking beside the truth.

    Attributes:
        sequences: names of the T timesteps.
        errors: [T, N, 3] found - true face vertices along the axes of the true head, mm.
        similar: [T] mean distance (mm) that is left when each timestep's face is moved, turned and
            scaled to the true one: what a single camera can know.
        found, true: [T, E] expressions; names: of the E.
    """

    sequences: tuple[str, ...]
    errors: Floats
    similar: Floats
    found: Floats
    true: Floats
    names: tuple[str, ...]

    @staticmethod
    def load(artifacts: Path, truth: Truth) -> Tracked:
        face = TrackedFace.load(artifacts / "tracking")
        region = face.regions["face"].numpy()
        sequences, errors, similar, found, true = [], [], [], [], []
        for row in read_rows(artifacts / "tracking" / "tracking.parquet", schemas.TRACKING):
            expression = np.array(row["expression"], np.float32)
            found_face = face.deformed(torch.from_numpy(expression)).numpy()
            places = _pose(row).to_world(found_face)[region]
            own = truth.sequences[row["sequence"]]
            wanted = own.vertices[row["timestep"]][region]
            scale, turn, shift = similarity_to(wanted, places)
            rest = scale * places @ turn.T + shift - wanted
            sequences.append(row["sequence"])
            errors.append(1000 * (places - wanted) @ own.poses[row["timestep"]].matrix)
            similar.append(1000 * np.linalg.norm(rest, axis=-1).mean())
            found.append(expression)
            true.append(own.expression[row["timestep"]])
        return Tracked(
            tuple(sequences), np.stack(errors), np.array(similar), np.stack(found),
            np.stack(true), truth.expression_names,
        )  # fmt: skip

    def figures(self) -> dict[str, Any]:
        """What the report says; lengths in mm, over the vertices of the face and all timesteps.

        The bias is each vertex's mean error: an error of the person's shape, with which an avatar
        can live, as it learns its own shape on top.
        """
        distance = np.linalg.norm(self.errors, axis=-1)
        changing = np.linalg.norm(self.errors - self.errors.mean(0), axis=-1)
        by_timestep = distance.mean(1)
        names = np.array(self.sequences)
        return {
            "tracking_mm": _short(distance.mean()),
            "tracking_mm_p95": _short(np.percentile(distance, 95)),
            "tracking_mm_without_bias": _short(changing.mean()),
            "tracking_mm_without_bias_p95": _short(np.percentile(changing, 95)),
            "tracking_mm_up_to_similarity": _short(self.similar.mean()),
            "tracking_mm_worst_timestep": _short(by_timestep.max()),
            "tracking_mm_by_sequence": {
                name: _short(by_timestep[names == name].mean())
                for name in dict.fromkeys(self.sequences)
            },
            "gaze_correlation": self.gaze(),
            "correlation": self.correlations(),
        }

    def gaze(self) -> dict[str, float]:
        """Correlation with the truth of where the eyes look, both eyes taken together: of opposite
        coefficients only the difference says that."""
        result = {}
        for axis, pairs in _GAZE.items():
            found, true = (
                sum(values[:, self.names.index(plus)] - values[:, self.names.index(minus)]
                    for plus, minus in pairs)
                for values in (self.found, self.true)
            )  # fmt: skip
            result[axis] = _short(np.corrcoef(found, true)[0, 1])
        return result

    def correlations(self) -> dict[str, float | None]:
        """With the truth, of each expression that the truth activates; None where the found one
        never moves. Those that the bar names come first."""
        active = [name for name, top in zip(self.names, self.true.max(0), strict=True)
                  if top > ACTIVE]  # fmt: skip
        result: dict[str, float | None] = {}
        for name in sorted(active, key=lambda name: name not in WANTED):
            column = self.names.index(name)
            found, true = self.found[:, column], self.true[:, column]
            moves = np.ptp(found) > 0
            result[name] = _short(np.corrcoef(found, true)[0, 1]) if moves else None
        return result


def _short(value: Any) -> float:
    return round(float(value), 3)


def geometry_errors(artifacts: Path, truth: Truth, every: int = 6) -> list[float]:
    """Mean distance in mm from the true neutral face to the mesh, at every n-th timestep."""
    mesh = load_file(artifacts / "geometry" / "geometry.safetensors")
    surface = _sample(mesh["vertices"], mesh["faces"].astype(int))
    region = TrackedFace.load(artifacts / "tracking").regions["face"].numpy()
    errors = []
    for row in read_rows(artifacts / "tracking" / "tracking.parquet", schemas.TRACKING):
        if row["timestep"] % every == 0:
            true = truth.sequences[row["sequence"]].poses[row["timestep"]]
            tree = cKDTree(_pose(row).to_world(surface))
            distance, _ = tree.query(true.to_world(truth.neutral_vertices[region]))
            errors.append(1000 * float(distance.mean()))
    return errors


def _pose(row: dict[str, Any]) -> HeadPose:
    return HeadPose(np.array(row["rotation"]), np.array(row["translation"]), row["scale"])


def _sample(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Points spread evenly over the surface."""
    rng = np.random.default_rng(0)
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=-1)
    chosen = rng.choice(len(faces), SURFACE_SAMPLES, p=area / area.sum())
    u, v = rng.random((2, SURFACE_SAMPLES, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]


def matte_error(artifacts: Path, truth: Truth, every: int = 7) -> float:
    """Mean absolute error of alpha (0..1) of every n-th frame, in the stored crop."""
    columns = ["sequence", "timestep", "camera", "transform"]
    frames = read_rows(artifacts / "ingest" / "frames.parquet", schemas.FRAMES, columns)
    transforms = {
        (row["sequence"], row["timestep"], row["camera"]): np.reshape(row["transform"], (3, 3))
        for row in frames
    }
    true = truth.mattes()
    errors = []
    for number, row in enumerate(read_rows(artifacts / "matting" / "alpha.parquet", schemas.ALPHA)):
        if number % every:
            continue
        key = row["sequence"], row["timestep"], row["camera"]
        found = decode_matte(row["alpha"]).astype(np.float32) / 255
        wanted = stored_matte(true[key], transforms[key], found.shape)
        errors.append(float(np.abs(found - wanted).mean()))
    return float(np.mean(errors))


def stored_matte(matte: np.ndarray, transform: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[H, W] 0..1: a filmed 8-bit matte in the pixels of a stored frame."""
    # From continuous pixel coordinates to OpenCV's, whose integers are pixel centres.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    warp = (np.linalg.inv(half) @ transform @ half)[:2]
    return cv2.warpAffine(matte.astype(np.float32) / 255, warp, shape[::-1], flags=cv2.INTER_LINEAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("artifacts", type=Path, help="data/subjects/NAME")
    parser.add_argument("truth", type=Path, help="data/studio/NAME/truth")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    truth = load_truth(given.truth)
    figures = {
        **Tracked.load(given.artifacts, truth).figures(),
    }
    if (given.artifacts / "geometry").exists():
        errors = geometry_errors(given.artifacts, truth)
        figures["geometry_mm"] = _short(np.mean(errors))
    if (given.artifacts / "matting").exists():
        figures["matte_mean_absolute_error"] = round(matte_error(given.artifacts, truth), 5)
    tell(figures, given.json)


def tell(figures: dict[str, Any], path: Path | None) -> None:
    """Print the figures, and write them to the file if one is wanted."""
    text = json.dumps(figures, indent=2)
    print(text)
    if path:
        path.write_text(text + "\n")


if __name__ == "__main__":
    main()
