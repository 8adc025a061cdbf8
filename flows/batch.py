"""Many subjects as one Prefect flow."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows.machines import Runner
from flows.subject import Result, make_subjects
from tasks.parameters import STAGES


def _run_name() -> str:
    subjects = flow_run.parameters.get("subjects")
    return f"batch of {', '.join(subjects)}" if subjects else "batch of all"


@flow(name="batch", flow_run_name=_run_name, persist_result=False)
def batch_flow(
    subjects: list[str] | None = None,
    until: str = STAGES[-1],
    jobs: int = 1,
    keep_going: bool = True,
    runner: Runner = "threads",
    scheduler: str | None = None,
) -> list[Result]:
    """Make the stages of ``subjects`` (None: all) fresh, up to ``until``; one that fails stops no
    other."""
    return make_subjects(subjects or [], until, jobs, keep_going, runner, scheduler)
