"""Evaluation: score the avatar on everything that was held out, and write the report.

Reads ingest, matting, tracking and avatar. Writes ``metrics.json`` (means and spreads),
``protocol.json`` (how they were taken), ``frames.parquet`` (every score of every view), ``images/``
(pictures and curves under names that stay, so that two versions can be held side by side),
``video.mp4``, ``report.html``.
"""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from gha_core.artifacts import schemas
from gha_core.artifacts.contact_sheet import contact_sheet
from gha_core.artifacts.images import Image, encode_jpeg
from gha_core.artifacts.stage_folder import read_json, write_json
from gha_core.artifacts.tables import read_table, write_table
from gha_core.artifacts.videos import write_video
from gha_core.avatar import Avatar
from gha_core.avatar.milestones import read_milestones
from gha_core.dataset import Dataset, View
from gha_core.evaluation.catalogue import METRICS, REGION_PROTOCOLS, TASK_PROTOCOLS, TASKS
from gha_core.evaluation.clip import Clip, clip_views, frame_rate, frames_per_second
from gha_core.evaluation.optional_metrics import optional_metrics
from gha_core.evaluation.report import Report, Strip, line_plot, render_report, strip
from gha_core.evaluation.scoring import (
    Judge,
    Score,
    ScoredView,
    choose_views,
    evenly,
    mean_images,
    side_by_side,
    summarise,
)
from gha_core.landmarks import FaceMeshDetector
from gha_core.progress import track
from gha_core.tracked_face import TrackedFace
from tasks.stage import Inputs, Origin, StageParams

SHOWN_STAGES = ("ingest", "matting", "tracking", "avatar")
_FIXED_VIEWS = 6
_MOST_GAIN = 0.9


class Params(StageParams):
    """What is scored and shown."""

    max_views: int = Field(36, ge=0, description="most views scored per task; 0 = all")
    strips: int = Field(5, ge=1, le=50, description="rows of pictures in the report, worst to best")
    video_frames: int = Field(
        120, ge=2, description="most frames of the report's video, and of the scores over time"
    )
    milestone_views: int = Field(
        8, ge=0, description="views on which earlier states of the avatar are scored; 0 = none"
    )


def run(inputs: Inputs, params: Params, out: Path) -> None:
    """Score the subject's avatar. See the module's docstring for the files."""
    dataset = Dataset(inputs["ingest"], inputs["matting"], inputs["tracking"], inputs.splits)
    avatar = Avatar.load(inputs["avatar"])
    chosen = choose_views(dataset, params.max_views)
    headline = next(iter(chosen), "")
    optional = optional_metrics()
    judge = Judge(
        dataset,
        TrackedFace.load(inputs["tracking"]),
        FaceMeshDetector(),
        optional.images,
        mean_images(dataset),
        headline,
    )
    views = [view for views in chosen.values() for view in views]
    scoring = side_by_side(lambda view: judge.score(avatar, view), views)
    scored = list(track(scoring, "scoring held-out views", total=len(views)))
    clip = Clip(judge, clip_views(dataset, params.video_frames), optional.videos)
    video = _write_video(clip, avatar, out / "video.mp4")
    curve = _learning(judge, avatar, chosen.get(headline, []), inputs["avatar"], params)

    rows = [score for view in scored for score in view.scores]
    rows += [score for score in clip.scores if score.view.is_test]
    scores = summarise(rows)
    protocol = _protocol(dataset, inputs, params, len(scored), clip, scores)
    warnings = _warnings(scores.get(headline, {}), headline)
    _write_scores(inputs.subject, rows, out)
    write_json(out / "metrics.json", scores)
    write_json(out / "protocol.json", {**protocol, "not_available": optional.missing})

    ranked = _ranked([s for s in scored if s.view.part == headline], params.strips)
    strips = [_strip(judge, avatar, each, rank) for rank, each in ranked]
    plots = _plots(scored, curve, inputs["avatar"], inputs.origin)
    _write_images(judge, avatar, chosen.get(headline, []), strips, plots, out / "images")
    speed, facts = _facts(judge, avatar, clip.views[0], inputs)
    report = Report(
        subject=inputs.subject,
        scores=scores,
        headline=headline,
        facts=facts,
        protocol=protocol,
        missing=optional.missing,
        warnings=warnings,
        video=video,
        strips=strips,
        plots=[(plot.caption, plot.svg) for plot in plots],
        stages={stage: _stage(inputs, stage) for stage in SHOWN_STAGES},
        lineage=_lineage(inputs["avatar"], optional.licences),
        code=inputs.origin.code,
        parameters=inputs.origin.parameters,
    )
    (out / "report.html").write_text(render_report(report))
    shown = [each.picture for each in evenly(strips, 3)]
    preview = np.concatenate(shown) if shown else _white()
    (out / "preview.jpg").write_bytes(encode_jpeg(preview, 90))
    summary = {
        **_summary(scores.get(headline, {}), headline),
        **speed,
        "learning_curve": [{"step": step, "head_psnr_db": round(db, 3)} for step, db in curve],
        "images": len(scored),
        "not_available": optional.missing,
        "warnings": warnings,
    }
    write_json(out / "summary.json", summary)


