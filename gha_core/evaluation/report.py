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

from gha_core.artifacts.images import Image, encode_jpeg
from gha_core.evaluation import catalogue

TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class Strip:
    """One row of pictures: photo, avatar, the same pose with a neutral expression, and the error.

    Attributes:
        rank: "worst", "median", "best", or "".
    """

    rank: str
    caption: str
    picture: Image


@dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    Attributes:
        scores: task -> region -> metric -> {mean, std, median, count}.
        headline: the task of the tiles; empty if nothing was held out.
        facts: name -> value, of speed and size.
        strips: worst to best.
        plots: caption -> SVG text.
        stages: stage -> (picture or None, its summary, seconds or None).
        lineage: of the avatar: its configuration, hashes of what it was made from, licences.
        code, parameters: what made it.
    """

    subject: str
    scores: Mapping[str, Any]
    headline: str
    facts: Mapping[str, str]
    protocol: Mapping[str, Any]
    missing: Mapping[str, str]
    warnings: Sequence[str]
    video: bytes
    strips: Sequence[Strip]
    plots: Sequence[tuple[str, str]]
    stages: Mapping[str, tuple[bytes | None, Mapping[str, Any], float | None]]
    lineage: Mapping[str, Any]
    code: str
    parameters: Mapping[str, Any]


def render_report(report: Report) -> str:
    """The page as text."""
    return page(
        "report.html.j2", report=report, catalogue=catalogue, tiles=tiles(report.scores, report)
    )


def page(template: str, **content: Any) -> str:
    """A template of this folder, filled in; text is escaped, what is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    environment.filters["picture"] = lambda image: data_uri(encode_jpeg(image, 90), "image/jpeg")
    return environment.get_template(template).render(**content)


def tiles(scores: Mapping[str, Any], report: Report) -> list[tuple[str, str]]:
    """(what, value) of the scores that a person looks for first."""
    regions = scores.get(report.headline, {})

    def mean(region: str, metric: str) -> float | None:
        return regions.get(region, {}).get(metric, {}).get("mean")

    shown = []
    for name, region, metric, form in (
        ("head PSNR", "head", "psnr", "{:.2f} dB"),
        ("head SSIM", "head", "ssim", "{:.3f}"),
        ("keypoint distance", "full", "akd", "{:.2f} px"),
    ):
        value = mean(region, metric)
        if value is not None:
            shown.append((name, form.format(value)))
    detail, frozen = mean("mouth_eyes", "psnr"), mean("mouth_eyes", "psnr_expression_frozen")
    if detail is not None and frozen is not None:
        shown.append(("mouth and eyes, by driving", f"{detail - frozen:+.2f} dB"))
    return [*shown, *report.facts.items()]


def strip(truth: Image, image: Image, frozen: Image) -> Image:
    """Photo, avatar, the same pose with a neutral expression, and the error, side by side."""
    return np.concatenate([truth, image, frozen, error_map(truth, image)], axis=1)


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
    marks: bool = False,
    level: tuple[float, str] | None = None,
) -> str:
    """SVG of one line per series, {name: (x, y)}.

    Args:
        marks: show each point.
        level: a dashed horizontal line, and what it is.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure  # half a second that only who plots shall pay

    with mpl.rc_context({"svg.hashsalt": "gha", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.2, 2.8))
        # Where labels have room; to have matplotlib find out takes half of the time.
        figure.subplots_adjust(left=0.09, right=0.99, bottom=0.17, top=0.97)
        axes = figure.add_subplot()
        for name, (x, y) in series.items():
            axes.plot(x, y, linewidth=1.4, label=name, marker="o" if marks else "", markersize=3.5)
        if level is not None:
            axes.axhline(level[0], color="gray", linewidth=0.8, linestyle="--", label=level[1])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log:
            axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1 or level is not None:
            axes.legend(fontsize=8, frameon=False, ncols=2)
        buffer = io.StringIO()
        # Without a date and with fixed ids, equal data gives equal bytes.
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
