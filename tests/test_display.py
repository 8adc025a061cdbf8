"""What a person sees while a batch runs, from records and progress files alone."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows import display
from flows.stage_process import Record, _write, log_path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(name: str, **values: object) -> None:
    log_path(name).parent.mkdir(parents=True, exist_ok=True)
    known = {"state": "running", "process": 1, "changed": time.time() + 1}
    _write(name, Record(**{**known, **values}))


def progress(name: str, done: int, total: int, seconds: float) -> None:
    line = {"description": "training", "done": done, "total": total, "seconds": seconds}
    log_path(name).with_suffix(".progress").write_text(json.dumps(line) + "\n")


def text(renderable: object, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=120, height=height)
    console.print(renderable)
    return console.file.getvalue()


def batch(people: int) -> list[str]:
    return [f"{stage}@p{n:03d}" for n in range(people) for stage in ("ingest", "avatar")]


def test_a_batch_is_a_grid_with_states_progress_and_the_time_left() -> None:
    watch = display.Watch(batch(3), jobs=2)
    record("ingest@p000", state="done", seconds=10.0)
    record("avatar@p000", changed=watch.began + 0.001)
    progress("avatar@p000", 25, 100, seconds=30.0)
    record("ingest@p001", state="failed", error="The capture is too dark.")
    watch.look()
    assert watch.time_left() is None, "no avatar has ended yet"
    shown = text(display.view(watch, 40))
    assert "done 10.0 s" in shown
    assert "running 25 %" in shown
    assert "training 25/100" in shown
    assert "1 min 30 s left" in shown
    assert "2 of 6 stages, 1 failed" in shown
    # This one's 90 s, two avatars of 100 s and one ingest of 10 s, two at a time.
    watch.records["avatar@p009"] = Record("done", 1, watch.began, seconds=100.0)
    assert watch.time_left() == pytest.approx((90 + 100 + 100 + 10) / 2)


def test_a_big_batch_shows_who_is_being_worked_on() -> None:
    watch = display.Watch(batch(100), jobs=2)
    record("avatar@p077")
    record("ingest@p055", state="failed", error="The capture is too dark.")
    watch.look()
    shown = text(display.view(watch, 20), 20)
    assert len(shown.splitlines()) <= 20
    assert shown.index("p077") < shown.index("p055") < shown.index("p000")
    assert "more" in shown


def test_lines_when_not_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=60)
    with display.watching(["ingest@p000", "avatar@p000"], 1, console):
        record("ingest@p000", state="done", seconds=10.0)
        record("avatar@p000", state="failed", error="The capture is too dark.")
    assert console.file.getvalue().splitlines() == [
        "ingest@p000: done in 10.0 s",
        "avatar@p000: failed: The capture is too dark. Log: data/logs/p000/avatar.log",
    ]


def test_subjects_with_the_same_reason_share_a_row() -> None:
    rows = [("avatar", name, [f"follows geometry@{name}", "x: 1 → 2"]) for name in ("a", "b")]
    rows += [("avatar", "c", ["output data/subjects/c/avatar is missing"])]
    assert display.grouped(rows) == [
        ("avatar", "a, b", "follows geometry; x: 1 → 2"),
        ("avatar", "c", "output data/subjects/c/avatar is missing"),
    ]
    many = [("avatar", f"p{n}", ["x: 1 → 2"]) for n in range(9)]
    assert display.grouped(many) == [("avatar", "9 subjects", "x: 1 → 2")]


def test_scores_of_many_subjects_are_rows(tmp_path: Path) -> None:
    for n in range(5):
        folder = tmp_path / "data/subjects" / f"p{n}" / "evaluation"
        folder.mkdir(parents=True)
        scores = {"novel_view": {"head": {"psnr": {"mean": 30.0 + n}}}}
        (folder / "metrics.json").write_text(json.dumps(scores))
    table = display.score_table([f"p{n}" for n in range(5)])
    lines = [" ".join(line.split()) for line in text(table).splitlines()]
    assert lines[0] == "score PSNR, head"
    assert lines[3] == "p2: new view 32.00 dB"
