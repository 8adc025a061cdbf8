"""What a person sees: the live view of a run, and the tables of states, outcomes and scores."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.stage_process import Progress, Record, log_path, read_progress, read_record
from tasks.parameters import STAGES

if TYPE_CHECKING:
    from flows.dvc_bridge import Stage

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


MANY = 3  # subjects: more than that are shown as a grid, or as their number


@dataclass(frozen=True)
class State:
    """One stage of one subject, for people and programs: ``gha status``.

    Attributes:
        state: fresh, stale, failed, missing or running.
        reasons: why it is not fresh.
        error: of its latest run, if that failed.
        log: path of the log of its latest run; "" if it never ran here.
    """

    subject: str
    stage: str
    state: str
    reasons: tuple[str, ...]
    error: str
    log: str


def state(stage: Stage) -> State:
    """What a planned stage is, and how its latest run went."""
    record = read_record(stage.name)
    failed = bool(record and record.state == "failed" and stage.reasons)
    if record and record.state == "running":
        word = "running"
    elif failed:
        word = "failed"
    elif stage.reasons:
        word = "stale" if stage.exists else "missing"
    else:
        word = "fresh"
    log = log_path(stage.name)
    return State(
        stage.subject,
        stage.stage,
        word,
        stage.reasons,
        record.error if record and failed else "",
        str(log) if log.exists() else "",
    )


@contextmanager
def watching(names: Sequence[str], jobs: int, console: Console) -> Iterator[None]:
    """Show how the stages ``names`` (``stage@subject``) get on while the block runs.

    A live view on a terminal, else one line whenever a stage starts or ends, and every minute.
    """
    stop, watch = threading.Event(), Watch(names, jobs)
    show = _live if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(watch, console, stop), daemon=True)
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


def grouped(rows: Iterable[tuple[str, str, Sequence[str]]]) -> list[tuple[str, str, str]]:
    """Rows of (stage, subject, reasons), those that say the same of several subjects as one.

    Returns:
        (stage, subjects in words, reasons in words); a subject's name in the reasons of several is
        written NAME.
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for stage, subject, reasons in rows:
        own = "; ".join(reasons)
        name = re.compile(rf"(?<=[/@.]){re.escape(subject)}(?=[/; .]|$)")
        groups.setdefault((stage, name.sub("NAME", own)), []).append((subject, own))
    return [
        (
            stage,
            _who([subject for subject, _ in group]),
            why.replace("@NAME", "") if len(group) > 1 else group[0][1],
        )
        for (stage, why), group in groups.items()
    ]


def _who(subjects: Sequence[str]) -> str:
    return ", ".join(subjects) if len(subjects) <= MANY else f"{len(subjects)} subjects"


