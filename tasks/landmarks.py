"""Landmarks: 478 points on the face in every frame, and where they are in the world.

Reads ingest and matting. A frame whose face is missing, doubtful or not the subject's is set aside
with its reason. A view that contradicts the other cameras of its timestep keeps its landmarks but
is trusted less. Held-out cameras get landmarks (evaluation compares with them) but have no part in
the triangulated points, from which training may learn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.contact_sheet import contact_sheet
from gha_core.artifacts.images import Image, decode_image, decode_matte, encode_jpeg
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import TableWriter, read_rows, read_table
from gha_core.cameras import Camera
from gha_core.errors import StageError, locate
from gha_core.landmarks import (
    LANDMARKS,
    Detection,
    Detector,
    FaceMeshDetector,
    InsightFaceDetector,
    Triangulation,
    triangulate,
)
from gha_core.landmarks.drawing import draw_landmarks
from gha_core.processors import cores
from gha_core.progress import track
from tasks.stage import Inputs, StageParams

_GRAY = 128
_PREVIEW_TIMESTEPS, _PREVIEW_CAMERAS, _PREVIEW_SIDE = 4, 10, 256
_BATCH = 64
_LISTED = 20  # outlying views in the summary, the worst

Row = dict[str, Any]


class Params(StageParams):
    """How faces and their landmarks are found."""

    detector: Literal["facemesh", "insightface"] = Field(
        "facemesh",
        description="facemesh: 478 points with irises; insightface: 68 points, by models that you "
        "download yourself and that are for non-commercial research only",
    )
    min_confidence: float = Field(
        0.3, ge=0, le=1, description="set a frame aside if its landmarks are trusted less"
    )
    masked: bool = Field(
        False, description="show the detector the subject on plain gray instead of the photo"
    )
    min_on_matte: float = Field(
        0.5, ge=0, le=1, description="least fraction of the points that must lie on the subject"
    )
    max_reprojection: float = Field(
        0.02, gt=0, le=1, description="farther from where the other cameras see it, a point is an "
        "outlier, and a view whose median point is, is trusted less; fraction of the image's "
        "longer side",
    )  # fmt: skip
    min_found: float = Field(
        0.05, ge=0, le=1, description="stop if a face is found in fewer of all frames"
    )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Write landmarks, landmarks3d and rejects to ``out``.

    Raises:
        StageError: (nearly) no frame has a face.
        AssetError: the models are not there and cannot be fetched.
    """
    rows = read_rows(inputs["ingest"] / "cameras.parquet", schemas.CAMERAS)
    cameras = {row["camera"]: Camera.from_row(row) for row in rows}
    trained = [name for name in cameras if name not in inputs.splits.test_cameras]
    detector = InsightFaceDetector() if params.detector == "insightface" else FaceMeshDetector()
    side = max(max(camera.width, camera.height) for camera in cameras.values())
    threshold = params.max_reprojection * side
    tally = _Tally(sorted(cameras))
    preview = _Preview.choose(inputs["ingest"], sorted(cameras))
    points_table = TableWriter(out / "landmarks.parquet", schemas.LANDMARKS)
    world_table = TableWriter(out / "landmarks3d.parquet", schemas.LANDMARKS_3D)
    rejects_table = TableWriter(out / "rejects.parquet", schemas.REJECTS)
    with points_table, world_table, rejects_table:
        for frame, views in groupby(
            _looked_at(inputs, detector, params), lambda view: view.key[:3]
        ):
            found: dict[str, Detection] = {}
            for view in views:
                preview.add(view)
                tally.count(view)
                if view.detection is None:
                    rejects_table.write({**view.row_key, "reason": view.problem})
                else:
                    found[view.camera] = view.detection
            key = dict(zip(("subject", "sequence", "timestep"), frame, strict=True))
            used = [name for name in trained if name in found]
            if len(trained) > 1:
                seen = [found[name] for name in used]
                world = _in_world(seen, [cameras[name] for name in used], threshold)
                errors = _view_errors(seen, world)
                tally.compare(used, world)
                for name, error in zip(used, errors, strict=True):
                    if error > threshold:
                        tally.outlying.append(_Outlier(float(error), frame[1], frame[2], name))
                        found[name] = _doubted(found[name], float(error), threshold)
                world_table.write(
                    {
                        **key,
                        "points": world.points.astype(np.float32).ravel(),
                        "error": world.error.astype(np.float32),
                        "views": world.views,
                    }
                )
            for name, detection in found.items():
                points_table.write({**key, "camera": name, **_columns(detection, detector.name)})
    tally.check(params.min_found)
    (out / "preview.jpg").write_bytes(encode_jpeg(preview.picture(), 90))
    write_json(
        out / "summary.json",
        {
            "detector": detector.name,
            "licences": {detector.name: detector.licence},
            **tally.summary(),
            "warnings": tally.warnings(),
        },
    )