@dataclass(frozen=True)
class _Plot:
    name: str
    caption: str
    svg: str


def _learning(
    judge: Judge, avatar: Avatar, views: Sequence[View], folder: Path, params: Params
) -> list[tuple[int, float]]:
    """(step, mean head PSNR of a few held-out views, dB) at each milestone and at the end."""
    few = evenly(views, params.milestone_views)
    milestones = list(read_milestones(folder, avatar))
    if not few or not milestones:
        return []
    states = [*milestones, (read_json(folder / "summary.json")["steps"], avatar)]
    jobs = [(state, view) for _, state in states for view in few]
    values = side_by_side(lambda job: judge.head_psnr(*job), jobs)
    known = list(track(values, "scoring milestones", total=len(jobs)))
    means = [
        np.nanmean(known[start : start + len(few)]) for start in range(0, len(known), len(few))
    ]
    return [(step, float(mean)) for (step, _), mean in zip(states, means, strict=True)]


def _protocol(
    dataset: Dataset,
    inputs: Inputs,
    params: Params,
    images: int,
    clip: Clip,
    scores: dict[str, Any],
) -> dict[str, Any]:
    sizes = sorted({f"{c.width}x{c.height}" for c in dataset.cameras.values()})
    used = {metric for regions in scores.values() for of in regions.values() for metric in of}
    first = clip.views[0]
    return {
        "resolution": ", ".join(sizes),
        "crop": "as stored by ingest; pixels beyond the photo's edge are not scored",
        "background": "white; the photo's own background is taken out by the matting stage's alpha",
        "masks": "from the matting stage and the tracked face model, never from the rendering",
        "regions": dict(REGION_PROTOCOLS),
        "tasks": {task: TASK_PROTOCOLS[task] for task in TASKS if task in scores},
        "metrics": {name: kind.protocol for name, kind in METRICS.items() if name in used},
        "driving": "the tracker's pose and expression of each frame, not refined on test frames",
        "over_time": (
            f"{len(clip.views)} consecutive frames of {first.sequence} at "
            f"{frame_rate(clip.views):.4g} per second, camera {first.camera}"
        ),
        "test_cameras": ", ".join(inputs.splits.test_cameras) or "none",
        "test_sequences": ", ".join(inputs.splits.test_sequences) or "none",
        "test_every": inputs.splits.test_every,
        "test_last": inputs.splits.test_last,
        "sampling": (
            f"at most {params.max_views} views per task, evenly spaced"
            if params.max_views
            else "all held-out views"
        ),
        "images": images,
    }


def _write_scores(subject: str, scores: Iterable[Score], out: Path) -> None:
    rows = [
        {
            "subject": subject,
            "sequence": score.view.sequence,
            "timestep": score.view.timestep,
            "camera": score.view.camera,
            "task": score.view.part,
            "region": score.region,
            "metric": score.metric,
            "value": score.value,
        }
        for score in scores
    ]
    write_table(out / "frames.parquet", schemas.SCORES, rows)


def _ranked(scored: list[ScoredView], count: int) -> list[tuple[str, ScoredView]]:
    """At most ``count`` views from worst to best head PSNR, and what each is called."""
    known = [s for s in scored if np.isfinite(s.value("head", "psnr"))]
    ranked = sorted(known, key=lambda s: s.value("head", "psnr"))
    if len(ranked) > count:
        places = np.linspace(0, len(ranked) - 1, count).round().astype(int)
        ranked = [ranked[place] for place in places]
    names = {0: "worst", len(ranked) - 1: "best", (len(ranked) - 1) / 2: "median"}
    return [(names.get(place, ""), each) for place, each in enumerate(ranked)]