def reason_table(stages: Sequence[Stage]) -> Table:
    """What will run, for whom, and why."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("to run", no_wrap=True)
    table.add_column("for")
    table.add_column("because")
    for stage, who, why in grouped((s.stage, s.subject, s.reasons) for s in stages):
        table.add_row(stage, who, Text(why))
    return table


def outcome_table(names: Sequence[str], outcomes: Mapping[str, str]) -> Table:
    """What became of each stage (``outcomes``) and what its last run took; subject x stage for
    several subjects."""
    records = {name: read_record(name) for name in names}
    seconds = {name: record.seconds if record else 0.0 for name, record in records.items()}
    if len({name.partition("@")[2] for name in names}) > 1:
        return _outcome_grid(names, outcomes, seconds)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "", "time", "peak memory"):
        table.add_column(column, justify="right" if column in ("time", "peak memory") else "left")
    for name, record in records.items():
        table.add_row(
            name.partition("@")[0],
            Text(outcomes[name], _STYLES.get(outcomes[name], "")),
            duration(seconds[name]) if seconds[name] else "",
            f"{record.peak_memory / 2**30:.2f} GiB" if record and record.peak_memory else "",
        )
    table.add_row("all", "", duration(sum(seconds.values())), "", style="dim")
    return table


def _outcome_grid(
    names: Sequence[str], outcomes: Mapping[str, str], seconds: Mapping[str, float]
) -> Table:
    cells = {}
    for name in names:
        stage, _, subject = name.partition("@")
        took = f" {duration(seconds[name])}" if outcomes[name] == "done" else ""
        cells[subject, stage] = f"{outcomes[name]}{took}"
    table = status_table(cells)
    totals = [sum(s for n, s in seconds.items() if n.startswith(f"{g}@")) for g in STAGES]
    table.add_row("all", *(duration(total) if total else "" for total in totals), style="dim")
    return table


def score_table(subjects: Sequence[str]) -> Table | None:
    """The scores of evaluated subjects, their hardest evaluation task; None if there are none.

    One column per subject, or one row if there are many.
    """
    columns = {}
    for subject in subjects:
        scores = _scores(subject)
        task = next((task for task in TASKS if task in scores), None)
        if task:
            columns[f"{subject}: {TASKS[task]}"] = scores[task]
    rows = []
    for region, metric, label, form in SCORES:
        values = [scores.get(region, {}).get(metric, {}).get("mean") for scores in columns.values()]
        if any(value is not None for value in values):
            rows.append([label, *("" if v is None else form.format(v) for v in values)])
    if not rows:
        return None
    lines = [["score", *columns], *rows]
    if len(columns) > MANY:
        lines = [[cell.strip() for cell in line] for line in zip(*lines, strict=True)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if number else "left")
    for line in lines[1:]:
        table.add_row(*line)
    return table


def report_lines(subjects: Sequence[str]) -> list[str]:
    """Where the reports of these subjects are."""
    reports = [report_path(subject) for subject in subjects if report_path(subject).exists()]
    if len(reports) > MANY:
        return [f"reports: {report_path('NAME').absolute()}"]
    return [f"report: {path.resolve()}" for path in reports]


def report_path(subject: str) -> Path:
    return ARTIFACTS / subject / "evaluation" / "report.html"


def status_table(cells: Mapping[tuple[str, str], str]) -> Table:
    """Subject x stage; ``cells``: (subject, stage) -> words, the first of which gives the style."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("subject")
    for stage in STAGES:
        table.add_column(stage)
    for subject in dict.fromkeys(subject for subject, _ in cells):
        row = [cells.get((subject, stage), "") for stage in STAGES]
        table.add_row(subject, *(Text(cell, _style(cell)) for cell in row))
    return table


def _style(cell: str) -> str:
    return _STYLES.get(cell.split(" ")[0], "")


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


class Watch:
    """How the stages of a run get on, read from their records; those that ended are read once."""

    def __init__(self, names: Sequence[str], jobs: int) -> None:
        self.names, self.jobs, self.began = names, jobs, time.time()
        self.records: dict[str, Record] = {}
        self._before = _mean_seconds({n: record for n in names if (record := read_record(n))})

    def look(self) -> None:
        """Read what changed."""
        for name in self.names:
            if self.state(name) in ("waiting", "running"):
                record = read_record(name)
                # A record from before this run is history.
                if record and record.changed >= self.began:
                    self.records[name] = record

    def state(self, name: str) -> str:
        return self.records[name].state if name in self.records else "waiting"

    def with_state(self, *states: str) -> list[str]:
        return [name for name in self.names if self.state(name) in states]

    def time_left(self) -> float | None:
        """Seconds, if the other stages take as long as their like did; None if some had no like."""
        usual = self._before | _mean_seconds(self.records)
        total = 0.0
        for name in self.with_state("waiting", "running"):
            left = usual.get(name.partition("@")[0])
            if name in self.records:
                elapsed = time.time() - self.records[name].changed
                said = _left(read_progress(name))
                left = said if said is not None else left and max(0.0, left - elapsed)
            if left is None:
                return None
            total += left
        return total / self.jobs


def _mean_seconds(records: Mapping[str, Record]) -> dict[str, float]:
    """Stage -> mean duration of its runs."""
    taken: dict[str, list[float]] = {}
    for name, record in records.items():
        if record.seconds and record.state in ("done", "restored"):
            taken.setdefault(name.partition("@")[0], []).append(record.seconds)
    return {stage: sum(seconds) / len(seconds) for stage, seconds in taken.items()}


def _live(watch: Watch, console: Console, stop: threading.Event) -> None:
    def render() -> RenderableType:
        watch.look()
        return view(watch, console.height)

    with Live(get_renderable=render, console=console, refresh_per_second=2, transient=True):
        stop.wait()


