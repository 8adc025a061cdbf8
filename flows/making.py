"""Make one stage in this clone: the body of every task, whichever machine it runs on.

Without Prefect and without Dask, so that a worker starts quickly.
"""

from __future__ import annotations

from flows import dvc_bridge, stage_process
from flows.dvc_bridge import Order, Outcome
from flows.resources import claim_gpu, needs_of


def make(name: str, threads: int) -> Outcome:
    """Make ``stage@subject`` fresh with ``threads`` cores; its upstream is fresh in this clone."""
    return _noted(name, dvc_bridge.execute(name, lambda command: _run(name, command, threads)))


def fulfil(order: Order, threads: int) -> Outcome:
    """Make the stage of ``order`` in another clone than the driver's; see ``dvc_bridge.fulfil``."""
    name = order.name
    return _noted(name, dvc_bridge.fulfil(order, lambda command: _run(name, command, threads)))


def _run(name: str, command: str, threads: int) -> None:
    with claim_gpu(needs_of(name)) as variables:
        stage_process.run(name, command, threads, variables)


def _noted(name: str, outcome: Outcome) -> Outcome:
    if outcome.how != "ran":
        stage_process.note_restored(name)
    return outcome