def _strip(judge: Judge, avatar: Avatar, scored: ScoredView, rank: str) -> Strip:
    view = scored.view
    pose, expression = view.motion
    camera, truth = judge.dataset.cameras[view.camera], judge.dataset.over_white(view)
    image, _ = avatar.render(camera, pose, expression)
    frozen, _ = avatar.render(camera, pose, np.zeros_like(expression))
    caption = (
        f"{view.sequence}, timestep {view.timestep}, camera {view.camera}: head "
        f"{scored.value('head', 'psnr'):.2f} dB, mouth and eyes "
        f"{scored.value('mouth_eyes', 'psnr'):.2f} dB "
        f"({scored.value('mouth_eyes', 'psnr_expression_frozen'):.2f} dB frozen)"
    )
    return Strip(rank, caption, strip(truth, image, frozen))


def _write_images(
    judge: Judge,
    avatar: Avatar,
    views: Sequence[View],
    strips: Sequence[Strip],
    plots: Sequence[_Plot],
    folder: Path,
) -> None:
    folder.mkdir()
    for place, each in enumerate(strips, 1):
        name = f"rank_{place}{'_' if each.rank else ''}{each.rank}.jpg"
        (folder / name).write_bytes(encode_jpeg(each.picture))
    # The same views whatever their scores, for comparison with other versions.
    rows: dict[str, dict[str, Image]] = {"photo": {}, "avatar": {}}
    for view in evenly(views, _FIXED_VIEWS):
        label = f"{view.sequence} {view.timestep} {view.camera}"
        rows["photo"][label] = judge.dataset.over_white(view)
        rows["avatar"][label] = avatar.render(judge.dataset.cameras[view.camera], *view.motion)[0]
    if rows["photo"]:
        sheet = contact_sheet(rows, list(rows["photo"]), side=256)
        (folder / "views.jpg").write_bytes(encode_jpeg(sheet))
    for plot in plots:
        (folder / f"{plot.name}.svg").write_text(plot.svg)


def _write_video(clip: Clip, avatar: Avatar, path: Path) -> bytes:
    """Photo beside avatar, from the frontal camera."""
    frames = track(clip.frames(avatar), "video", total=len(clip.views))
    write_video(path, frames, rate=frame_rate(clip.views))
    return path.read_bytes()


