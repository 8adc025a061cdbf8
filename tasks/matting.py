"""Matting: which part of every frame is the person."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.blobs import Blobs
from gha_core.artifacts.contact_sheet import ViewKey, views_sheet
from gha_core.artifacts.images import Image, decode_image, decode_matte, encode_jpeg, encode_png
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import TableWriter, read_rows, read_table, write_table
from gha_core.assets import ASSETS
from gha_core.errors import StageError, locate
from gha_core.matting import (
    BackgroundMattingNetwork,
    PlateMatting,
    RobustVideoNetwork,
    SelfieMatting,
    cut_at_neck,
    neck_row,
)
from gha_core.matting.weights import sha256
from gha_core.processors import cores
from gha_core.progress import track
from tasks.stage import Inputs, StageParams

_PREVIEW_TIMESTEPS, _PREVIEW_CAMERAS = 6, 8
_KEY = ("subject", "sequence", "timestep", "camera")

Matting = Callable[[Image], NDArray[np.float32]]


class Params(StageParams):
    """How mattes are made."""

    backend: Literal["auto", "given", "plate", "selfie", "background_matting", "robust_video"] = (
        Field(
            "auto",
            description="given: those that the capture came with; plate: difference from the empty "
            "scene; selfie: a segmentation network; auto: for every camera the first of them it "
            "has; background_matting (BackgroundMattingV2, needs plates) and robust_video (Robust "
            "Video Matting): your own weights",
        )
    )
    weights: str = Field(
        "", description="file of background_matting or robust_video, TorchScript or ONNX"
    )
    weights_licence: str = Field(
        "", description="of that file, if not the one under which its authors published theirs"
    )
    refine: Literal["guided", "closed_form"] = Field(
        "guided",
        description="alpha at the outline, reconciled with the image by a guided filter (fast) or "
        "by Levin's closed form (5 times slower at 256 px, 10 times at 802x550)",
    )
    shadow: float = Field(
        0.2, ge=0, lt=1, description="how much darker the background may be than on its plate"
    )
    torso: bool = Field(True, description="keep shoulders; false: cut the mattes at the neck")
    min_area: float = Field(
        0.02, ge=0, lt=1, description="a frame with less foreground than this fraction is rejected"
    )
    max_area: float = Field(
        0.98, gt=0, le=1, description="a frame with more foreground than this fraction is rejected"
    )
    max_rejected: float = Field(
        0.2, ge=0, le=1, description="stop if more than this fraction of the frames is rejected"
    )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Write ``alpha.parquet`` and the rejects for all frames of the ingest artifact.

    Raises:
        StageError: mattes, a plate or weights are asked for but absent, or too many mattes are
            empty or full.
        AssetError: the weights are not those of the network that is asked for.
    """
    plan = _plan(inputs["ingest"], params)
    backends = plan.backends
    given = Blobs(inputs["ingest"] / "mattes.parquet", schemas.ALPHA, "alpha")
    frames = inputs["ingest"] / "frames.parquet"
    total = read_table(frames, schemas.FRAMES, columns=["timestep"]).num_rows
    chosen = _preview_keys(frames)
    preview: dict[ViewKey, Image] = {}
    rejects: list[dict[str, Any]] = []
    areas: dict[str, list[float]] = {camera: [] for camera in backends}

    with TableWriter(out / "alpha.parquet", schemas.ALPHA) as table:
        results = _matted(frames, plan, given, params, chosen)
        for row, area, reason, picture in track(results, "matting", total):
            areas[row["camera"]].append(area)
            if reason is None:
                table.write(row)
            else:
                rejects.append({**{name: row[name] for name in _KEY}, "reason": reason})
            if picture is not None:
                preview[row["sequence"], row["timestep"], row["camera"]] = picture
    write_table(out / "rejects.parquet", schemas.REJECTS, rejects)
    _check(rejects, total, params, backends)

    (out / "preview.jpg").write_bytes(encode_jpeg(views_sheet(preview, 200), 90))
    write_json(
        out / "summary.json",
        {
            "backends": dict(Counter(backends.values())),
            "licences": plan.licences,
            "weights": plan.weights,
            "refine": params.refine,
            "frames": table.count,
            "rejects": len(rejects),
            "foreground": {
                camera: round(float(np.mean(values)), 4)
                for camera, values in areas.items()
                if values
            },
            "warnings": _warnings(backends, params),
        },
    )