@dataclass(frozen=True)
class _View:
    """One frame that was looked at: with a detection, or with the reason why it has none."""

    key: tuple[str, str, int, str]  # subject, sequence, timestep, camera
    image: Image
    detection: Detection | None
    problem: str = ""

    @property
    def camera(self) -> str:
        return self.key[3]

    @property
    def row_key(self) -> Row:
        return dict(zip(("subject", "sequence", "timestep", "camera"), self.key, strict=True))


def _looked_at(inputs: Inputs, detector: Detector, params: Params) -> Iterator[_View]:
    """Every frame in the order of the table, detected on all cores with bounded memory."""
    path = inputs["ingest"] / "frames.parquet"
    total = len(read_table(path, schemas.FRAMES, ["timestep"]))
    frames = read_rows(path, schemas.FRAMES, ["subject", "sequence", "timestep", "camera", "image"])
    pairs = _with_mattes(frames, read_rows(inputs["matting"] / "alpha.parquet", schemas.ALPHA))
    progress = track(pairs, "finding landmarks", total)

    def look(pair: tuple[Row, bytes | None]) -> _View:
        return _look(detector, *pair, params)

    with ThreadPoolExecutor(cores()) as pool:
        while batch := list(islice(progress, _BATCH)):
            yield from pool.map(look, batch)


def _with_mattes(
    frames: Iterable[Row], mattes: Iterable[Row]
) -> Iterator[tuple[Row, bytes | None]]:
    """Frames with their mattes; matting may have set some aside. Both are sorted by key."""

    def key(row: Row) -> tuple[str, int, str]:
        return row["sequence"], row["timestep"], row["camera"]

    waiting = iter(mattes)
    matte = next(waiting, None)
    for frame in frames:
        while matte is not None and key(matte) < key(frame):
            matte = next(waiting, None)
        matched = matte is not None and key(matte) == key(frame)
        yield frame, matte["alpha"] if matched and matte is not None else None


def _look(detector: Detector, row: Row, matte: bytes | None, params: Params) -> _View:
    image = decode_image(row["image"])
    key = (row["subject"], row["sequence"], row["timestep"], row["camera"])
    alpha = None if matte is None else decode_matte(matte)
    shown = image
    if params.masked and alpha is not None:
        opaque = alpha[..., None] / np.float32(255)
        shown = (image * opaque + _GRAY * (1 - opaque) + 0.5).astype(np.uint8)
    found = detector.detect(shown)
    if found is None:
        return _View(key, image, None, "no face was found")
    if found.confidence < params.min_confidence:
        return _View(
            key,
            image,
            None,
            f"the face was found with confidence {found.confidence:.2f}, below "
            f"{params.min_confidence:g}",
        )
    if alpha is not None:
        on_matte = _fraction_on(alpha, found.points)
        if on_matte < params.min_on_matte:
            return _View(
                key, image, None, f"only {on_matte:.0%} of the face found is on the subject's matte"
            )
    return _View(key, image, found)


def _fraction_on(alpha: Image, points: NDArray[np.float32]) -> float:
    """Of the points, how many lie where the matte is mostly foreground."""
    height, width = alpha.shape
    points = points[np.isfinite(points).all(axis=-1)]
    x, y = np.floor(points).astype(int).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return float((alpha[y[inside], x[inside]] > 127).sum() / len(points))


def _columns(found: Detection, detector: str) -> Row:
    return {
        "detector": detector,
        "points": found.points.ravel(),
        "confidence": found.confidence,
        "box": found.box,
    }


def _in_world(found: list[Detection], cameras: list[Camera], threshold: float) -> Triangulation:
    if len(found) < 2:
        return Triangulation(
            np.full((LANDMARKS, 3), np.nan),
            np.full(LANDMARKS, np.nan),
            np.zeros(LANDMARKS, np.int32),
            np.zeros((len(found), LANDMARKS), bool),
            np.full((len(found), LANDMARKS), np.nan),
        )
    # A point that faces away from a camera is a guess there; it may speak only where nothing else
    # does, so that its weight is small and not zero.
    weights = np.stack([each.confidence * (0.02 + each.visibility) for each in found])
    pixels = np.stack([each.points for each in found]).astype(float)
    return triangulate(pixels, cameras, weights, threshold)


def _view_errors(found: list[Detection], world: Triangulation) -> NDArray[np.float64]:
    """[V] median distance, px, of each view's points from where all cameras together put them: of
    the points that face the camera, NaN where it sees none that is known."""
    errors = np.full(len(found), np.nan)
    for view, each in enumerate(found):
        known = np.isfinite(world.distances[view])
        squarely = known & (each.visibility > 0.3)
        chosen = squarely if squarely.any() else known
        if chosen.any():
            errors[view] = np.median(world.distances[view, chosen])
    return errors


def _doubted(found: Detection, error: float, threshold: float) -> Detection:
    """With the confidence of a view that contradicts the others: its weight in a least-squares fit
    then stays what a residual at the threshold has."""
    return replace(found, confidence=found.confidence * (threshold / error) ** 2)


