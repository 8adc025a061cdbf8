"""Tracking: who it is, and where the head is and what the face does in every timestep.

Reads ingest, mattes and landmarks. One identity and one size per subject are learned from training
timesteps and cameras; held-out cameras have no part in anything, and held-out timesteps are fitted
with the identity as it is. A timestep that cannot be tracked is set aside with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.blobs import Blobs
from gha_core.artifacts.contact_sheet import ViewKey, views_sheet
from gha_core.artifacts.images import Image, decode_image, decode_matte, encode_jpeg
from gha_core.artifacts.stage_folder import licences, read_json, write_json
from gha_core.artifacts.tables import read_rows, read_table, write_table
from gha_core.artifacts.tensors import save_tensors
from gha_core.cameras import Camera
from gha_core.errors import StageError
from gha_core.faces import FaceModel, face_model
from gha_core.fitting import Observations, Settings, Track, rotations, track_head
from gha_core.fitting.appearance import Photos
from gha_core.fitting.checks import drifts, squarest_views
from gha_core.fitting.curves import draw_curves
from gha_core.fitting.focal_length import FocalLength, estimate_focal_length, through
from gha_core.fitting.given_poses import GivenPoses
from gha_core.fitting.initial_pose import usual_scale
from gha_core.fitting.observations import LandmarkModel
from gha_core.fitting.one_person import others
from gha_core.fitting.outlines import Mattes
from gha_core.fitting.overlay import draw_overlay
from gha_core.fitting.report import jitter, never_moved, unobserved, worst_views
from gha_core.fitting.tracked_points import tracked_points
from gha_core.landmarks import LANDMARKS
from gha_core.splits import positions
from tasks.stage import Inputs, StageParams

_PREVIEW_TIMESTEPS, _PREVIEW_CAMERAS, _PREVIEW_SIDE = 4, 5, 256
_CURVES_WIDTH = 1000  # px, at least
_LENS_TIMESTEPS, _CLEAR = 20, 0.5  # whose faces tell the focal length; their least confidence
_WORST = 5  # views that the summary names; the first two timesteps are in the preview, too
_LARGE_RESIDUAL = 0.035  # head lengths; a good fit stays well below
DRIFTING = 0.01  # head lengths between the halves of a sequence, likewise
_SIDEWAYS = 38.0  # degrees; detectors say less than it is, and see no more than 60

Frame = tuple[str, int]


class Params(StageParams):
    """How the head model is fitted."""

    face_model: Literal["anny", "flame", "bfm", "faceverse", "ict"] = Field(
        "anny", description="anny: the open head; others from your own file, docs/face-models.md"
    )
    face_model_path: Path | None = Field(
        None, description="that file or folder; relative ones start at the project"
    )
    min_confidence: float = Field(
        0.3, ge=0, le=1, description="ignore a view whose landmarks are trusted less"
    )
    min_views: int = Field(1, ge=1, description="set aside a timestep seen by fewer cameras")
    identity_prior: float = Field(
        Settings.identity_prior, gt=0, description="pull towards the mean head"
    )
    expression_sparsity: float = Field(
        Settings.expression_sparsity, ge=0, description="pull of expressions towards neutral"
    )
    robust: float = Field(
        Settings.robust, gt=0, description="residual of an outlying landmark, head lengths"
    )
    smoothness: float = Field(
        Settings.acceleration, ge=0, description="weight of smooth motion in time; 0 = none"
    )
    identity_timesteps: int = Field(
        Settings.identity_timesteps, ge=1, description="most timesteps that teach the identity"
    )
    iterations: int = Field(Settings.iterations, ge=1, le=200, description="most steps per fit")
    poses: Literal["auto", "given", "landmarks"] = Field(
        "auto",
        description="where the head is. given: by the tracking that the capture came with; "
        "landmarks: found here; auto: given where there is one",
    )
    photometric: bool = Field(
        True, description="after the landmarks, move the head to where its photos look alike"
    )
    outlines: bool = Field(
        True,
        description="with photos of several cameras, fit the face's shape to its outlines in the "
        "mattes",
    )
    max_residual: float = Field(
        Settings.max_residual,
        gt=0,
        description="set aside a timestep that fits worse (head lengths)",
    )

    def settings(self) -> Settings:
        return Settings(
            identity_prior=self.identity_prior,
            expression_sparsity=self.expression_sparsity,
            robust=self.robust,
            acceleration=self.smoothness,
            identity_timesteps=self.identity_timesteps,
            iterations=self.iterations,
            max_residual=self.max_residual,
        )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Write identity, tracking, neutral mesh and rejects to ``out``.

    Raises:
        StageError: too few timesteps have landmarks, or calibration and landmarks contradict
            each other.
        AssetError: the face model cannot be built, or its file is not what it should be.
    """
    seen = _read(inputs, params)
    model = face_model(params.face_model, params.face_model_path)
    print(f"face model: {params.face_model}; licence: {model.metadata['licence']}", flush=True)
    photos = _photos(inputs, seen) if params.photometric else None
    given = _given(inputs, seen) if params.poses != "landmarks" else None
    if params.poses == "given" and given is None:
        raise StageError(
            "tracking.poses is 'given', but the capture came with no tracking of these timesteps. "
            "Set it to auto."
        )
    lens = None
    if _lens_is_assumed(inputs["ingest"]) and given is None:
        lens, seen = _with_likely_lens(model, seen, params)
        _write_cameras(inputs, seen, out)
    several = len(seen.observations.cameras) > 1
    mattes = _mattes(inputs, seen) if params.outlines and photos and several else None
    track = track_head(model, seen.observations, params.settings(), photos, given, mattes)
    rejects = dict(seen.rejects)
    for index in np.flatnonzero(track.failed):
        frame = seen.frames[index]
        rejects[frame] = (
            f"the head model stays {track.relative[index]:.3f} head lengths from the landmarks, "
            f"more than {params.max_residual:g}"
        )
    kept = np.flatnonzero(~track.failed)
    head = _Head.of(model, track)
    head.save_identity(out / "identity.safetensors")
    head.save_mesh(out / "neutral.ply")
    write_table(
        out / "tracking.parquet",
        schemas.TRACKING,
        ({**_key(seen.subject, *seen.frames[index]), **head.row(int(index))} for index in kept),
    )
    write_table(
        out / "rejects.parquet",
        schemas.REJECTS,
        (
            {**_key(seen.subject, *frame), "camera": "", "reason": reason}
            for frame, reason in rejects.items()
        ),
    )
    (out / "preview.jpg").write_bytes(encode_jpeg(_preview(inputs, seen, head, kept), 90))
    facts = _summary(seen, model, track, kept, rejects, given)
    if lens is not None:
        facts["focal_length"] = {name: _rounded(value) for name, value in asdict(lens).items()}
    about = {"licences": licences(inputs["landmarks"]), **_about(params, model)}
    write_json(out / "summary.json", facts | about)


