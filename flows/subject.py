"""One subject's stages as a Prefect flow; Prefect schedules, DVC's files say what is fresh."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, as_completed

from flows import dvc_bridge, stage_process
from flows.dvc_bridge import Outcome, Stage
from flows.stage_process import StageFailed
from tasks.parameters import STAGES

NOT_STARTED = "the run was stopped before it"


@dataclass(frozen=True)
class Result:
    """What became of one stage; ``error`` says why if it failed or was skipped."""

    name: str
    how: Literal["fresh", "restored", "ran", "failed", "skipped"]
    error: str = ""


@flow(name="subject", flow_run_name="{subject}", persist_result=False)
def subject_flow(
    subject: str, until: str = STAGES[-1], jobs: int = 1, keep_going: bool = True
) -> list[Result]:
    """Make the stages of one subject fresh, up to ``until``."""
    return run_stages(needed(dvc_bridge.plan([subject]), until), jobs, keep_going)


def needed(stages: Sequence[Stage], until: str = STAGES[-1]) -> list[Stage]:
    """Those of ``stages`` that are not fresh, up to the stage ``until``."""
    last = STAGES.index(until) if until in STAGES else len(STAGES)
    early = [s for s in stages if s.stage not in STAGES or STAGES.index(s.stage) <= last]
    return [stage for stage in early if stage.reasons]


def run_stages(stages: Sequence[Stage], jobs: int, keep_going: bool = True) -> list[Result]:
    """Make ``stages`` (upstream first) fresh inside a running flow, ``jobs`` at a time.

    A failure stops only what follows it; unless ``keep_going``, nothing starts after it.
    ``dvc.lock`` is written whenever a subject is finished, and at the end, also at an interrupted
    one.
    """
    waiting = {stage.name: stage for stage in stages}
    running: dict[str, PrefectFuture[Outcome]] = {}
    results: dict[str, Result] = {}
    entries: dict[str, dvc_bridge.Entry] = {}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    try:
        while waiting or running:
            failed = any(result.how == "failed" for result in results.values())
            if stage_process.stopped() or (failed and not keep_going):
                results |= {name: Result(name, "skipped", NOT_STARTED) for name in waiting}
                waiting.clear()
            for stage in list(waiting.values()):
                blocking = [up for up in stage.upstream if up in results and results[up].error]
                if blocking:
                    del waiting[stage.name]
                    results[stage.name] = Result(stage.name, "skipped", f"{blocking[0]} failed")
                elif len(running) < jobs and not any(
                    up in waiting or up in running for up in stage.upstream
                ):
                    del waiting[stage.name]
                    running[stage.name] = make_stage.submit(stage.name, threads)
            if running:
                result, entry = _first(running)
                results[result.name] = result
                if entry:
                    entries[result.name] = entry
                subject = result.name.partition("@")[2]
                if not any(n.partition("@")[2] == subject for n in {*waiting, *running}):
                    dvc_bridge.commit(entries)
                    entries = {}
    finally:
        dvc_bridge.commit(entries)
    return [results[stage.name] for stage in stages]


def _worth_retrying(_task: Any, _run: Any, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.worth_retrying


@task(
    task_run_name="{name}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=_worth_retrying,
)
def make_stage(name: str, threads: int) -> Outcome:
    """Make one stage fresh; its upstream is."""
    outcome = dvc_bridge.execute(name, lambda command: stage_process.run(name, command, threads))
    if outcome.how != "ran":
        stage_process.note_restored(name)
    return outcome


def _first(
    running: dict[str, PrefectFuture[Outcome]],
) -> tuple[Result, dvc_bridge.Entry | None]:
    """Wait for the first of ``running`` to end and take it out."""
    future = next(iter(as_completed(list(running.values()))))
    name = next(name for name, other in running.items() if other is future)
    del running[name]
    outcome = future.result(raise_on_failure=False)
    if isinstance(outcome, Outcome):
        return Result(name, outcome.how), outcome.entry
    return Result(name, "failed", str(outcome) or type(outcome).__name__), None
