"""The HTML report of one subject: one file that opens without a server or a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from matplotlib.figure import Figure

from gha_core.artifacts.images import Image, encode_jpeg
from gha_core.evaluation.scoring import ScoredView

TASK_NAMES = {
    "novel_view_and_expression": "New view, new expression",
    "novel_expression": "New expression (self-reenactment)",
    "novel_view": "New view",
}
METRIC_NAMES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "akd": "AKD (px)",
    "psnr_expression_frozen": "PSNR with the expression frozen at neutral (dB)",
    "psnr_mean_image": "PSNR of the mean training image (dB)",
    "lpips_alex": "LPIPS (AlexNet)",
    "csim": "CSIM (ArcFace)",
}
REGION_NAMES = {"full": "full image", "head": "head", "mouth_eyes": "mouth and eyes"}


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        scores: task -> region -> metric -> {mean, std, median, count}.
        headline: the task of the tiles; empty if nothing was held out.
        strips: caption -> picture, worst to best.
        plots: caption -> SVG text.
        stages: stage -> (picture or None, its summary).
    """

    subject: str
    scores: Mapping[str, Any]
    headline: str
    protocol: Mapping[str, Any]
    missing: Mapping[str, str]
    video: bytes
    strips: Sequence[tuple[str, Image]]
    plots: Sequence[tuple[str, str]]
    stages: Mapping[str, tuple[bytes | None, Mapping[str, Any]]]
    lineage: Mapping[str, Any]


def render_report(report: Report) -> str:
    """The page as text."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["picture"] = lambda image: _data_uri(encode_jpeg(image, 90), "image/jpeg")
    return environment.get_template("report.html.j2").render(
        report=report,
        task_names=TASK_NAMES,
        metric_names=METRIC_NAMES,
        region_names=REGION_NAMES,
        tiles=_tiles(report),
    )


def _tiles(report: Report) -> list[tuple[str, str]]:
    regions = report.scores.get(report.headline, {})

    def mean(region: str, metric: str) -> float | None:
        return regions.get(region, {}).get(metric, {}).get("mean")

    tiles = []
    head, similarity = mean("head", "psnr"), mean("head", "ssim")
    if head is not None and similarity is not None:
        tiles += [("head PSNR", f"{head:.2f} dB"), ("head SSIM", f"{similarity:.3f}")]
    detail, frozen = mean("mouth_eyes", "psnr"), mean("mouth_eyes", "psnr_expression_frozen")
    if detail is not None and frozen is not None:
        tiles.append(("mouth and eyes, gain by expression", f"{detail - frozen:+.2f} dB"))
    keypoints = mean("full", "akd")
    if keypoints is not None:
        tiles.append(("keypoint distance", f"{keypoints:.2f} px"))
    return tiles


def strip(scored: ScoredView) -> Image:
    """Photo, avatar, the same pose with a neutral expression, and the error, side by side."""
    return np.concatenate(
        [scored.truth, scored.image, scored.frozen, error_map(scored.truth, scored.image)], axis=1
    )


def error_map(truth: Image, image: Image, full_scale: float = 64.0) -> Image:
    """[H, W, 3] mean absolute difference over the channels; ``full_scale`` levels are brightest."""
    error = np.abs(truth.astype(np.float32) - image).mean(-1)
    levels = np.clip(error / full_scale * 255.0, 0, 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(
        np.uint8
    )


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str,
    y_label: str,
    log: bool = False,
) -> str:
    """SVG of one line per series, {name: (x, y)}."""
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in series.items():
        axes.plot(x, y, linewidth=1.2, label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False, ncols=2)
    buffer = io.StringIO()
    # Without a date and with fixed ids, equal data gives equal bytes.
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "gha"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
