"""``gha report --all``: one page about all subjects, the doubtful ones first."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flows import dvc_bridge, lock_file
from flows.compare import locked
from flows.stage_process import read_record
from gha_core.artifacts.images import decode_image, encode_jpeg
from gha_core.errors import GhaError
from gha_core.evaluation.catalogue import METRICS, REGIONS, TASKS
from gha_core.evaluation.report import line_plot, page
from tasks.parameters import STAGES

SUBJECTS = Path("data", "subjects")
OUTPUTS = Path("outputs")
SHOWN = (
    ("head", "psnr"), ("head", "ssim"), ("mouth_eyes", "psnr"), ("full", "perceptual"),
    ("full", "akd"), ("head", "flicker"),
)  # fmt: skip
LIMIT = 3.0  # robust standard deviations
_FEWEST = 4  # subjects, below which nobody is an outlier
_COMMITS = 12
_PICTURE = 96  # px high

Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """What a cell says, and by what it is sorted."""

    text: str
    value: float | str | None


@dataclass(frozen=True)
class Column:
    title: str
    number: bool


@dataclass
class Row:
    """One subject; ``severity`` orders those with remarks."""

    name: str
    cells: list[Cell]
    picture: bytes | None
    link: str
    remarks: list[str] = field(default_factory=list)
    severity: float = 0.0


def write_batch_report(subjects: Sequence[str], output: Path | None) -> Path:
    """Write the page; returns where.

    Raises:
        GhaError: dvc.lock cannot be read.
    """
    path = output or OUTPUTS / "report.html"
    scores = {name: _scores(SUBJECTS / name) for name in subjects}
    values = {(name, *kind): _mean(of, *kind) for name, of in scores.items() for kind in SHOWN}
    spreads = {kind: _spread([values[name, *kind] for name in subjects]) for kind in SHOWN}
    entries = lock_file.read()
    rows = []
    for name in subjects:
        row = _row(name, scores[name], values, entries, path.parent)
        _remark(row, name, scores[name], values, spreads)
        rows.append(row)
    rows.sort(key=lambda row: (-row.severity, values[row.name, "head", "psnr"] or 0.0))
    titles = [Column("subject", False)]
    titles += [Column(f"{METRICS[m].title}, {REGIONS[r]}", True) for r, m in SHOWN]
    titles += [Column("all stages, min", True), Column("avatar, MB", True)]
    titles += [Column("capture", False)]
    known = [v for name in subjects if (v := values[name, "head", "psnr"]) is not None]
    tiles = [
        (f"{what} head PSNR", f"{of(known):.2f} dB")
        for what, of in (("mean", np.mean), ("worst", np.min), ("best", np.max))
        if known
    ]
    text = page(
        "batch.html.j2",
        rows=rows,
        columns=titles,
        scored=len(known),
        outliers=sum(bool(row.remarks) for row in rows),
        limit=LIMIT,
        tiles=tiles,
        trend=_trend(subjects, values),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text)
    temporary.replace(path)
    return path


def _scores(folder: Path) -> Scores:
    """Of the hardest task; nothing if it is not evaluated."""
    with suppress(OSError, ValueError):
        return _hardest(json.loads((folder / "evaluation" / "metrics.json").read_text()))
    return {}


def _hardest(metrics: Mapping[str, Any]) -> Scores:
    return next((metrics[task] for task in TASKS if task in metrics), {})


def _mean(scores: Scores, region: str, metric: str) -> float | None:
    return scores.get(region, {}).get(metric, {}).get("mean")


def _spread(values: Sequence[float | None]) -> tuple[float, float]:
    """Median and robust standard deviation."""
    known = np.array([value for value in values if value is not None])
    if len(known) < _FEWEST:
        return 0.0, float("inf")
    middle = float(np.median(known))
    return middle, max(1.4826 * float(np.median(np.abs(known - middle))), 1e-3 * abs(middle))


def _row(
    name: str,
    scores: Scores,
    values: Mapping[tuple[str, str, str], float | None],
    entries: Mapping[str, Any],
    beside: Path,
) -> Row:
    folder = SUBJECTS / name
    cells = [Cell(name, name)]
    for region, metric in SHOWN:
        value = values[name, region, metric]
        text = "not scored" if value is None else f"{value:.{METRICS[metric].digits}f}"
        cells.append(Cell(text, value))
    records = [read_record(f"{stage}@{name}") for stage in STAGES]
    minutes = sum(record.seconds for record in records if record) / 60
    cells.append(Cell(f"{minutes:.1f}" if minutes else "not known", minutes or None))
    weights = folder / "avatar" / "avatar.safetensors"
    size = weights.stat().st_size / 1e6 if weights.is_file() else None
    cells.append(Cell(f"{size:.1f}" if size else "none", size))
    digest = _capture(entries.get(f"ingest@{name}", {}), name)
    cells.append(Cell(digest[:10] or "not known", digest))
    report = folder / "evaluation" / "report.html"
    link = os.path.relpath(report.resolve(), beside.resolve()) if report.is_file() else ""
    return Row(name, cells, _picture(folder / "evaluation" / "preview.jpg"), link)


def _capture(entry: Mapping[str, Any], name: str) -> str:
    """DVC's hash of the capture that was read."""
    paths = {dep["path"]: dep.get("md5", "") for dep in entry.get("deps", [])}
    return paths.get(f"data/captures/{name}", "").removesuffix(".dir")


