"""Kill drivers, stage processes and workers at random moments; prove that nothing comes of it.

    python -m benchmarks.faults [--kills 200] [--seed 0] [--quick] [--json]

A project of three stages and two subjects is changed, and made fresh by a driver that is killed, or
loses stage processes or workers, again and again until it gets through. There are three kinds:

- plain: a driver without Prefect, whose kills cost little: most of them are made here;
- gha: ``gha run --all --jobs 2``, with Prefect and the server that it starts;
- dask: ``gha run --all --runner dask`` with two workers in clones of their own and a remote; a
  worker that is killed is replaced, as a nanny would.

After every driver, of whatever kind: dvc.lock parses; no artifact is half-written and no stage has
read such a one; no process outlives its driver or worker by two seconds, Prefect's server neither;
every trusted object of every cache, and of the remote, has the content of its name. A driver that
lost nothing ends well. In the end no stage ran more often than the kills explain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dvc.utils.serialize import load_yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import small_project  # noqa: E402

from tasks.parameters import SECTIONS  # noqa: E402

JOBS = 2  # stages at a time, and workers
GRACE = 2.0  # seconds that a process may outlive its driver or worker
SUBJECTS = ("ann", "bob")
STAGES = ("ingest", "matting", "landmarks")
LOADED = "Starting"  # a driver prints it when it has loaded its libraries

GHA = "from flows.cli import app; app()"
PLAIN = f"import small_project; print({LOADED!r}, flush=True); small_project.drive(jobs={JOBS})"

# Writes in two halves with time between, so that kills find half-written files.
STAGE = """
import os, shutil, sys, time
from pathlib import Path
stage, before, subject = sys.argv[1:]
with open("runs", "a") as runs:
    runs.write(f"{stage}@{subject}\\n")
source = Path(before) if before.startswith("data/captures") else Path(before, "text")
text = source.read_text()
if not text.endswith("|"):
    Path("half-written").touch()