@dataclass(frozen=True, order=True)
class _Outlier:
    """A view that contradicts the other cameras, by so many pixels."""

    error: float
    sequence: str
    timestep: int
    camera: str

    def row(self) -> Row:
        place = {"sequence": self.sequence, "timestep": self.timestep, "camera": self.camera}
        return {**place, "error_px": round(self.error, 2)}


@dataclass
class _Tally:
    """Counts per camera, and how well the cameras agree."""

    cameras: list[str]
    total: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    found: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    confidence: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    agreeing: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    reprojection: list[float] = field(default_factory=list)
    known: list[float] = field(default_factory=list)
    outlying: list[_Outlier] = field(default_factory=list)
    first_problem: str = ""

    def count(self, view: _View) -> None:
        self.total[view.camera] += 1
        if view.detection is not None:
            self.found[view.camera] += 1
            self.confidence[view.camera] += view.detection.confidence
        elif not self.first_problem:
            self.first_problem = f"{view.problem} ({locate(*view.key[1:])})"

    def compare(self, used: list[str], world: Triangulation) -> None:
        known = world.views > 0
        self.known.append(float(known.mean()))
        if known.any():
            self.reprojection.append(float(world.error[known].mean()))
            for name, agrees in zip(used, world.inliers[:, known].mean(axis=1), strict=True):
                self.agreeing[name].append(float(agrees))

    def check(self, min_found: float) -> None:
        total, found = sum(self.total.values()), sum(self.found.values())
        if found == 0 or found < min_found * total:
            raise StageError(
                f"A face was found in {found} of {total} frames; the first failure: "
                f"{self.first_problem}. Look at the pictures of ingest (preview.jpg): is there one "
                "upright, well lit face that fills a good part of the frame? Turned videos and "
                "wrong crops (ingest.crop) are the usual causes."
            )

    def summary(self) -> Row:
        summary: Row = {
            "frames": sum(self.total.values()),
            "found": sum(self.found.values()),
            "cameras": {
                name: {
                    "frames": self.total[name],
                    "found": self.found[name],
                    "mean_confidence": round(self.confidence[name] / max(1, self.found[name]), 4),
                }
                for name in self.cameras
            },
        }
        for name, fractions in self.agreeing.items():
            summary["cameras"][name]["points_agreeing"] = round(float(np.mean(fractions)), 4)
        if self.known:
            summary["triangulated"] = round(float(np.mean(self.known)), 4)
        if self.reprojection:
            summary["reprojection_px"] = round(float(np.mean(self.reprojection)), 4)
            summary["outlying"] = len(self.outlying)
            summary["outlying_views"] = [
                each.row() for each in sorted(self.outlying, reverse=True)[:_LISTED]
            ]
        return summary

    def warnings(self) -> list[str]:
        warnings = []
        for name in self.cameras:
            found, total = self.found[name], self.total[name]
            if found < 0.5 * total:
                warnings.append(
                    f"Camera {name} shows a usable face in {found} of {total} frames; views from "
                    "the side or from behind are expected to."
                )
            agrees = self.agreeing.get(name)
            if agrees and np.mean(agrees) < 0.5:
                warnings.append(
                    f"Camera {name} disagrees with the others about {1 - np.mean(agrees):.0%} of "
                    "the points; its calibration or its crop may be wrong."
                )
        if self.known and np.mean(self.known) < 0.5:
            warnings.append(
                f"Only {np.mean(self.known):.0%} of the points could be triangulated: too few "
                "cameras see the face, or the calibration is wrong."
            )
        return warnings


@dataclass
class _Preview:
    """Some frames with their landmarks: moments by cameras, the more numerous across."""

    moments: set[tuple[str, int]]
    cameras: list[str]
    tiles: dict[str, dict[str, Image]] = field(default_factory=dict)

    @staticmethod
    def choose(ingest: Path, cameras: list[str]) -> _Preview:
        table = read_table(ingest / "frames.parquet", schemas.FRAMES, ["sequence", "timestep"])
        moments = sorted({(row["sequence"], row["timestep"]) for row in table.to_pylist()})
        return _Preview(
            set(_evenly(moments, _PREVIEW_TIMESTEPS)), _evenly(cameras, _PREVIEW_CAMERAS)
        )

    def add(self, view: _View) -> None:
        moment = view.key[1:3]
        if moment in self.moments and view.camera in self.cameras:
            side = 2 * _PREVIEW_SIDE  # drawn larger, then shrunk: smooth thin lines
            picture = view.image
            if view.detection is not None:
                picture = draw_landmarks(picture, view.detection.points, side)
            self.tiles.setdefault(f"{moment[0]} {moment[1]}", {})[view.camera] = picture

    def picture(self) -> Image:
        if len(self.cameras) >= len(self.tiles):
            return contact_sheet(self.tiles, self.cameras, _PREVIEW_SIDE)
        across = {
            camera: {moment: line[camera] for moment, line in self.tiles.items() if camera in line}
            for camera in self.cameras
        }
        return contact_sheet(across, list(self.tiles), _PREVIEW_SIDE)


def _evenly(items: list, count: int) -> list:
    places = np.linspace(0, len(items) - 1, min(count, len(items)))
    return [items[round(place)] for place in places]
