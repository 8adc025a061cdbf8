"""Stages on the workers of a Dask cluster: orders travel through Dask, artifacts through DVC.

Prefect stays with the driver: its task waits while a worker does the work. (prefect-dask moves the
task itself to the worker, where it needs Prefect's API, and the temporary server of a driver cannot
be reached from another machine.) A worker needs a clone at the driver's commit and the DVC remote,
nothing else; it never writes ``dvc.lock``. When one is lost, Dask gives its stages to others.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from uuid import uuid4

from flows import dvc_bridge, making, project, stage_process
from flows.dvc_bridge import Entry, Order, Outcome, Stage
from flows.resources import Capacity, needs_of, this_machine
from flows.stage_process import Record, StageFailed
from gha_core.errors import GhaError, ParameterError

if TYPE_CHECKING:
    from distributed import Client, Future

Runner = Literal["threads", "dask"]

GPU = "GPU"
"""The resource that a Dask worker with GPUs declares: dask worker --resources GPU=2."""

PATIENCE = 20.0
"""Seconds to wait for a scheduler's answer."""

EVERY = 0.1
"""Seconds between two looks at a stage on a worker."""

NO_DASK = "--runner dask needs Dask, which is not installed here. Run: pip install -e '.[dask]'"


@dataclass(frozen=True)
class Report:
    """What a worker says about one stage; either ``outcome`` or ``error`` is set."""

    outcome: Outcome | None
    error: GhaError | None
    record: Record | None
    log: str


class Here:
    """This process makes the stages, each in a child process that has its share of the cores."""

    def __init__(self, jobs: int) -> None:
        self.capacity = this_machine(jobs)

    def make(self, stage: Stage, made: Mapping[str, Entry]) -> Outcome:
        """Make ``stage`` fresh; ``made`` has the new entries of what it follows."""
        return making.make(stage.name, _threads(stage.name, self.capacity.slots))

    def collect(self, made: Mapping[str, Entry]) -> None:
        """Bring what was made here: it is here."""


class Workers:
    """The workers of a Dask cluster make the stages.

    Args:
        travels: the workers have clones of their own, so orders and artifacts travel.
    """

    def __init__(self, client: Client, travels: bool) -> None:
        self._client = client
        self._travels = travels
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        self._gpus = sum(int(worker["resources"].get(GPU, 0)) for worker in workers)
        self._slots = sum(worker["nthreads"] for worker in workers)
        machine = this_machine(self._slots)
        # The memory of other machines is Dask's business; their GPUs were declared to it.
        self.capacity = Capacity(self._slots, gpus=self._gpus) if travels else machine

    def make(self, stage: Stage, made: Mapping[str, Entry]) -> Outcome:
        """Make ``stage`` fresh; ``made`` has the new entries of what it follows.

        Raises:
            StageFailed: it failed, or every worker that tried it was lost, or the scheduler was.
            GhaError: the worker's clone is not at the driver's state, or has no remote.
        """
        name = stage.name
        resources = {GPU: 1} if needs_of(name).gpu and self._gpus else None
        if self._travels:
            order = dvc_bridge.order(name, stage.upstream, made)
            work: tuple[Any, ...] = (_fulfil, order)
            stage_process.note(name, Record("running", os.getpid(), time.time()))
        else:
            work = (_make, name, _threads(name, self._slots))
        key = f"{name}-{uuid4().hex}"
        try:
            report = self._ended(name, self._client.submit(*work, key=key, resources=resources))
        except Exception as error:  # Dask's own: many types, of which some are only in its tasks
            lost = f"The Dask cluster gave {name} up: {str(error).strip() or type(error).__name__}"
            stage_process.note(name, Record("failed", 0, time.time(), error=lost), f"{lost}\n")
            raise StageFailed(lost) from None
        if self._travels and report.record:
            stage_process.note(name, report.record, report.log)
        if report.outcome is None:
            raise report.error or StageFailed("It failed without a word.")
        return report.outcome

    def collect(self, made: Mapping[str, Entry]) -> None:
        """Bring what was made into the driver's clone."""
        if self._travels:
            dvc_bridge.collect(made.values())

    def _ended(self, name: str, future: Future) -> Report:
        """What the worker reports in the end, which is soon after a stop."""
        while not future.done():
            if stage_process.stopped():
                with suppress(OSError, TimeoutError):
                    self._client.run(stage_process.end, name)
            time.sleep(EVERY)
        return cast(Report, future.result())


