"""Many subjects as one Prefect flow."""

from __future__ import annotations

from prefect import flow

from flows import dvc_bridge
from flows.subject import Result, needed, run_stages
from tasks.parameters import STAGES


@flow(name="batch", flow_run_name="batch of {subjects}", persist_result=False)
def batch_flow(
    subjects: list[str], until: str = STAGES[-1], jobs: int = 1, keep_going: bool = True
) -> list[Result]:
    """Make the stages of ``subjects`` fresh, up to ``until``; one that fails stops no other."""
    return run_stages(needed(dvc_bridge.plan(subjects), until), jobs, keep_going)
