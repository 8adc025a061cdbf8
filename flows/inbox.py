"""A folder that footage is dropped into: a schedule registers what is new and makes it."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from prefect import flow

from flows import dvc_bridge, project, server
from flows.machines import Runner
from flows.stage_process import KILLED, read_record
from flows.subject import Result, make_subjects
from gha_core.capture import detect_format, open_capture
from gha_core.errors import GhaError
from tasks.parameters import STAGES, Subject, read_subjects


@dataclass(frozen=True)
class Arrival:
    """A capture in the inbox that is no subject yet, and the name that it gets."""

    name: str
    capture: Path


@flow(name="watch", flow_run_name="watch {inbox}", persist_result=False)
def watch_flow(
    inbox: str = "data/inbox",
    quiet_minutes: float = 5.0,
    until: str = STAGES[-1],
    jobs: int = 1,
    runner: Runner = "threads",
    scheduler: str | None = None,
) -> list[Result]:
    """Register the captures in ``inbox`` that are new and complete, and make what is unfinished.

    A subject of which a stage failed is left alone until a person has run it.

    Args:
        quiet_minutes: a capture that was written to more recently is still arriving.
    """
    project.enter()
    folder = Path(inbox)
    refused = []
    for arrival in arrivals(folder, read_subjects(Path()).values(), 60 * quiet_minutes):
        try:
            register(arrival)
        except GhaError as error:
            refused.append(f"{arrival.capture}: {error}")
    ours = [subject.name for subject in project.tidy().values() if _is_in(subject, folder)]
    todo = unfinished(ours)
    results = make_subjects(todo, until, jobs, True, runner, scheduler) if todo else []
    server.fail_deployment(refused)
    return results


def arrivals(inbox: Path, known: Collection[Subject], quiet: float) -> Iterator[Arrival]:
    """What lies in ``inbox``, belongs to no known subject, and is older than ``quiet`` seconds."""
    taken = {subject.name for subject in known}
    captures = {subject.capture.resolve() for subject in known}
    for path in sorted(inbox.iterdir()) if inbox.is_dir() else []:
        if path.name.startswith(".") or path.resolve() in captures:
            continue
        if time.time() - _changed(path) >= quiet:
            name = _free_name(path.stem if path.is_file() else path.name, taken)
            taken.add(name)
            yield Arrival(name, path)


def register(arrival: Arrival) -> None:
    """Make a subject of it. All of its files are opened and checked before, as by ``gha add``.

    Raises:
        CaptureError: the capture cannot be used.
        ParameterError: the name cannot be used or is taken.
    """
    path = arrival.capture.resolve()
    format = detect_format(path)
    open_capture(path, format)
    project.add_subject(arrival.name, arrival.capture, format, {})


def unfinished(subjects: Collection[str]) -> list[str]:
    """Those of ``subjects`` with stages to make, and none that failed by itself."""
    stages = [stage for stage in dvc_bridge.plan(subjects) if stage.reasons]
    failed = set()
    for stage in stages:
        record = read_record(stage.name)
        if record and record.state == "failed" and not record.error.startswith(KILLED):
            failed.add(stage.subject)
    return list(dict.fromkeys(stage.subject for stage in stages if stage.subject not in failed))


def _changed(path: Path) -> float:
    """When the newest file in it was written, seconds since the epoch."""
    return max(each.lstat().st_mtime for each in [path, *path.rglob("*")])


def _free_name(stem: str, taken: Collection[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "subject"
    names = [plain, *(f"{plain}-{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _is_in(subject: Subject, folder: Path) -> bool:
    return subject.capture.resolve().is_relative_to(folder.resolve())
