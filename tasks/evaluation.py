"""Evaluation: score the avatar on everything that was held out, and write the report.

Reads ingest, matting, tracking and avatar. Writes ``metrics.json`` (means and spreads),
``protocol.json`` (how they were taken), ``frames.parquet`` (every score of every view), ``images/``
(photo, avatar, frozen expression, error), ``video.mp4``, ``report.html``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image, encode_jpeg
from gha_core.artifacts.stage_folder import read_json, write_json
from gha_core.artifacts.tables import read_table, write_table
from gha_core.artifacts.videos import write_video
from gha_core.avatar import Avatar
from gha_core.dataset import Dataset, View
from gha_core.evaluation.optional_metrics import optional_metrics
from gha_core.evaluation.regions import FEATURE_MARGIN, HAIR_MARGIN
from gha_core.evaluation.report import (
    TASK_NAMES,
    Report,
    line_plot,
    render_report,
    strip,
)
from gha_core.evaluation.scoring import (
    TASKS,
    ScoredView,
    choose_views,
    evenly,
    score_views,
    summarise,
)
from gha_core.landmarks import FaceMeshDetector
from gha_core.progress import track
from gha_core.reenactment import frontal_camera
from gha_core.tracked_face import TrackedFace
from tasks.stage import Inputs, StageParams

SHOWN_STAGES = ("ingest", "matting", "tracking", "avatar")


class Params(StageParams):
    """What is scored and shown."""

    max_views: int = Field(48, ge=0, description="most views scored per task; 0 = all")
    strips: int = Field(5, ge=1, le=50, description="rows of pictures in the report, worst to best")
    video_frames: int = Field(120, ge=2, description="most frames of the report's video")


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Score the subject's avatar. See the module's docstring for the files."""
    dataset = Dataset(inputs["ingest"], inputs["matting"], inputs["tracking"], inputs.splits)
    avatar = Avatar.load(inputs["avatar"])
    face = TrackedFace.load(inputs["tracking"])
    optional, missing = optional_metrics()
    chosen = choose_views(dataset, params.max_views)
    views = [view for views in chosen.values() for view in views]
    scoring = score_views(avatar, dataset, face, views, FaceMeshDetector(), optional)
    scored = list(track(scoring, "scoring held-out views", total=len(views)))

    scores = summarise((s.view.part, score) for s in scored for score in s.scores)
    headline = next((task for task in TASKS if task in scores), "")
    protocol = _protocol(dataset, inputs, params, scored)
    _write_scores(inputs.subject, scored, out)
    write_json(out / "metrics.json", scores)
    write_json(out / "protocol.json", {**protocol, "not_available": missing})
    strips = _strips([s for s in scored if s.view.part == headline], params.strips)
    _write_images(strips, out / "images")
    video = _write_video(avatar, dataset, params.video_frames, out / "video.mp4")

    report = Report(
        subject=inputs.subject,
        scores=scores,
        headline=headline,
        protocol=protocol,
        missing=missing,
        video=video,
        strips=[(_caption(s), strip(s)) for s in strips],
        plots=_plots(scored, inputs["avatar"]),
        stages={stage: _stage(inputs[stage]) for stage in SHOWN_STAGES},
        lineage=read_json(inputs["avatar"] / "avatar.json"),
    )
    (out / "report.html").write_text(render_report(report))
    preview = np.concatenate([strip(s) for s in evenly(strips, 3)]) if strips else _white()
    (out / "preview.jpg").write_bytes(encode_jpeg(preview, 90))
    write_json(out / "summary.json", _summary(scores, headline, missing, len(scored)))


def _protocol(
    dataset: Dataset, inputs: Inputs, params: Params, scored: list[ScoredView]
) -> dict[str, Any]:
    sizes = sorted({f"{c.width}x{c.height}" for c in dataset.cameras.values()})
    return {
        "resolution": ", ".join(sizes),
        "crop": "as stored by ingest; pixels beyond the photo's edge are not scored",
        "background": "white; the photo's own background is taken out by the matting stage's alpha",
        "regions": (
            "full image; head = matte inside the hull of the tracked head without neck, scalp "
            f"widened {HAIR_MARGIN}x; mouth and eyes = hulls of lips and lids + {FEATURE_MARGIN} "
            "of the head's height"
        ),
        "psnr": "mean squared error over the region's pixels only, 8-bit sRGB",
        "ssim": "torchmetrics, 11x11 Gaussian window, sigma 1.5, RGB, map averaged over the region",
        "akd": "MediaPipe FaceMesh (478 points) on photo and rendering, full image",
        "driving": "the tracker's pose and expression of each frame, not refined on test frames",
        "test_cameras": ", ".join(inputs.splits.test_cameras) or "none",
        "test_sequences": ", ".join(inputs.splits.test_sequences) or "none",
        "test_every": inputs.splits.test_every,
        "test_last": inputs.splits.test_last,
        "sampling": (
            f"at most {params.max_views} views per task, evenly spaced"
            if params.max_views
            else "all held-out views"
        ),
        "images": len(scored),
    }