@dataclass(frozen=True)
class _Plan:
    """What makes the mattes of each camera.

    Attributes:
        backends: camera -> name.
        single: camera -> what mattes one of its frames, whatever came before.
        start: makes what mattes the frames of one camera and sequence in the order of time.
        licences: backend -> licence of its model.
        weights: the user's file, if one is used.
    """

    backends: dict[str, str]
    single: dict[str, Matting] = field(default_factory=dict)
    start: Callable[[], Matting] | None = None
    licences: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] | None = None


def _plan(ingest: Path, params: Params) -> _Plan:
    cameras = read_table(ingest / "cameras.parquet", schemas.CAMERAS, ["camera"])["camera"]
    names = cameras.to_pylist()
    plates = {
        row["camera"]: decode_image(row["image"])
        for row in read_rows(ingest / "backgrounds.parquet", schemas.BACKGROUNDS)
    }
    if params.backend in ("background_matting", "robust_video"):
        return _plan_of_weights(names, plates, params)
    if params.weights:
        raise StageError(
            f"matting.weights is set, but matting.backend is '{params.backend}', which uses none. "
            "Set matting.backend to background_matting or robust_video, or remove matting.weights."
        )
    file = ingest / "mattes.parquet"
    matted = set(read_table(file, schemas.ALPHA, ["camera"])["camera"].to_pylist())
    selfie = SelfieMatting(params.refine)
    plan = _Plan({})
    for camera in names:
        if params.backend in ("auto", "given") and camera in matted:
            plan.backends[camera] = "given"
        elif params.backend == "given":
            raise StageError(
                f"The capture has no mattes of camera {camera}, but matting.backend is 'given'. "
                "Add them to the capture, or set matting.backend: auto."
            )
        elif params.backend != "selfie" and camera in plates:
            plan.single[camera] = PlateMatting(plates[camera], params.refine, params.shadow)
            plan.backends[camera] = "plate"
        elif params.backend == "plate":
            raise _no_plate(camera, params)
        else:
            plan.single[camera] = selfie
            plan.backends[camera] = "selfie"
            plan.licences["selfie"] = ASSETS["selfie_segmentation"].licence
    return plan


def _plan_of_weights(cameras: list[str], plates: dict[str, Image], params: Params) -> _Plan:
    if not params.weights:
        raise StageError(
            f"matting.backend is '{params.backend}', which needs a file of weights. Set "
            "matting.weights to it."
        )
    file = Path(params.weights).expanduser()
    single: dict[str, Matting] = {}
    start = None
    if params.backend == "background_matting":
        background = BackgroundMattingNetwork(file)
        published = background.published
        for camera in cameras:
            if camera not in plates:
                raise _no_plate(camera, params)
            single[camera] = background.of_camera(plates[camera])
    else:
        video = RobustVideoNetwork(file)
        published = video.published
        start = video.of_video
    licence = params.weights_licence or published.licence
    return _Plan(
        dict.fromkeys(cameras, params.backend),
        single,
        start,
        {published.name: licence},
        {"file": file.name, "sha256": sha256(file), "licence": licence},
    )


def _no_plate(camera: str, params: Params) -> StageError:
    return StageError(
        f"Camera {camera} has no background plate, but matting.backend is '{params.backend}'. Add "
        "the plate to the capture, or set matting.backend: auto."
    )


