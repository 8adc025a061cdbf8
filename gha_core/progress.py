"""Progress of long work: one call, ``track``, that shows a bar on a terminal, or reports to whoever
started the process (``GHA_PROGRESS`` names a file that gets JSON lines), or stays quiet."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Item = TypeVar("Item")
REPORT_VARIABLE = "GHA_PROGRESS"


def track(
    items: Iterable[Item], description: str, total: int | None = None, start: int = 0
) -> Iterator[Item]:
    """Iterate over ``items`` while showing how far it got and the time left.

    Args:
        total: number of items in all, if ``items`` has no length (``start`` included).
        start: items that an earlier, interrupted run had already done.
    """
    if total is None and isinstance(items, Sized):
        total = len(items) + start
    report = os.environ.get(REPORT_VARIABLE)
    if report:
        yield from _to_file(items, description, total, start, Path(report))
    elif sys.stderr.isatty():
        yield from _to_terminal(items, description, total, start)
    else:
        yield from items


def _to_terminal(
    items: Iterable[Item], description: str, total: int | None, start: int
) -> Iterator[Item]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=start)
        for item in items:
            yield item
            bar.advance(task)


class _RateColumn(ProgressColumn):
    """How many items are done per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def _to_file(
    items: Iterable[Item], description: str, total: int | None, start: int, path: Path
) -> Iterator[Item]:
    began, last, done = time.monotonic(), 0.0, start
    with path.open("a", buffering=1) as file:

        def write() -> None:
            line = {
                "description": description,
                "done": done,
                "total": total,
                "seconds": round(time.monotonic() - began, 3),
            }
            file.write(json.dumps(line) + "\n")

        write()
        for item in items:
            yield item
            done += 1
            if time.monotonic() - last > 0.25:
                last = time.monotonic()
                write()
        write()
