"""Tracking, geometry and mattes of a synthetic subject against the truth that was filmed with it.

    python benchmarks/accuracy.py data/subjects/demo data/studio/demo/truth

Millimetres in the world, over the face region of the face model: vertex to vertex for tracking
(every timestep), truth vertex to nearest surface point for the geometry stage's neutral mesh, which
is posed by the tracked pose and compared with the true neutral head in its true pose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors.numpy import load_file
from scipy.spatial import cKDTree

from gha_core.artifacts import schemas
from gha_core.artifacts.images import decode_matte
from gha_core.artifacts.tables import read_rows
from gha_core.evaluation.regions import TrackedFace
from gha_core.pose import HeadPose
from gha_core.synthetic.truth import Truth, load_truth

SURFACE_SAMPLES = 300_000


def tracking_errors(artifacts: Path, truth: Truth) -> dict[str, list[float]]:
    """Mean face-region vertex error of every timestep in mm, by sequence."""
    face = TrackedFace.load(artifacts / "tracking")
    region = face.regions["face"]
    errors: dict[str, list[float]] = {}
    for row in read_rows(artifacts / "tracking" / "tracking.parquet", schemas.TRACKING):
        found = _pose(row).to_world(face.vertices(np.array(row["expression"], np.float32)))
        true = truth.sequences[row["sequence"]].vertices[row["timestep"]]
        distance = np.linalg.norm(found - true, axis=-1)[region]
        errors.setdefault(row["sequence"], []).append(1000 * float(distance.mean()))
    return errors


def geometry_errors(artifacts: Path, truth: Truth, every: int = 6) -> list[float]:
    """Mean distance in mm from the true neutral face to the mesh, at every n-th timestep."""
    mesh = load_file(artifacts / "geometry" / "geometry.safetensors")
    surface = _sample(mesh["vertices"], mesh["faces"].astype(int))
    region = TrackedFace.load(artifacts / "tracking").regions["face"]
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
    tracking = tracking_errors(given.artifacts, truth)
    every = np.concatenate([np.array(errors) for errors in tracking.values()])
    figures = {
        "tracking_mm": round(float(every.mean()), 3),
        "tracking_mm_worst_timestep": round(float(every.max()), 3),
        "tracking_mm_by_sequence": {
            name: round(float(np.mean(errors)), 3) for name, errors in tracking.items()
        },
        "geometry_mm": round(float(np.mean(geometry_errors(given.artifacts, truth))), 3),
        "matte_mean_absolute_error": round(matte_error(given.artifacts, truth), 5),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