def _matted(
    frames: Path, plan: _Plan, given: Blobs, params: Params, chosen: set[tuple]
) -> Iterator[tuple[dict[str, Any], float, str | None, Image | None]]:
    """(alpha row, foreground fraction, why it is rejected, picture for the preview) per frame, in
    the order of the table; a bounded number of frames is in memory."""

    def work(
        row: dict[str, Any], matting: Matting | None, before: Future | None
    ) -> tuple[dict[str, Any], float, str | None, Image | None]:
        image, key = decode_image(row["image"]), {name: row[name] for name in _KEY}
        place = (row["sequence"], row["timestep"], row["camera"])
        reason = None
        if before is not None:
            before.result()  # submitted earlier, so that it is done or at work: no deadlock
        if matting is not None:
            alpha = matting(image).astype(np.float32, copy=False)
        elif place in given:
            alpha = (decode_matte(given[place]) / 255).astype(np.float32)
        else:
            alpha = np.zeros(image.shape[:2], np.float32)
            reason = "the capture has no matte of this frame"
        alpha = np.where(_inside_photo(row), alpha, np.float32(0)).astype(np.float32)
        if not params.torso and (neck := neck_row(alpha)) is not None:
            alpha = cut_at_neck(alpha, neck)
        matte = np.rint(alpha * 255).astype(np.uint8)
        area = float(alpha.mean())
        reason = reason or _unusable(area, params)
        stored = {**key, "alpha": encode_png(matte)}
        stored |= {"width": row["width"], "height": row["height"]}
        shown = on_checker(image, alpha) if tuple(key.values()) in chosen else None
        return stored, area, reason, shown

    columns = [*_KEY, "image", "width", "height", "transform", "source_width", "source_height"]
    pending: deque[Future] = deque()
    videos: dict[str, tuple[str, Matting, Future]] = {}
    with ThreadPoolExecutor(cores()) as pool:
        for row in read_rows(frames, schemas.FRAMES, columns):
            camera, sequence = row["camera"], row["sequence"]
            matting, before = plan.single.get(camera), None
            if plan.start is not None:
                last, matting, before = videos.get(camera, ("", None, None))
                if last != sequence or matting is None:
                    matting, before = plan.start(), None
            future = pool.submit(work, row, matting, before)
            if plan.start is not None and matting is not None:
                videos[camera] = sequence, matting, future
            pending.append(future)
            if len(pending) > 32:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _unusable(area: float, params: Params) -> str | None:
    if area < params.min_area:
        return f"the matte is empty: {area:.1%} of the frame is foreground"
    if area > params.max_area:
        return f"the matte is full: {area:.1%} of the frame is foreground"
    return None


def on_checker(image: Image, alpha: NDArray[np.float32], cell: int = 16) -> Image:
    """The cut-out over a green and grey checkerboard, where leftovers and holes both show."""
    y, x = np.indices(alpha.shape) // cell
    board = np.where(((x + y) % 2 == 0)[..., None], (60, 200, 90), (200, 200, 200))
    mixed = alpha[..., None] * image + (1 - alpha[..., None]) * board
    return np.rint(mixed).astype(np.uint8)


def _inside_photo(row: dict[str, Any]) -> NDArray[np.bool_]:
    """[H, W], False where the stored frame shows padding. The transform is a crop and a scale."""
    fx, _, tx, _, fy, ty = row["transform"][:6]
    x = (np.arange(row["width"]) + 0.5 - tx) / fx
    y = (np.arange(row["height"]) + 0.5 - ty) / fy
    columns = (x >= 0) & (x <= row["source_width"])
    lines = (y >= 0) & (y <= row["source_height"])
    return lines[:, None] & columns[None, :]


def _preview_keys(frames: Path) -> set[tuple]:
    file = pq.ParquetFile(frames)
    keys = [tuple(row.values()) for row in file.read(columns=list(_KEY)).to_pylist()]
    moments = sorted({key[1:3] for key in keys})
    cameras = sorted({key[3] for key in keys})
    some = set(_evenly(moments, _PREVIEW_TIMESTEPS))
    views = set(_evenly(cameras, _PREVIEW_CAMERAS))
    return {key for key in keys if key[1:3] in some and key[3] in views}


def _evenly(items: list, most: int) -> list:
    places = np.linspace(0, len(items) - 1, min(most, len(items)))
    return [items[round(place)] for place in places]


def _check(
    rejects: list[dict[str, Any]], total: int, params: Params, backends: dict[str, str]
) -> None:
    if rejects and (len(rejects) == total or len(rejects) > params.max_rejected * total):
        first = rejects[0]
        where = locate(first["sequence"], first["timestep"], first["camera"])
        advice = (
            "Does the background plate show the same empty scene, with the same crop and light? "
            "If not, set matting.backend: selfie."
            if backends[first["camera"]] == "plate"
            else "Are the capture's mattes white where the person is? If not, set matting.backend."
            if backends[first["camera"]] == "given"
            else "Is the person in the picture? If so, add a background plate to the capture."
        )
        raise StageError(
            f"{len(rejects)} of {total} mattes are unusable, the first at {where}: "
            f"{first['reason']}. {advice}"
        )


def _warnings(backends: dict[str, str], params: Params) -> list[str]:
    without = sorted(camera for camera, name in backends.items() if name == "selfie")
    if params.backend == "auto" and without and len(without) < len(backends):
        return [f"Cameras without a plate or mattes use selfie: {', '.join(without)}."]
    return []