def _write_scores(subject: str, scored: list[ScoredView], out: Path) -> None:
    rows = [
        {
            "subject": subject,
            "sequence": s.view.sequence,
            "timestep": s.view.timestep,
            "camera": s.view.camera,
            "task": s.view.part,
            "region": score.region,
            "metric": score.metric,
            "value": score.value,
        }
        for s in scored
        for score in s.scores
    ]
    write_table(out / "frames.parquet", schemas.SCORES, rows)


def _strips(scored: list[ScoredView], count: int) -> list[ScoredView]:
    known = [s for s in scored if np.isfinite(s.value("head", "psnr"))]
    ranked = sorted(known, key=lambda s: s.value("head", "psnr"))
    if len(ranked) <= count:
        return ranked
    places = np.linspace(0, len(ranked) - 1, count).round().astype(int)
    return [ranked[place] for place in places]


def _caption(scored: ScoredView) -> str:
    view = scored.view
    return (
        f"{view.sequence}, timestep {view.timestep}, camera {view.camera}: head "
        f"{scored.value('head', 'psnr'):.2f} dB, mouth and eyes "
        f"{scored.value('mouth_eyes', 'psnr'):.2f} dB "
        f"({scored.value('mouth_eyes', 'psnr_expression_frozen'):.2f} dB frozen)"
    )


def _write_images(strips: list[ScoredView], folder: Path) -> None:
    folder.mkdir()
    for s in strips:
        name = f"{s.view.sequence}_{s.view.timestep:05d}_{s.view.camera}.jpg"
        (folder / name).write_bytes(encode_jpeg(strip(s)))


def _write_video(avatar: Avatar, dataset: Dataset, most: int, path: Path) -> bytes:
    """Photo beside avatar over one stretch of time, held out if any is, from the frontal camera."""
    views = _video_views(dataset)[:most]

    def frames() -> Iterator[Image]:
        for view in views:
            image, _ = avatar.render(dataset.cameras[view.camera], *view.motion)
            yield np.concatenate([dataset.over_white(view), image], axis=1)

    times = [view.time for view in views]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    write_video(path, track(frames(), "video", total=len(views)), rate=1.0 / max(step, 1e-3))
    return path.read_bytes()


def _video_views(dataset: Dataset) -> list[View]:
    new = [v for v in dataset.test if v.part != "novel_view"] or dataset.test or dataset.views
    sequence = new[0].sequence
    new = [view for view in new if view.sequence == sequence]
    cameras = [dataset.cameras[name] for name in sorted({view.camera for view in new})]
    camera = frontal_camera(cameras, [view.pose for view in new if view.pose is not None])
    return [view for view in new if view.camera == camera.name]


def _plots(scored: list[ScoredView], avatar: Path) -> list[tuple[str, str]]:
    plots = []
    by_task: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for s in scored:
        by_task[s.view.part][s.view.sequence, s.view.timestep].append(s.value("head", "psnr"))
    series = {}
    for task, frames in by_task.items():
        keys = sorted(frames)
        series[TASK_NAMES[task]] = (
            list(range(len(keys))),
            [float(np.nanmean(frames[key])) for key in keys],
        )
    if series:
        plots.append(("Head PSNR of each scored frame, in order", line_plot(series, "frame", "dB")))
    history = read_table(avatar / "history.parquet", schemas.HISTORY).to_pylist()
    curves: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in history:
        if row["value"] > 0:
            curves[row["term"]][0].append(row["step"])
            curves[row["term"]][1].append(row["value"])
    if curves:
        plots.append(("Training of the avatar", line_plot(curves, "step", "loss", log=True)))
    return plots


def _stage(folder: Path) -> tuple[bytes | None, dict[str, Any]]:
    preview = folder / "preview.jpg"
    return preview.read_bytes() if preview.is_file() else None, read_json(folder / "summary.json")


def _summary(
    scores: dict[str, Any], headline: str, missing: dict[str, str], images: int
) -> dict[str, Any]:
    regions = scores.get(headline, {})
    warnings = []
    if not headline:
        warnings.append("Nothing was held out, so nothing was scored; set splits in params.yaml.")
    detail = regions.get("mouth_eyes", {})
    gain = None
    if "psnr" in detail and "psnr_expression_frozen" in detail:
        gain = round(detail["psnr"]["mean"] - detail["psnr_expression_frozen"]["mean"], 3)
        if gain < 1.0:
            warnings.append(
                f"Driving the expression gains only {gain} dB around mouth and eyes over a frozen "
                "one; look at the tracking preview: does it follow the face?"
            )
    return {
        "headline_task": headline,
        "head_psnr_db": regions.get("head", {}).get("psnr", {}).get("mean"),
        "head_ssim": regions.get("head", {}).get("ssim", {}).get("mean"),
        "expression_gain_db": gain,
        "keypoint_distance_px": regions.get("full", {}).get("akd", {}).get("mean"),
        "images": images,
        "not_available": missing,
        "warnings": warnings,
    }


def _white() -> Image:
    return np.full((64, 256, 3), 255, np.uint8)