def _lens_is_assumed(ingest: Path) -> bool:
    """Whether nobody knows the focal length of the only camera."""
    summary = ingest / "summary.json"
    return summary.is_file() and read_json(summary).get("focal_length") == "assumed"


def _with_likely_lens(
    model: FaceModel, seen: _Seen, params: Params
) -> tuple[FocalLength | None, _Seen]:
    """The focal length that suits the faces best, and what was seen through that lens."""
    observations = seen.observations
    clear = observations.is_train & (observations.confidence[:, 0] > _CLEAR)
    if not clear.any():
        return None, seen
    some = np.array(_even(np.flatnonzero(clear).tolist(), _LENS_TIMESTEPS))
    lens = estimate_focal_length(model, observations.select(some), params.settings())
    return lens, replace(seen, observations=through(observations, lens.pixels))


def _write_cameras(inputs: Inputs, seen: _Seen, out: Path) -> None:
    """The table of cameras with the focal length that was found."""
    (camera,) = seen.observations.cameras
    rows = list(read_rows(inputs["ingest"] / "cameras.parquet", schemas.CAMERAS))
    factor = camera.K[0, 0] / rows[0]["K"][0]
    for row in rows:
        for name in ("K", "source_K"):
            if row[name] is not None:
                K = np.reshape(row[name], (3, 3)) * [[factor, 1, 1], [1, factor, 1], [1, 1, 1]]
                row[name] = K.ravel()
    write_table(out / "cameras.parquet", schemas.CAMERAS, rows)