def check_runner(runner: str, scheduler: str | None) -> Runner:
    """``runner`` if it can be used; raises what ``hands`` would, before anything is started."""
    if runner not in get_args(Runner):
        raise ParameterError(f"There is no runner {runner!r}; known are: threads, dask.")
    checked = cast(Runner, runner)
    if runner == "threads" or scheduler:
        with hands(checked, scheduler, 1):
            pass
    elif find_spec("distributed") is None:
        raise ParameterError(NO_DASK)
    return checked


@contextmanager
def hands(runner: Runner, scheduler: str | None, jobs: int) -> Iterator[Here | Workers]:
    """Who makes the stages: threads here, a Dask cluster here, or that of ``scheduler``.

    Args:
        jobs: stages at a time, here or on a local cluster. A remote one has its workers' threads.

    Raises:
        ParameterError: Dask is not installed, there is no remote, nobody answers at ``scheduler``,
            it has no workers, or one of them has other code.
    """
    if runner == "threads":
        if scheduler:
            raise ParameterError("--scheduler goes with --runner dask.")
        yield Here(jobs)
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ParameterError(NO_DASK) from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters we say ourselves
    if scheduler is None:
        # One process per job, so that one that is lost takes no other stage with it.
        with (
            LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address="127.0.0.1:0"
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield Workers(client, travels=False)
        return
    dvc_bridge.remote()
    try:
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ParameterError(f"No Dask scheduler answers at {scheduler}: {error}") from None
    with client:
        _check(client, scheduler)
        yield Workers(client, travels=True)


def _check(client: Client, scheduler: str) -> None:
    """Raise unless there are workers and all have the driver's code."""
    states = client.run(_state, on_error="return")
    if not states:
        raise ParameterError(
            f"The Dask scheduler at {scheduler} has no workers. In a clone on each machine run: "
            f"dask worker {scheduler} --nthreads 1"
        )
    ours = dvc_bridge.code()
    for address, state in states.items():
        if isinstance(state, GhaError):
            raise ParameterError(f"The worker at {address}: {state}")
        if isinstance(state, Exception):
            raise ParameterError(
                f"The worker at {address} cannot make stages ({type(state).__name__}: {state}). It "
                "needs gha of the driver's commit in its environment; see docs/machines.md."
            )
        where, code = state
        other = [path for path in {**ours, **code} if ours.get(path) != code.get(path)]
        if other:
            raise ParameterError(
                f"The worker in {where} has other code than the driver in {_where()}: "
                f"{', '.join(other[:3])}{' …' if len(other) > 3 else ''}. Bring it to the same "
                "commit (git pull) and start it again."
            )


def _state() -> tuple[str, dict[str, str]]:
    """On a worker: its clone, and the hashes of all code in it."""
    project.enter()
    dvc_bridge.remote()
    return _where(), dvc_bridge.code()


def _fulfil(order: Order) -> Report:
    """On a worker in its own clone."""
    from distributed import get_worker

    project.enter()
    project.tidy()
    threads = _threads(order.name, get_worker().state.nthreads)
    return _report(order.name, lambda: making.fulfil(order, threads))


def _make(name: str, threads: int) -> Report:
    """On a worker in the driver's clone."""
    return _report(name, lambda: making.make(name, threads))


def _report(name: str, make: Any) -> Report:
    outcome, failure = None, None
    try:
        outcome = make()
    except GhaError as error:
        failure = error
    path = stage_process.log_path(name)
    log = path.read_text(errors="replace") if path.exists() else ""
    return Report(outcome, failure, stage_process.read_record(name), log)


def _threads(name: str, slots: int) -> int:
    return max(1, min(needs_of(name).cores, (os.cpu_count() or 1) // slots))


def _where() -> str:
    return f"{socket.gethostname()}:{Path.cwd()}"