def _picture(path: Path) -> bytes | None:
    """Its middle strip, small."""
    with suppress(OSError, GhaError):
        image = decode_image(path.read_bytes())
        side = image.shape[1] // 4
        count = max(1, image.shape[0] // max(side, 1))
        strip = image[(count // 2) * side : (count // 2 + 1) * side]
        width = round(strip.shape[1] * _PICTURE / max(strip.shape[0], 1))
        small = cv2.resize(strip, (width, _PICTURE), interpolation=cv2.INTER_AREA)
        return encode_jpeg(small.astype(np.uint8), 85)
    return None


def _remark(
    row: Row,
    name: str,
    scores: Scores,
    values: Mapping[tuple[str, str, str], float | None],
    spreads: Mapping[tuple[str, str], tuple[float, float]],
) -> None:
    far = []
    for region, metric in SHOWN:
        value, (middle, spread) = values[name, region, metric], spreads[region, metric]
        if value is None or not METRICS[metric].better:
            continue
        worse = (middle - value if METRICS[metric].better == "higher" else value - middle) / spread
        if worse > LIMIT:
            row.severity = max(row.severity, worse)
            far.append(f"{METRICS[metric].title}, {REGIONS[region]} {worse:.1f}")
    if far:
        row.remarks.append(f"deviations worse than the batch: {'; '.join(far)}.")
    for stage in STAGES:
        record = read_record(f"{stage}@{name}")
        if record and record.state == "failed":
            row.severity = 1e6
            row.remarks.append(f"{stage} failed: {record.error}")
    with suppress(OSError, ValueError, KeyError):
        said = json.loads((SUBJECTS / name / "evaluation" / "summary.json").read_text())["warnings"]
        row.remarks += said
        row.severity = max(row.severity, LIMIT * bool(said))
    if not scores and not row.remarks:
        row.severity = 1e5
        row.remarks.append(f"Not evaluated. Run: gha run {name}")


def _trend(subjects: Sequence[str], values: Mapping[tuple[str, str, str], float | None]) -> str:
    """SVG of the mean over the latest commits, and as it is now; "" if there is only now."""
    points = list(_history(subjects))
    now = [v for name in subjects if (v := values[name, "head", "psnr"]) is not None]
    if not points or not now:
        return ""
    means = [*(mean for _, mean in points), float(np.mean(now))]
    label = f"commits with scores, from {points[0][0]} to {points[-1][0]}; 0 is now"
    series = {"mean": (list(range(-len(points), 1)), means)}
    return line_plot(series, label, "head PSNR, dB", marks=True)


def _history(subjects: Sequence[str]) -> Iterator[tuple[str, float]]:
    """(commit, mean head PSNR) of the latest commits of dvc.lock whose scores are in the cache."""
    command = ["git", "log", f"-{_COMMITS}", "--reverse", "--format=%h", "--", "dvc.lock"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for commit in done.stdout.split() if done.returncode == 0 else ():
        with suppress(GhaError):
            found = []
            lock = locked(commit)
            for name in subjects:
                outs = lock.get(f"evaluation@{name}", {}).get("outs", [])
                for md5 in (o["md5"] for o in outs if o["path"].endswith("/metrics.json")):
                    with suppress(OSError, ValueError):
                        metrics = json.loads(dvc_bridge.object_path(md5).read_text())
                        found.append(_mean(_hardest(metrics), "head", "psnr"))
            known = [value for value in found if value is not None]
            if known:
                yield commit, float(np.mean(known))
