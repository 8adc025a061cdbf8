"""A stage is a child process with a log file, a progress file and a record of how it went.

Both files and the record lie under ``data/logs/SUBJECT/``, so whoever wants to show the state of a
batch (the terminal that started it, another one, a worker) just reads them.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import BinaryIO, Literal

from flows import tether
from gha_core.errors import GhaError
from gha_core.progress import REPORT_VARIABLE
from tasks.__main__ import INTERRUPTED, THREADS_VARIABLE, TRY_AGAIN

LOGS = Path("data", "logs")
KILLED = "It was killed"
INTERRUPTION = "It was interrupted."
_TETHER = (sys.executable, "-I", "-S", tether.__file__)

# Of this process, because a signal (Ctrl-C) is too: the process groups of its running stages by
# name, and whether no more may start.
_running: dict[str, int] = {}
_changing = threading.Lock()
_stopped = threading.Event()


class StageFailed(GhaError):
    """The stage's process failed; the text is its own sentence.

    Attributes:
        worth_retrying: it was killed or ran out of memory, so another try may succeed.
    """

    def __init__(self, sentence: str, worth_retrying: bool = False) -> None:
        super().__init__(sentence)
        self.worth_retrying = worth_retrying

    def __reduce__(self) -> tuple[type[StageFailed], tuple[str, bool]]:
        return StageFailed, (str(self), self.worth_retrying)


@dataclass(frozen=True)
class Record:
    """The latest run of one stage of one subject.

    Attributes:
        process: id of the stage's process.
        changed: when the state became what it is, seconds since the epoch.
        seconds: wall time of the run; of the last real one if the outputs were restored since.
        peak_memory: largest resident size of that run, bytes; on Linux at least that of the driver,
            whose memory a child counts as its own until it starts its program.
        error: the sentence or the last line that it left, if it failed.
    """

    state: Literal["running", "done", "restored", "failed"]
    process: int
    changed: float
    seconds: float = 0.0
    peak_memory: int = 0
    error: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a running stage says it is; ``total`` None if it does not know."""

    description: str
    done: int
    total: int | None
    seconds: float


def log_path(name: str) -> Path:
    """The log of ``stage@subject``: everything that its latest run printed."""
    return _path(name, ".log")


def read_record(name: str) -> Record | None:
    """How the latest run of ``stage@subject`` went; None if there was none.

    A run whose process is gone without a word counts as failed.
    """
    try:
        record = Record(**json.loads(_path(name, ".json").read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if record.state == "running" and not _alive(record.process):
        return replace(record, state="failed", error=f"{KILLED}.")
    return record


def note(name: str, record: Record, log: str = "") -> None:
    """Take over what another machine says about ``stage@subject``."""
    _write(name, record)
    log_path(name).write_text(log)


def note_restored(name: str) -> None:
    """Say that the outputs of ``stage@subject`` came from the cache; its last run stays known."""
    record = read_record(name) or Record("restored", 0, 0.0)
    _write(name, replace(record, state="restored", changed=time.time(), error=""))


def read_progress(name: str) -> Progress | None:
    """The latest progress line of ``stage@subject``; None if it has not said anything."""
    try:
        lines = _path(name, ".progress").read_text().splitlines()
        return Progress(**json.loads(lines[-1]))
    except (FileNotFoundError, IndexError, ValueError, TypeError):
        return None


def follow_log(name: str, follow: bool = True) -> Iterator[str]:
    """The log of ``stage@subject``, and if ``follow``, how it grows until the stage ends."""
    with log_path(name).open(errors="replace") as file:
        while True:
            record = read_record(name)
            yield file.read()
            if not (follow and record and record.state == "running"):
                return
            time.sleep(0.3)


def run(name: str, command: str, threads: int, variables: Mapping[str, str] | None = None) -> None:
    """Run the command of ``stage@subject`` in the current folder to its end.

    Args:
        variables: of its environment, beside ours.

    Raises:
        StageFailed: it did not end well.
    """
    log, progress = log_path(name), _path(name, ".progress")
    log.parent.mkdir(parents=True, exist_ok=True)
    progress.unlink(missing_ok=True)
    started = time.time()
    environment = {**_environment(progress, threads), **(variables or {})}
    with log.open("wb") as output, _started(name, command, environment, output) as process:
        _write(name, Record("running", process.pid, started))
        _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    record = Record(
        state="failed" if code else "done",
        process=process.pid,
        changed=time.time(),
        seconds=round(time.time() - started, 3),
        peak_memory=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        error=_error(code, log) if code else "",
    )
    _write(name, record)
    if code:
        raise StageFailed(record.error, code in (TRY_AGAIN, -signal.SIGKILL))


def stop(at_once: bool = False) -> None:
    """End every stage process that this one started, and let no other start.

    Args:
        at_once: kill them; else they may put their things in order.
    """
    _stopped.set()
    for name in list(_running):
        end(name, at_once)


def end(name: str, at_once: bool = False) -> None:
    """End the process of ``stage@subject``, if this one has started it; as ``stop``."""
    with _changing, suppress(KeyError, ProcessLookupError):
        os.killpg(_running[name], signal.SIGKILL if at_once else signal.SIGTERM)


def stopped() -> bool:
    """Whether ``stop`` was called."""
    return _stopped.is_set()


@contextmanager
def _started(
    name: str, command: str, environment: Mapping[str, str], output: BinaryIO
) -> Iterator[Popen[bytes]]:
    with _changing:
        if stopped():
            raise StageFailed(INTERRUPTION)
        process = Popen(
            [*_TETHER, str(os.getpid()), *_arguments(command)],
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C in the terminal is the driver's affair
        )
        _running[name] = process.pid
    try:
        yield process
    finally:
        with _changing:
            del _running[name]


def _arguments(command: str) -> list[str]:
    program, *arguments = shlex.split(command)
    # dvc.yaml says python; the one that runs us has what the stages need, on the PATH or not.
    return [sys.executable if program == "python" else program, *arguments]


def _environment(progress: Path, threads: int) -> dict[str, str]:
    return {
        **os.environ,
        REPORT_VARIABLE: str(progress.resolve()),
        THREADS_VARIABLE: str(threads),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
    }


def _error(code: int, log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        return f"{KILLED}, probably because memory ran out; try fewer --jobs."
    if code in (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
        return INTERRUPTION
    if code < 0:
        return f"It died of {signal.Signals(-code).name}."
    return lines[-1].removeprefix("error: ") if lines else f"It ended with status {code}."


def _write(name: str, record: Record) -> None:
    path = _path(name, ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(asdict(record)) + "\n")
    temporary.replace(path)


def _path(name: str, suffix: str) -> Path:
    stage, _, subject = name.partition("@")
    return LOGS / subject / f"{stage}{suffix}"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