@dataclass(frozen=True)
class _Seen:
    """The landmarks as the tracker wants them; ``frames`` are the keys of their timesteps."""

    subject: str
    observations: Observations
    frames: list[Frame]
    rejects: dict[Frame, str]
    total: int


def _read(inputs: Inputs, params: Params) -> _Seen:
    cameras = [
        Camera.from_row(row)
        for row in read_rows(inputs["ingest"] / "cameras.parquet", schemas.CAMERAS)
        if row["camera"] not in inputs.splits.test_cameras
    ]
    place = {camera.name: index for index, camera in enumerate(cameras)}
    columns = ["sequence", "timestep"]
    table = read_table(inputs["ingest"] / "frames.parquet", schemas.FRAMES, columns)
    frames = sorted({(row["sequence"], row["timestep"]) for row in table.to_pylist()})
    points = np.full((len(frames), len(cameras), LANDMARKS, 2), np.nan)
    confidence = np.zeros((len(frames), len(cameras)))
    order = {frame: index for index, frame in enumerate(frames)}
    for row in read_rows(inputs["landmarks"] / "landmarks.parquet", schemas.LANDMARKS):
        if row["camera"] in place and row["confidence"] >= params.min_confidence:
            at = order[row["sequence"], row["timestep"]], place[row["camera"]]
            pixels = np.asarray(row["points"], float).reshape(-1, 2)
            points[at] = _undistorted(pixels, cameras[at[1]])
            confidence[at] = row["confidence"]
    elsewhere = np.zeros(len(frames), bool)
    if len(cameras) == 1:  # several see by themselves that one of them shows somebody else
        names = np.array([name for name, _ in frames])
        for name in np.unique(names):
            own = np.flatnonzero(names == name)
            elsewhere[own] = others(points[own, 0], [frames[index][1] for index in own])
        points[elsewhere], confidence[elsewhere] = np.nan, 0
    views = (confidence > 0).sum(1)
    enough = views >= min(params.min_views, len(cameras))
    rejects = {
        frames[index]: "the only face found is not where the subject's was: another person's"
        if elsewhere[index]
        else f"{views[index]} of {len(cameras)} training cameras show a usable face, "
        f"fewer than {params.min_views}"
        for index in np.flatnonzero(~enough)
    }
    kept = np.flatnonzero(enough)
    if not len(kept):
        raise StageError(
            f"None of {len(frames)} timesteps has landmarks in at least {params.min_views} of the "
            f"{len(cameras)} training cameras. Look at the rejects of the landmarks stage."
        )
    steps: dict[str, list[int]] = {}
    for sequence, timestep in frames:
        steps.setdefault(sequence, []).append(timestep)
    share = positions(steps)
    train = np.array([not inputs.splits.is_test_time(f[0], share[f], f[1]) for f in frames])
    everything = Observations(
        sequences=tuple(frame[0] for frame in frames),
        timesteps=tuple(frame[1] for frame in frames),
        cameras=tuple(cameras),
        points=points,
        confidence=confidence,
        is_train=train,
    )
    chosen = [frames[index] for index in kept]
    return _Seen(inputs.subject, everything.select(kept), chosen, rejects, len(frames))