out = Path("data/subjects", subject, stage)
new = out.with_name(f".{stage}.writing")
new.mkdir(parents=True, exist_ok=True)
text = f"{stage} of {text}"
with (new / "text").open("w") as file:
    file.write(text[: len(text) // 2])
    file.flush()
    time.sleep(0.2)
    file.write(text[len(text) // 2 :])
shutil.rmtree(out, ignore_errors=True)
new.rename(out)
"""


@dataclass(frozen=True)
class Kind:
    """A way to make the project fresh, and whom to kill there.

    Attributes:
        share: of all kills.
        victims: one of them is chosen each time, with equal chances.
        longest: seconds after which a driver is killed at the latest, from when it has loaded its
            libraries: before that a kill proves little.
    """

    name: str
    share: float
    victims: tuple[str, ...]
    longest: float


KINDS = (
    Kind("plain", 0.6, ("driver", "stage", "stage"), 2.0),
    Kind("gha", 0.2, ("driver", "stage"), 10.0),
    Kind("dask", 0.2, ("driver", "stage", "worker", "worker"), 10.0),
)


@dataclass
class Report:
    """What happened to one kind. The counts of what went wrong must be 0.

    Attributes:
        kills: victim -> how often.
        drivers: how often a driver was started.
        executions: how often a stage really ran; at most ``allowed``.
        allowed: stages that had to run + kills x workers.
        orphans: processes that outlived their driver or worker by more than two seconds.
        failures: drivers that ended badly or without a sentence, though nobody killed anything.
    """

    kills: dict[str, int] = field(default_factory=dict)
    drivers: int = 0
    executions: int = 0
    allowed: int = 0
    unreadable_locks: int = 0
    half_written: int = 0
    orphans: int = 0
    damaged_objects: int = 0
    failures: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        wrong = (self.unreadable_locks, self.half_written, self.orphans, self.damaged_objects)
        return not any(wrong) and not self.failures and self.executions <= self.allowed


@dataclass(frozen=True)
class Clone:
    """A clone of the project."""

    root: Path

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start python in it; what it prints is in the file ``printed``."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        with (self.root / "printed").open("wb") as printed:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.root,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )

    def printed(self) -> str:
        return (self.root / "printed").read_text(errors="replace")

    def processes(self, word: str = "") -> list[int]:
        """Living processes whose current folder is this one and whose command has ``word``."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                here = state != "Z" and (path / "cwd").resolve() == self.root.resolve()
                if here and word.encode() in (path / "cmdline").read_bytes():
                    found.append(int(path.name))
        return found

    def stages(self) -> list[int]:
        return self.processes("stage.py")

    def runs(self) -> int:
        path = self.root / "runs"
        return len(path.read_text().split()) if path.exists() else 0


class Fleet:
    """Two Dask workers in clones of their own; one that is killed is replaced."""

    def __init__(self, clones: list[Clone], cluster: Any) -> None:
        self.clones, self.cluster = clones, cluster
        self.workers = {clone: self._start(clone) for clone in clones}
        cluster.wait_for_workers(len(clones), timeout=120)

    def replace(self, clone: Clone) -> None:
        """Start a worker in the place of one that was killed."""
        self.workers[clone].wait()
        self.workers[clone] = self._start(clone)

    def end(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.wait()

    def _start(self, clone: Clone) -> subprocess.Popen[bytes]:
        arguments = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        address = self.cluster.scheduler_address
        return clone.start("-m", "distributed.cli.dask_worker", address, *arguments)


def run(folder: Path, kind: Kind, kills: int, seed: int = 0) -> Report:
    """Kill ``kills`` processes while the project in the empty ``folder`` is made fresh."""
    chance, report, began = random.Random(seed), Report(), time.monotonic()
    driver = _clone(folder, "driver")
    command, left = ["-c", PLAIN], _Kills(kills)
    with ExitStack() as stack:
        fleet = None
        if kind.name != "plain":
            command = ["-c", GHA, "run", "--all", "--jobs", str(JOBS)]
        if kind.name == "dask":
            clones = [_clone(folder, name) for name in ("one", "two")]
            fleet = stack.enter_context(_fleet(clones))
            command += ["--runner", "dask", "--scheduler", fleet.cluster.scheduler_address]
        clones = [driver, *(fleet.clones if fleet else [])]
        while left.number > 0:
            report.allowed += len(SUBJECTS) * len(STAGES)
            for subject in SUBJECTS:
                (folder / "footage" / subject).write_text(f"{subject}, take {report.allowed}|")
            done = False
            while not done and report.failures < 3:
                done = _drive(driver, command, fleet, kind, report, chance, left)
                for clone in clones:
                    _examine(clone.root, report)
                _examine_objects(folder / "remote" / "files" / "md5", report, trusted=False)
            if report.failures >= 3:
                break
    report.allowed += sum(report.kills.values()) * JOBS
    report.executions = sum(clone.runs() for clone in clones)
    report.orphans += sum(_outlasting(clone) for clone in clones)
    report.seconds = round(time.monotonic() - began, 1)
    return report


@dataclass
class _Kills:
    """How many are still to be made."""

    number: int


def _clone(folder: Path, name: str) -> Clone:
    root = folder / name
    (root / "data" / "captures").mkdir(parents=True)
    (folder / "footage").mkdir(exist_ok=True)
    small_project.under_dvc(root)
    lines = ["vars: [subjects.yaml]", "stages:"]
    for stage, before in zip(STAGES, ("", *STAGES), strict=False):
        source = f"data/subjects/${{key}}/{before}" if before else "data/captures/${key}"
        lines += [
            f"  {stage}:",
            "    foreach: ${subjects}",
            "    do:",
            f"      cmd: python stage.py {stage} {source} ${{key}}",
            f"      deps: [{json.dumps(source)}, stage.py]",
            f'      outs: ["data/subjects/${{key}}/{stage}"]',
        ]
    (root / "dvc.yaml").write_text("\n".join(lines) + "\n")
    (root / "stage.py").write_text(STAGE)
    (root / "params.yaml").write_text("{}\n")
    lines = ["subjects:"]
    for subject in SUBJECTS:
        capture = folder / "footage" / subject
        lines += [f"  {subject}:", f"    capture: {capture}", "    format: monocular"]
        lines += [f"    {section}: {{}}" for section in SECTIONS]
        (root / "data" / "captures" / subject).symlink_to(capture)
    (root / "subjects.yaml").write_text("\n".join(lines) + "\n")
    (root / ".dvc" / "config.local").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {folder / 'remote'}\n"
        "    verify = true\n"
    )
    return Clone(root)


@contextmanager
def _fleet(clones: list[Clone]) -> Iterator[Fleet]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster:
        fleet = Fleet(clones, cluster)
        try:
            yield fleet
        finally:
            fleet.end()


def _drive(
    clone: Clone,
    command: list[str],
    fleet: Fleet | None,
    kind: Kind,
    report: Report,
    chance: random.Random,
    left: _Kills,
) -> bool:
    """Start a driver and kill something, again and again while it lives; whether it got through."""
    report.drivers += 1
    workers = fleet.clones if fleet else [clone]
    driver = clone.start(*command)
    killed: list[str] = []
    _until(lambda: LOADED in clone.printed(), driver)
    while left.number > 0 and driver.poll() is None:
        victim = chance.choice(kind.victims)
        if victim == "driver":
            _until(lambda: False, driver, chance.uniform(0.0, kind.longest))
        else:
            _until(lambda: any(each.stages() for each in workers), driver)
            _until(lambda: False, driver, chance.uniform(0.0, 0.6))
        if driver.poll() is None and _kill(victim, driver, workers, fleet, report, chance):
            killed.append(victim)
            report.kills[victim] = report.kills.get(victim, 0) + 1
            left.number -= 1
    driver.wait()
    said = clone.printed()
    badly = driver.returncode not in (0, -signal.SIGKILL) and not killed
    if badly or "Traceback" in said:
        report.failures += 1
        print(f"{kind.name}: status {driver.returncode}:\n{said}", file=sys.stderr)
    report.orphans += _outlasting(clone)
    if fleet:
        fleet.cluster.wait_for_workers(len(workers), timeout=120)
    return driver.returncode == 0


def _kill(
    victim: str,
    driver: subprocess.Popen[bytes],
    workers: list[Clone],
    fleet: Fleet | None,
    report: Report,
    chance: random.Random,
) -> bool:
    """SIGKILL one of the victims of that name; whether there was any."""
    if victim == "worker":
        assert fleet
        clone = chance.choice(workers)
        fleet.workers[clone].kill()
        fleet.workers[clone].wait()
        report.orphans += _outlasting(clone)
        fleet.replace(clone)
        return True
    stages = [process for clone in workers for process in clone.stages()]
    candidates = [driver.pid] if victim == "driver" else stages
    if not candidates:
        return False
    try:
        os.kill(chance.choice(candidates), signal.SIGKILL)
    except ProcessLookupError:
        return False
    if victim == "driver":
        driver.wait()
    return True


def _until(
    what: Callable[[], bool], driver: subprocess.Popen[bytes], seconds: float = float("inf")
) -> None:
    """Wait until something is true, the driver has ended, or ``seconds`` have passed."""
    deadline = time.monotonic() + seconds
    while driver.poll() is None and time.monotonic() < deadline and not what():
        time.sleep(0.02)


def _outlasting(clone: Clone) -> int:
    """How many processes are still at work in a clone after a while, where none should be."""
    deadline = time.monotonic() + GRACE
    while (found := clone.processes()) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in found:
        with suppress(OSError):
            print(Path(f"/proc/{process}/cmdline").read_bytes(), file=sys.stderr)
            os.kill(process, signal.SIGKILL)
    return len(found)


def _examine(folder: Path, report: Report) -> None:
    """What lies in a clone; the workers of a driver that is gone may still be busy in theirs."""
    try:
        if (folder / "dvc.lock").exists():
            assert load_yaml(str(folder / "dvc.lock"))["stages"]
    except Exception as error:
        print(f"dvc.lock: {error}", file=sys.stderr)
        report.unreadable_locks += 1
    report.half_written += (folder / "half-written").exists()
    for path in (folder / "data" / "subjects").rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        with suppress(FileNotFoundError):
            if path.is_file() and not hidden and not path.read_text().endswith("|"):
                report.half_written += 1
    _examine_objects(folder / ".dvc" / "cache" / "files" / "md5", report)


def _examine_objects(folder: Path, report: Report, trusted: bool = True) -> None:
    """Hash the objects of a cache or remote again.

    Args:
        trusted: only those that are read-only: DVC trusts them, and looks again at all others.
    """
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if not path.is_file() or (trusted and stat.S_IMODE(path.stat().st_mode) != 0o444):
                continue
            content = hashlib.md5(path.read_bytes()).hexdigest()
            if content != f"{path.parent.name}{path.stem}":
                print(f"damaged: {path}", file=sys.stderr)
                report.damaged_objects += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="ten kills")
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kills = 10 if options.quick else options.kills
    kinds = [kind for kind in KINDS if kind.name in options.kinds]
    reports = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DVC_SITE_CACHE_DIR", f"{folder}/site")
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        for kind in kinds:
            number = round(kills * kind.share / sum(each.share for each in kinds))
            reports[kind.name] = run(Path(folder, kind.name), kind, number, options.seed)
    good = all(report.good for report in reports.values())
    if options.json:
        content = {name: {**asdict(each), "good": each.good} for name, each in reports.items()}
        print(json.dumps({"kinds": content, "good": good}))
    else:
        for name, report in reports.items():
            print(f"{name}: {'good' if report.good else 'NOT GOOD'}")
            for word, value in asdict(report).items():
                print(f"    {word.replace('_', ' '):<18}{value}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