def _plots(
    scored: list[ScoredView], curve: list[tuple[int, float]], avatar: Path, origin: Origin
) -> list[_Plot]:
    plots = []
    if curve:
        plots.append(_learning_plot(curve, origin))
    by_task: dict[str, dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for s in scored:
        by_task[s.view.part][s.view.sequence, s.view.timestep].append(s.value("head", "psnr"))
    series = {}
    for task, frames in by_task.items():
        means = [float(np.nanmean(frames[key])) for key in sorted(frames)]
        series[TASKS[task]] = (list(range(len(means))), means)
    if series:
        svg = line_plot(series, "scored frame, in order", "head PSNR, dB")
        plots.append(_Plot("frames", "Head PSNR of each scored frame, mean of its cameras", svg))
    history = read_table(avatar / "history.parquet", schemas.HISTORY).to_pylist()
    losses: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in history:
        if row["value"] > 0:
            losses[row["term"]][0].append(row["step"])
            losses[row["term"]][1].append(row["value"])
    if losses:
        svg = line_plot(losses, "step", "loss", log=True)
        plots.append(_Plot("losses", "Training losses of the avatar, unweighted", svg))
    return plots


def _learning_plot(curve: list[tuple[int, float]], origin: Origin) -> _Plot:
    """Quality against time; against steps where the time is not known."""
    steps, values = [step for step, _ in curve], [value for _, value in curve]
    gain = values[-1] - values[0]
    level = values[0] + _MOST_GAIN * gain
    reached = float(np.interp(level, np.maximum.accumulate(values), steps)) / steps[-1]
    caption = (
        f"Quality against time: head PSNR of a few held-out views. {_MOST_GAIN:.0%} of the gain of "
        f"{gain:.1f} dB came in the first {reached:.0%} of the training"
    )
    minutes = _minutes(steps, origin.training)
    x = minutes or [float(step) for step in steps]
    label = "minutes of training, on the machine of this report" if minutes else "training step"
    mark = (level, f"{_MOST_GAIN:.0%} of the gain")
    svg = line_plot({"head PSNR": (x, values)}, label, "dB", marks=True, level=mark)
    return _Plot("learning", caption, svg)


def _minutes(steps: Sequence[int], training: Sequence[tuple[int, float]]) -> list[float]:
    """When each step was done; at the mean pace, if a part of the training is not known."""
    done = [each for each, _ in training]
    if len(done) < 2 or done[-1] <= done[0] or done[-1] < steps[-1]:
        return []
    pace = training[-1][1] / (done[-1] - done[0])
    known = [(each, pace * done[0] + seconds) for each, seconds in training]
    times = np.interp(steps, [0, *(each for each, _ in known)], [0, *(s for _, s in known)])
    return [float(second) / 60 for second in times]


def _facts(
    judge: Judge, avatar: Avatar, view: View, inputs: Inputs
) -> tuple[dict[str, Any], dict[str, str]]:
    """Speed and size, for the summary and for people."""
    camera, motion = judge.dataset.cameras[view.camera], view.motion
    rate = frames_per_second(lambda: avatar.render(camera, *motion), time.perf_counter)
    size = sum(
        (inputs["avatar"] / name).stat().st_size for name in ("avatar.safetensors", "avatar.json")
    )
    where = f"{torch.get_num_threads()} threads, {platform.machine()}, {os.cpu_count()} cores"
    known: dict[str, Any] = {
        "frames_per_second": round(rate, 2),
        "frames_per_second_at": f"{camera.width}x{camera.height}, CPU, {where}",
        "avatar_bytes": size,
    }
    shown = {
        f"frames per second at {camera.width}x{camera.height}, CPU": f"{rate:.1f}",
        f"size, {avatar.head.config.gaussians:,} Gaussians": f"{size / 1e6:.1f} MB",
    }
    if "avatar" in inputs.origin.seconds:
        shown["training"] = f"{inputs.origin.seconds['avatar'] / 60:.1f} min"
    return known, shown


def _stage(inputs: Inputs, stage: str) -> tuple[bytes | None, dict[str, Any], float | None]:
    folder = inputs[stage]
    preview = folder / "preview.jpg"
    picture = preview.read_bytes() if preview.is_file() else None
    return picture, read_json(folder / "summary.json"), inputs.origin.seconds.get(stage)


def _lineage(avatar: Path, licences: dict[str, str]) -> dict[str, Any]:
    """What the avatar says of itself, and the models that scored it."""
    said = read_json(avatar / "avatar.json")
    scoring = {f"{name} (scores only)": licence for name, licence in licences.items()}
    return {**said, "licences": {**said["licences"], **scoring}}


def _warnings(regions: dict[str, Any], headline: str) -> list[str]:
    warnings = []
    if not headline:
        warnings.append("Nothing was held out, so nothing was scored; set splits in params.yaml.")
    gain = _gain(regions)
    if gain is not None and gain < 1.0:
        warnings.append(
            f"Driving the expression gains only {gain} dB around mouth and eyes over a frozen "
            "one; look at the tracking preview: does it follow the face?"
        )
    return warnings


def _gain(regions: dict[str, Any]) -> float | None:
    detail = regions.get("mouth_eyes", {})
    if "psnr" not in detail or "psnr_expression_frozen" not in detail:
        return None
    return round(detail["psnr"]["mean"] - detail["psnr_expression_frozen"]["mean"], 3)


def _summary(regions: dict[str, Any], headline: str) -> dict[str, Any]:
    return {
        "headline_task": headline,
        "head_psnr_db": regions.get("head", {}).get("psnr", {}).get("mean"),
        "head_ssim": regions.get("head", {}).get("ssim", {}).get("mean"),
        "expression_gain_db": _gain(regions),
        "keypoint_distance_px": regions.get("full", {}).get("akd", {}).get("mean"),
    }


def _white() -> Image:
    return np.full((64, 256, 3), 255, np.uint8)