def view(watch: Watch, height: int) -> RenderableType:
    """The state of a run in ``height`` lines: a row per stage, or per subject of several."""
    running = watch.with_state("running")
    subjects = list(dict.fromkeys(name.partition("@")[2] for name in watch.names))
    parts: list[RenderableType] = []
    if len(subjects) > 1:
        parts.append(_grid(watch, subjects, max(3, height - len(running) - 5)))
        shown: Sequence[str] = running
    else:
        shown = watch.names
    bars = Table(box=None, show_header=False, pad_edge=False)
    for name in shown:
        bars.add_row(
            name, Text(watch.state(name), _style(watch.state(name))), *_progress(watch, name)
        )
    return Group(*parts, bars, Text(_footer(watch), "dim"))


def _grid(watch: Watch, subjects: Sequence[str], most: int) -> Table:
    cells = {}
    for name in watch.names:
        stage, _, subject = name.partition("@")
        cells[subject, stage] = _cell(watch, name)
    if len(subjects) > most:
        # A big batch does not fit: who is being worked on, then who failed, then who is next.
        order = {"running": 0, "failed": 1, "waiting": 2}
        urgency = dict.fromkeys(subjects, 3)
        for name in watch.names:
            subject = name.partition("@")[2]
            urgency[subject] = min(urgency[subject], order.get(watch.state(name), 3))
        shown = sorted(subjects, key=lambda subject: urgency[subject])[: most - 1]
        cells = {(s, stage): cells.get((s, stage), "") for s in shown for stage in STAGES}
        cells[f"… {len(subjects) - len(shown)} more", ""] = ""
    return status_table(cells)


def _cell(watch: Watch, name: str) -> str:
    word = watch.state(name)
    if word == "running":
        progress = read_progress(name)
        if progress and progress.total:
            return f"running {100 * progress.done // progress.total} %"
    if word == "done":
        return f"done {duration(watch.records[name].seconds)}"
    return word


def _progress(watch: Watch, name: str) -> list[RenderableType]:
    """Bar, count, time, time left."""
    record = watch.records.get(name)
    if not record:
        return ["", "", "", ""]
    if record.state != "running":
        return ["", "", duration(record.seconds) if record.seconds else "", ""]
    elapsed, progress = duration(time.time() - record.changed), read_progress(name)
    if not progress:
        return ["", "", elapsed, ""]
    left = _left(progress)
    bar = ProgressBar(progress.total or None, progress.done, width=24)
    return [bar, _count(progress), elapsed, f"{duration(left)} left" if left else ""]


def _footer(watch: Watch) -> str:
    ended = len(watch.names) - len(watch.with_state("waiting", "running"))
    failed, left = len(watch.with_state("failed")), watch.time_left()
    return ", ".join(
        [
            f"{ended} of {len(watch.names)} stages",
            *([f"{failed} failed"] if failed else []),
            duration(time.time() - watch.began),
            *([f"about {duration(left)} left"] if left else []),
        ]
    )


def _count(progress: Progress) -> str:
    speed = progress.done / progress.seconds if progress.seconds > 1 else 0.0
    rate = f", {speed:.3g}/s" if speed else ""
    return f"{progress.description} {progress.done}/{progress.total or '?'}{rate}"


def _left(progress: Progress | None) -> float | None:
    """Seconds that a stage still needs, by its own progress."""
    if not progress or not progress.total or not progress.done:
        return None
    return progress.seconds / progress.done * (progress.total - progress.done)


def _lines(watch: Watch, console: Console, stop: threading.Event) -> None:
    said: dict[str, str] = {}
    minute = time.time() + 60
    while True:
        last = stop.is_set()
        watch.look()
        for name in watch.records:
            if said.get(name) != watch.state(name):
                said[name] = watch.state(name)
                console.print(_line(name, watch.records[name]), highlight=False, soft_wrap=True)
        if time.time() > minute and (running := watch.with_state("running")):
            minute = time.time() + 60
            progress = [f"{n}: {_count(p)}" for n in running if (p := read_progress(n))]
            console.print("; ".join([_footer(watch), *progress]), highlight=False, soft_wrap=True)
        if last:
            return
        stop.wait(0.5)


def _line(name: str, record: Record) -> str:
    if record.state == "done":
        return f"{name}: done in {duration(record.seconds)}"
    if record.state == "failed":
        return f"{name}: failed: {record.error} Log: {log_path(name)}"
    return f"{name}: {record.state}"


def _scores(subject: str) -> dict[str, Any]:
    try:
        return json.loads((ARTIFACTS / subject / "evaluation" / "metrics.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
