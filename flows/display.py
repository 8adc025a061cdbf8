"""What a person sees: the live view of a run, and the tables of states, outcomes and scores."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.stage_process import Progress, Record, log_path, read_progress, read_record
from tasks.parameters import STAGES

ARTIFACTS = Path("data", "subjects")
SCORES = (
    ("head", "psnr", "PSNR, head", "{:.2f} dB"),
    ("head", "ssim", "SSIM, head", "{:.4f}"),
    ("full", "psnr", "PSNR, full image", "{:.2f} dB"),
    ("full", "ssim", "SSIM, full image", "{:.4f}"),
    ("mouth_eyes", "psnr", "PSNR, mouth and eyes", "{:.2f} dB"),
    ("mouth_eyes", "psnr_expression_frozen", "  with the expression frozen", "{:.2f} dB"),
    ("full", "akd", "keypoint distance", "{:.2f} px"),
)
TASKS = {
    "novel_view_and_expression": "new view, new expression",
    "novel_expression": "new expression",
    "novel_view": "new view",
}


@contextmanager
def watching(names: Sequence[str], console: Console) -> Iterator[None]:
    """Show how the stages ``names`` (``stage@subject``) get on while the block runs.

    A live table on a terminal, else one line whenever a stage starts or ends.
    """
    stop, began = threading.Event(), time.time()
    show = _live if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(names, console, began, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def duration(seconds: float) -> str:
    """``8.4 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def outcome_table(names: Sequence[str], outcomes: Mapping[str, str]) -> Table:
    """One row per stage: what became of it (``outcomes``), and what its last run took."""
    several = len({name.partition("@")[2] for name in names}) > 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (["subject"] if several else []) + ["stage", "", "time", "peak memory"]:
        table.add_column(column, justify="right" if column in ("time", "peak memory") else "left")
    total = 0.0
    for name in names:
        stage, _, subject = name.partition("@")
        record = read_record(name)
        seconds = record.seconds if record else 0.0
        total += seconds
        table.add_row(
            *([subject] if several else []),
            stage,
            Text(outcomes[name], _STYLES.get(outcomes[name], "")),
            duration(seconds) if seconds else "",
            f"{record.peak_memory / 2**30:.2f} GiB" if record and record.peak_memory else "",
        )
    table.add_row(*([""] if several else []), "all", "", duration(total), "", style="dim")
    return table


def score_table(subjects: Sequence[str]) -> Table | None:
    """The scores of evaluated subjects, their hardest evaluation task; None if there are none."""
    columns = {}
    for subject in subjects:
        scores = _scores(subject)
        task = next((task for task in TASKS if task in scores), None)
        if task:
            columns[f"{subject}: {TASKS[task]}"] = scores[task]
    if not columns:
        return None
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("score")
    for heading in columns:
        table.add_column(heading, justify="right")
    for region, metric, label, form in SCORES:
        cells = [scores.get(region, {}).get(metric, {}).get("mean") for scores in columns.values()]
        if any(cell is not None for cell in cells):
            table.add_row(label, *("" if c is None else form.format(c) for c in cells))
    return table


def report_path(subject: str) -> Path:
    return ARTIFACTS / subject / "evaluation" / "report.html"


def status_table(states: Mapping[str, Mapping[str, str]]) -> Table:
    """Subject x stage; ``states``: subject -> stage -> fresh, stale, failed, missing, running."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("subject")
    for stage in STAGES:
        table.add_column(stage)
    for subject, row in states.items():
        cells = [row.get(stage, "") for stage in STAGES]
        table.add_row(subject, *(Text(cell, _STYLES.get(cell, "")) for cell in cells))
    return table


_STYLES = {
    "fresh": "green",
    "cached": "green",
    "restored": "green",
    "unchanged": "green",
    "done": "green",
    "stale": "yellow",
    "missing": "dim",
    "waiting": "dim",
    "skipped": "yellow",
    "failed": "bold red",
    "running": "cyan",
}


def _live(names: Sequence[str], console: Console, began: float, stop: threading.Event) -> None:
    def render() -> RenderableType:
        return _grid(names, began, console.height)

    with Live(get_renderable=render, console=console, refresh_per_second=4, transient=True):
        stop.wait()


def _grid(names: Sequence[str], began: float, height: int) -> RenderableType:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "", "progress", "", "time", "left"):
        table.add_column(column)
    rows = [(name, _state(name, began)) for name in names]
    # A big batch does not fit: what is running matters most, then what comes next.
    order = {"running": 0, "failed": 1, "waiting": 2}
    most = max(3, height - 4)
    shown = rows
    if len(rows) > most:
        shown = sorted(rows, key=lambda row: order.get(row[1], 3))[:most]
    for name, state in shown:
        record, progress = read_record(name), read_progress(name)
        cells: list[RenderableType] = ["", "", "", ""]
        if state == "running" and record:
            elapsed = duration(time.time() - record.changed)
            cells = ["", "", elapsed, ""]
            if progress:
                cells = [*_bar(progress), elapsed, _left(progress)]
        elif state != "waiting" and record and record.seconds:
            cells = ["", "", duration(record.seconds), ""]
        table.add_row(name, Text(state, _STYLES.get(state, "")), *cells)
    ended = sum(state not in ("waiting", "running") for _, state in rows)
    footer = f"{ended} of {len(rows)} stages, {duration(time.time() - began)}"
    return Group(table, Text(footer, "dim"))


def _bar(progress: Progress) -> tuple[RenderableType, str]:
    count = f"{progress.description} {progress.done}/{progress.total or '?'}"
    return ProgressBar(progress.total or None, progress.done, width=24), count


def _left(progress: Progress) -> str:
    if not progress.total or not progress.done or progress.done >= progress.total:
        return ""
    return duration(progress.seconds / progress.done * (progress.total - progress.done))


def _lines(names: Sequence[str], console: Console, began: float, stop: threading.Event) -> None:
    said = {name: "waiting" for name in names}
    while True:
        last = stop.is_set()
        for name in names:
            state = _state(name, began)
            if state != said[name]:
                said[name] = state
                console.print(_line(name, state, read_record(name)), highlight=False)
        if last:
            return
        stop.wait(0.5)


def _line(name: str, state: str, record: Record | None) -> str:
    if state == "done" and record:
        return f"{name}: done in {duration(record.seconds)}"
    if state == "failed" and record:
        return f"{name}: failed: {record.error} Log: {log_path(name)}"
    return f"{name}: {state}"


def _state(name: str, began: float) -> str:
    record = read_record(name)
    # A record from before this run is history.
    return record.state if record and record.changed >= began else "waiting"


def _scores(subject: str) -> dict[str, Any]:
    try:
        return json.loads((ARTIFACTS / subject / "evaluation" / "metrics.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
