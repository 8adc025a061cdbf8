"""Which stages start, in which order, and what stops them; without stage processes or a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import dvc_bridge, project, stage_process, subject, sweeper
from flows.batch import batch_flow
from flows.dvc_bridge import Entry, Outcome, Stage
from flows.machines import Here
from flows.subject import NOT_STARTED, Result, run_stages

STAGES = [
    Stage(f"{stage}@{name}", (f"{before}@{name}",) if before else (), ("never run",), False)
    for name in ("ann", "bob", "eve")
    for before, stage in (("", "ingest"), ("ingest", "matting"), ("matting", "tracking"))
]


class Future:
    """Of a stage that has ended."""

    def __init__(self, outcome: Outcome | Exception) -> None:
        self.outcome = outcome

    def result(self, raise_on_failure: bool) -> Outcome | Exception:
        return self.outcome


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The stages that were started, in order; bob's matting fails."""
    names: list[str] = []

    class Task:
        @staticmethod
        def submit(name: str, stage: Stage, hands: Here, made: dict[str, Entry]) -> Future:
            names.append(name)
            failure = stage_process.StageFailed("The capture is too dark.")
            return Future(failure if name == "matting@bob" else Outcome("ran", {"cmd": name}))

    monkeypatch.setattr(subject, "make_stage", Task)
    monkeypatch.setattr(subject, "as_completed", list)
    yield names
    stage_process._stopped.clear()


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    commits: list[list[str]] = []
    monkeypatch.setattr(dvc_bridge, "commit", lambda entries: commits.append(list(entries)))
    return commits


def test_what_a_killed_driver_leaves_behind_is_killed() -> None:
    """Prefect's server, say, which lives on when the driver is killed."""
    program = (
        "import os, signal, subprocess\nfrom flows import sweeper\nsweeper.start()\n"
        "print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    other = subprocess.Popen(["sleep", "60"], env={sweeper.DRIVER_VARIABLE: str(os.getpid())})
    driver = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert driver.returncode == -signal.SIGKILL
    left, deadline = Path(f"/proc/{int(driver.stdout)}/cmdline"), time.monotonic() + 20
    while left.exists() and left.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert other.poll() is None, "its driver lives"
    other.kill()
    other.wait()


def how(results: list[Result]) -> dict[str, str]:
    return {result.name: result.how for result in results}


def test_a_failure_stops_only_what_follows_it(started: list[str], commits: list) -> None:
    results = run_stages(STAGES, Here(2))
    assert how(results) == {
        **dict.fromkeys((stage.name for stage in STAGES), "ran"),
        "matting@bob": "failed",
        "tracking@bob": "skipped",
    }
    assert results[5].error == "matting@bob failed"
    assert len(started) == 8
    assert all(started.index(up) < started.index(s.name) for s in STAGES[:3] for up in s.upstream)
    assert {"ingest@ann", "matting@ann", "tracking@ann"} <= {n for each in commits for n in each}


def test_after_a_failure_nothing_starts_unless_it_keeps_going(
    started: list[str], commits: list
) -> None:
    results = run_stages(STAGES, Here(1), keep_going=False)
    assert started[-1] == "matting@bob"
    stopped = [result.name for result in results if result.error == NOT_STARTED]
    assert stopped == [s.name for s in STAGES if s.name not in started]
    assert stopped


def test_flows_hand_on_whether_to_keep_going(
    started: list[str], commits: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "enter", lambda: None)
    monkeypatch.setattr(project, "tidy", dict)
    monkeypatch.setattr(dvc_bridge, "plan", lambda subjects: STAGES)
    last = "tracking"
    assert "skipped" not in how(batch_flow.fn(["ann", "eve"], last, keep_going=True)[6:]).values()
    started.clear()
    assert how(batch_flow.fn(["ann", "eve"], last, keep_going=False))["tracking@eve"] == "skipped"
    assert started[-1] == "matting@bob"


def test_after_a_stop_what_is_finished_is_committed(
    started: list[str], commits: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def stopping(futures: list[Future]) -> list[Future]:
        stage_process.stop()
        return futures

    monkeypatch.setattr(subject, "as_completed", stopping)
    results = run_stages(STAGES, Here(2))
    assert how(results)["ingest@ann"] == "ran"
    assert len(started) == 2
    assert [name for each in commits for name in each] == started
    with pytest.raises(stage_process.StageFailed, match="interrupted"):
        stage_process.run("ingest@ann", "true", 1)