def _undistorted(pixels: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
    if not np.any(camera.distortion):
        return pixels
    flat = cv2.undistortPoints(pixels[:, None], camera.K, camera.distortion, P=camera.K)
    return np.asarray(flat, float).reshape(-1, 2)


@dataclass(frozen=True)
class _Head:
    """The tracked head: everything that is written about it."""

    model: FaceModel
    track: Track
    neutral: torch.Tensor
    landmarks: torch.Tensor
    landmark_moves: torch.Tensor

    @staticmethod
    def of(model: FaceModel, track: Track) -> _Head:
        identity = torch.from_numpy(track.identity).float()
        neutral = model.vertices(identity, torch.zeros(len(model.expression_names)))
        return _Head(
            model,
            track,
            neutral,
            tracked_points(model, neutral),
            tracked_points(model, model.expression_basis),
        )

    def save_identity(self, path: Path) -> None:
        model = self.model
        tensors = {
            "identity": torch.from_numpy(self.track.identity).float(),
            "neutral_vertices": self.neutral,
            "expression_basis": model.expression_basis,
            "faces": model.faces,
            "landmarks": self.landmarks,
        }
        tensors |= {f"region.{name}": mask.byte() for name, mask in model.regions.items()}
        metadata = {
            "expression_names": json.dumps(model.expression_names),
            "scale": repr(float(self.track.scale)),
            "licence": model.metadata["licence"],
            "sha256": model.metadata.get("sha256", ""),
        }
        save_tensors(path, tensors, metadata)

    def save_mesh(self, path: Path) -> None:
        """The neutral head in head space, coloured by region."""
        colours = np.full((len(self.neutral), 3), 200, np.uint8)
        tints = {"lips": (190, 90, 90), "eyes": (250, 250, 250), "scalp": (110, 100, 95)}
        for name, tint in tints.items():
            colours[self.model.regions[name].numpy()] = tint
        kinds = [(axis, "f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
        vertices = np.empty(len(colours), dtype=kinds)
        for axis, values in zip("xyz", self.neutral.numpy().T, strict=True):
            vertices[axis] = values
        for name, values in zip(("red", "green", "blue"), colours.T, strict=True):
            vertices[name] = values
        faces = np.empty(len(self.model.faces), dtype=[("vertex_indices", "i4", (3,))])
        faces["vertex_indices"] = self.model.faces.numpy()
        elements = [PlyElement.describe(vertices, "vertex"), PlyElement.describe(faces, "face")]
        PlyData(elements).write(str(path))

    def row(self, index: int) -> dict[str, Any]:
        track = self.track
        expression = torch.from_numpy(track.expression[index]).float()
        moved = self.landmarks + torch.tensordot(expression, self.landmark_moves, dims=1)
        views = track.residual[index][np.isfinite(track.residual[index])]
        return {
            "rotation": track.rotation[index],
            "translation": track.translation[index],
            "scale": track.scale,
            "expression": expression.numpy(),
            "landmarks": moved.numpy().ravel(),
            "residual": float(np.sqrt((views**2).mean())),
        }


def _given(inputs: Inputs, seen: _Seen) -> GivenPoses | None:
    """The poses of the tracking that the capture came with, or None if it has none of these."""
    path = inputs["ingest"] / "given_tracking.parquet"
    rows = {
        (row["sequence"], row["timestep"]): row for row in read_rows(path, schemas.GIVEN_TRACKING)
    }
    known = np.array([frame in rows for frame in seen.frames])
    if not known.any():
        return None
    nowhere = {"rotation": np.zeros(3), "root": np.zeros(3), "translation": np.zeros(3)}
    found = [rows.get(frame, nowhere) for frame in seen.frames]
    vectors = {name: np.array([row[name] for row in found], float) for name in nowhere}
    turns = {name: rotations.exponential(vectors[name]) for name in ("rotation", "root")}
    return GivenPoses(turns["rotation"], turns["root"], vectors["translation"], known)


def _photos(inputs: Inputs, seen: _Seen) -> Photos:
    """The pictures of a timestep by camera, both as indices into the observations."""
    blobs = Blobs(inputs["ingest"] / "frames.parquet", schemas.FRAMES, "image")

    def photos(index: int) -> dict[int, Image]:
        keys = {
            c: (*seen.frames[index], each.name) for c, each in enumerate(seen.observations.cameras)
        }
        return {c: decode_image(blobs[key]) for c, key in keys.items() if key in blobs}

    return photos


def _mattes(inputs: Inputs, seen: _Seen) -> Mattes:
    """The mattes of a timestep by camera, both as indices into the observations."""
    blobs = Blobs(inputs["matting"] / "alpha.parquet", schemas.ALPHA, "alpha")

    def mattes(index: int) -> dict[int, Image]:
        keys = {
            c: (*seen.frames[index], each.name) for c, each in enumerate(seen.observations.cameras)
        }
        return {c: decode_matte(blobs[key]) for c, key in keys.items() if key in blobs}

    return mattes


def _preview(inputs: Inputs, seen: _Seen, head: _Head, kept: NDArray[np.int64]) -> Image:
    cameras = _even(sorted(camera.name for camera in seen.observations.cameras), _PREVIEW_CAMERAS)
    worst = [int(kept[t]) for t, _ in worst_views(head.track.residual[kept], 2)]
    shown = sorted({*_even(kept.tolist(), _PREVIEW_TIMESTEPS), *worst})
    chosen = {seen.frames[i]: i for i in shown}
    place = {camera.name: i for i, camera in enumerate(seen.observations.cameras)}
    pictures: dict[ViewKey, Image] = {}
    for row in _images(inputs, set(chosen), set(cameras)):
        index = chosen[row["sequence"], row["timestep"]]
        view = place[row["camera"]]
        points = seen.observations.points[index, view]
        picture = draw_overlay(
            decode_image(row["image"]),
            seen.observations.cameras[view],
            head.model,
            head.track.world(head.model, index),
            points if np.isfinite(points).any() else None,
        )
        pictures[*seen.frames[index], row["camera"]] = picture
    sheet = views_sheet(pictures, _PREVIEW_SIDE)
    curves = draw_curves(
        [seen.frames[index][0] for index in kept],
        [seen.frames[index][1] for index in kept],
        head.track.expression[kept],
        head.model.expression_names,
        head.track.rotation[kept],
        max(sheet.shape[1], _CURVES_WIDTH),
    )
    room = curves.shape[1] - sheet.shape[1]
    margin = np.full((sheet.shape[0], room, 3), 255, np.uint8)
    return np.concatenate([np.concatenate([sheet, margin], axis=1), curves])


def _images(inputs: Inputs, frames: set[Frame], cameras: set[str]) -> Iterator[dict[str, Any]]:
    columns = ["sequence", "timestep", "camera", "image"]
    for row in read_rows(inputs["ingest"] / "frames.parquet", schemas.FRAMES, columns):
        if (row["sequence"], row["timestep"]) in frames and row["camera"] in cameras:
            yield row


def _even(items: list[Any], most: int) -> list[Any]:
    """Up to ``most`` of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _summary(
    seen: _Seen,
    model: FaceModel,
    track: Track,
    kept: NDArray[np.int64],
    rejects: dict[Frame, str],
    given: GivenPoses | None,
) -> dict[str, Any]:
    residual = track.residual[kept]
    pixels = residual[np.isfinite(residual)]
    relative = track.relative[kept]
    cameras: dict[str, dict[str, Any]] = {}
    for index, camera in enumerate(seen.observations.cameras):
        own = residual[:, index][np.isfinite(residual[:, index])]
        if len(own):
            worst = kept[np.nanargmax(residual[:, index])]
            cameras[camera.name] = {
                "views": len(own),
                "residual_px": _rounded(own.mean()),
                "p95_px": _rounded(np.percentile(own, 95)),
                "worst": dict(zip(("sequence", "timestep"), seen.frames[worst], strict=True)),
            }
    warnings = []
    if float(np.median(relative)) > _LARGE_RESIDUAL:
        warnings.append(
            f"The fit stays {np.median(relative):.3f} head lengths from the landmarks, much for "
            "one face: a beard or glasses, more than one person, or an inexact calibration."
        )
    if len(rejects) > 0.1 * seen.total:
        warnings.append(f"{len(rejects)} of {seen.total} timesteps were set aside; see rejects.")
    typical = float(np.median(pixels))
    for name, facts in cameras.items():
        if facts["residual_px"] > 2.5 * typical and facts["views"] > 3:
            warnings.append(
                f"Camera {name} fits {facts['residual_px'] / typical:.1f} times worse than the "
                "others: its calibration or name is wrong, its pictures stand still, or it sees "
                "another person."
            )
    if usual_scale(track.scale, model.metres_per_unit) != model.metres_per_unit:
        warnings.append(
            f"By the cameras' positions the head is {track.scale:.3g} m long: they are in another "
            "unit than metres, and so is all that is tracked."
        )
    if len(seen.observations.cameras) == 1:
        warnings.append(
            "One camera only: the head's size, and with it its distance, is that of the mean "
            "person."
        )
    chosen = seen.observations.select(kept)
    tracked = track.select(kept)
    angle = float(np.degrees(np.nanmedian(squarest_views(tracked, chosen))))
    if angle > _SIDEWAYS:
        warnings.append(
            f"In half of the timesteps no camera sees the face from less than {angle:.0f} degrees "
            "aside: its far side is guessed, and pose and shape may be centimetres off without "
            "any sign of it. Add a camera in front of the face."
        )
    drifting = drifts(model, tracked, chosen)
    for name, found in drifting.items():
        if found.shape > DRIFTING:
            warnings.append(
                f"In the course of sequence {name} the face changes its shape by "
                f"{100 * found.shape:.1f} % of its length: two people in turns, or a lens that "
                "zooms. Make one subject of each part."
            )
    if given is not None and not given.known.all():
        warnings.append(
            f"{int(np.sum(~given.known))} timesteps are not in the capture's own tracking; their "
            "poses are from landmarks."
        )
    shaking = jitter(track, seen.observations.sequences, np.array(seen.observations.timesteps))
    verdict = (
        f"{len(kept)} of {seen.total} timesteps are tracked, and landmarks and head agree to "
        f"{100 * np.median(relative):.1f} % of its length"
        + (
            ", which says little, for the face is seen from the side only: not fit to train on."
            if angle > _SIDEWAYS
            else f"; but see the {len(warnings)} warnings."
            if warnings
            else ": fit to train on."
        )
    )
    return {
        "timesteps": seen.total,
        "poses": "landmarks" if given is None else "given",
        "tracked": len(kept),
        "rejected": len(rejects),
        "residual_px": {
            "mean": _rounded(pixels.mean()),
            "p95": _rounded(np.percentile(pixels, 95)),
        },
        "residual_head_lengths": _rounded(np.median(relative)),
        "head_length_m": _rounded(track.scale),
        "identity_rms": _rounded(np.sqrt((track.identity**2).mean())),
        "cameras": cameras,
        "worst": [
            {
                "sequence": seen.frames[kept[t]][0],
                "timestep": seen.frames[kept[t]][1],
                "camera": seen.observations.cameras[c].name,
                "residual_px": _rounded(residual[t, c]),
            }
            for t, c in worst_views(residual, _WORST)
        ],
        "jitter": {name: _rounded(value) for name, value in shaking.items()},
        "degrees_aside": _rounded(angle),
        "drift": {
            name: {part: _rounded(value) for part, value in asdict(found).items()}
            for name, found in drifting.items()
        },
        "expressions": {
            "unobserved": unobserved(LandmarkModel.of(model), model.expression_names),
            "never_moved": never_moved(track.expression[kept], model.expression_names),
        },
        "verdict": verdict,
        "warnings": warnings,
    }


def _about(params: Params, model: FaceModel) -> dict[str, Any]:
    facts = {"name": params.face_model, "licence": model.metadata["licence"]}
    if "sha256" in model.metadata:
        facts["sha256"] = model.metadata["sha256"]
    return {"face_model": facts}


def _rounded(value: Any) -> float:
    return round(float(value), 4)


def _key(subject: str, sequence: str, timestep: int) -> dict[str, Any]:
    return {"subject": subject, "sequence": sequence, "timestep": timestep}
