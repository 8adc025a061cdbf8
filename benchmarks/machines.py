"""Two workers in two clones with one DVC remote, on this machine; one of them is killed.

    python -m benchmarks.machines [--quick] [--json FILE]

Five clones of a small project with this repository's dvc.yaml and stages that only sleep: a driver,
two workers, and one more. What must hold:

1. a batch of four subjects is split over both workers;
2. kill -9 of a worker in the middle of a stage costs that stage only: executions = stages + 1
   (another worker is started in its clone, as a nanny or Slurm would);
3. afterwards ``gha run`` in the driver's clone and stock ``dvc status`` find nothing to do;
4. a third clone with the driver's dvc.lock restores everything by ``dvc pull`` and ``gha run``
   with no execution.

Each clone is processes and folders of its own; they share this machine and a folder as the remote.
Where that can be (Linux, root, iproute2), each worker has a network namespace of its own, which a
bridge connects with the driver's; else, or with --no-namespaces, all use 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.parameters import STAGES

ROOT = Path(__file__).parents[1]
SECTIONS = "".join(f"    {name}: {{}}\n" for name in ("splits", *STAGES))

# Stands in for `python -m tasks`: writes all that dvc.yaml expects, after a while.
STAGE = """
import ctypes, os, signal, sys, time
from pathlib import Path
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # as tasks.__main__ does: dies with its parent
stage, subject = sys.argv[1:]
with open("data/runs", "a") as runs:
    runs.write(f"{stage}@{subject}\\n")
time.sleep(SECONDS)
out = Path("data/subjects", subject, stage)
(out / "images").mkdir(parents=True, exist_ok=True)
names = ["frames.parquet", "preview.jpg", "report.html", "protocol.json", "summary.json"]
for name in [*names, "video.mp4", "images/curve.svg"]:
    (out / name).write_text(f"{stage} of {subject}")
(out / "metrics.json").write_text("{}")
"""


class Clone:
    """One clone of the project, and the command lines that are run in it."""

    def __init__(self, home: Path, name: str, subjects: Sequence[str], seconds: float) -> None:
        self.root = home / name
        (self.root / "data" / "captures").mkdir(parents=True)
        subprocess.run(["git", "init", "-q", str(self.root)], check=True)
        for path in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "params.yaml"):
            (self.root / path).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / path, self.root / path)
        for path in ("CMakeLists.txt", "constraints.txt"):
            shutil.copy(ROOT / path, self.root)
        for path in ("gha_core", "tasks"):
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(ROOT / path, self.root / path, ignore=ignored)
        stages = (ROOT / "dvc.yaml").read_text().replace("python -m tasks", "python stage.py")
        (self.root / "dvc.yaml").write_text(stages)
        (self.root / "stage.py").write_text(STAGE.replace("SECONDS", str(seconds)))
        lines = "".join(
            f"  {subject}:\n    capture: {home / 'footage' / subject}\n    format: auto\n{SECTIONS}"
            for subject in subjects
        )
        (self.root / "subjects.yaml").write_text(f"subjects:\n{lines}")
        (self.root / ".dvc" / "config.local").write_text(
            f"[core]\n    remote = here\n['remote \"here\"']\n    url = {home / 'remote'}\n"
        )
        self._environment = {
            **os.environ,
            "DVC_SITE_CACHE_DIR": str(home / "site" / name),
            "PREFECT_HOME": str(home / "prefect"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            sys.exit(f"{' '.join(command)} failed in {self.root}:\n{done.stdout}{done.stderr}")
        return done

    def start(self, *command: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        log = (self.root / "process.log").open("ab")
        return subprocess.Popen(
            [*prefix, sys.executable, *command],
            cwd=self.root,
            env=self._environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def gha(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-c", "from flows.cli import app; app()", *arguments)

    def runs(self) -> list[str]:
        path = self.root / "data" / "runs"
        return path.read_text().split() if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two subjects, three stages each")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--no-namespaces", action="store_true", help="all on 127.0.0.1")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="gha-machines-") as home,
        one_machine() if options.no_namespaces else namespaces(2) as network,
    ):
        figures = measure(Path(home), options.quick, network)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not all(value for value in figures.values() if isinstance(value, bool)):
        sys.exit("A claim does not hold.")


@dataclass(frozen=True)
class Network:
    """Where the scheduler listens, and how a command is started on each worker's machine.

    Attributes:
        why: why it is not namespaces, if it is not.
    """

    host: str
    prefixes: tuple[tuple[str, ...], ...]
    why: str = ""


@contextmanager
def one_machine(why: str = "not wanted") -> Iterator[Network]:
    """Everything on 127.0.0.1."""
    yield Network("127.0.0.1", ((), ()), why)


@contextmanager
def namespaces(count: int) -> Iterator[Network]:
    """A network namespace per worker, and a bridge to them; 127.0.0.1 if that cannot be."""
    name, net = f"gha{os.getpid() % 100000}", f"10.{os.getpid() % 200 + 20}.77"
    spaces = [f"{name}-{number}" for number in range(count)]
    commands = [
        f"link add {name} type bridge",
        f"address add {net}.1/24 dev {name}",
        f"link set {name} up",
    ]
    for number, space in enumerate(spaces):
        inside = f"-n {space}"
        commands += [
            f"netns add {space}",
            f"link add {name}v{number} type veth peer name eth0 netns {space}",
            f"link set {name}v{number} master {name} up",
            f"{inside} address add {net}.{number + 2}/24 dev eth0",
            f"{inside} link set eth0 up",
            f"{inside} link set lo up",
        ]
    try:
        if why := next((said for each in commands if (said := _ip(each))), ""):
            with one_machine(why) as network:
                yield network
        else:
            prefixes = tuple(("ip", "netns", "exec", space) for space in spaces)
            yield Network(f"{net}.1", prefixes)
    finally:
        for space in spaces:
            _ip(f"netns delete {space}")
        _ip(f"link delete {name}")


def _ip(arguments: str) -> str:
    """Call ip(8); what is wrong, if it fails."""
    try:
        done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return f"ip {arguments}: {done.stderr.strip()}" if done.returncode else ""


def measure(home: Path, quick: bool, network: Network) -> dict[str, object]:
    """Run the batch, kill a worker, and compare; see the module."""
    subjects = [f"s{number}" for number in range(2 if quick else 4)]
    until = STAGES[2 if quick else -1]
    stages = len(subjects) * (STAGES.index(until) + 1)
    (home / "footage").mkdir()
    for subject in subjects:
        (home / "footage" / subject).write_text(f"video of {subject}")
    clones = {
        name: Clone(home, name, subjects, seconds=1.0) for name in ("driver", "one", "two", "three")
    }
    driver, one, two, three = clones.values()
    port = _free_port()
    address = f"tcp://{network.host}:{port}"
    processes = [driver.start("-m", "distributed.cli.dask_scheduler", "--port", str(port),
                              "--no-dashboard", "--host", network.host)]  # fmt: skip
    try:
        for clone, prefix in zip((one, two), network.prefixes, strict=True):
            processes.append(_worker(clone, address, prefix))
        began = time.time()
        batch = driver.start("-c", "from flows.cli import app; app()", "run", "--until", until,
                             "--runner", "dask", "--scheduler", address)  # fmt: skip
        processes.append(batch)
        victim, killed_at = _kill_in_a_stage(one, two, batch, after=1 if quick else 6)
        processes.append(_worker(one, address, network.prefixes[0]))
        status = batch.wait(timeout=600)
        wall = time.time() - began
        runs = one.runs() + two.runs()
        again = driver.gha("run", "--until", until)
        names = [f"{s}@{n}" for n in subjects for s in STAGES[: STAGES.index(until) + 1]]
        stock = driver.run("-m", "dvc", "status", *names)
        shutil.copy(driver.root / "dvc.lock", three.root)
        _link(three)
        three.run("-m", "dvc", "pull", *names)
        third = three.gha("run", "--until", until)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {
        "network_namespaces": network.why or "one per worker",
        "subjects": len(subjects),
        "stages": stages,
        "killed": f"worker {victim} in {killed_at}",
        "executions": len(runs),
        "by_worker": [len(one.runs()), len(two.runs())],
        "wall_seconds": round(wall, 1),
        "batch_succeeded": status == 0,
        "split_over_both": bool(one.runs() and two.runs()),
        "a_kill_costs_one_stage": len(runs) == stages + 1 and len(set(runs)) == stages,
        "driver_ran_nothing": driver.runs() == [],
        "second_run_has_nothing_to_do": "Starting" not in again.stdout,
        "stock_dvc_status_is_clean": "up to date" in stock.stdout,
        "third_clone_ran_nothing": three.runs() == [] and third.returncode == 0,
    }


def _worker(clone: Clone, address: str, prefix: Sequence[str]) -> subprocess.Popen[bytes]:
    return clone.start("-m", "distributed.cli.dask_worker", address, "--nthreads", "1",
                       "--no-dashboard", "--no-nanny", prefix=prefix)  # fmt: skip


def _kill_in_a_stage(
    one: Clone, two: Clone, batch: subprocess.Popen[bytes], after: int
) -> tuple[str, str]:
    """SIGKILL the worker of ``one`` in the middle of a stage, its first ``after`` stages done."""
    while len(one.runs()) <= after or not two.runs():
        if batch.poll() is not None:
            log = (Path(one.root).parent / "driver" / "process.log").read_text()
            sys.exit(f"The batch ended before a worker could be killed:\n{log}")
        time.sleep(0.05)
    worker = _pid_of_worker(one)
    os.kill(worker, signal.SIGKILL)
    return one.root.name, one.runs()[-1]


def _pid_of_worker(clone: Clone) -> int:
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == clone.root.resolve():
                line = (entry / "cmdline").read_bytes()
                if b"dask_worker" in line:
                    return int(entry.name)
        except OSError:
            continue
    sys.exit(f"No worker runs in {clone.root}.")


def _link(clone: Clone) -> None:
    """The links to the captures, which gha makes on every run: dvc pull looks at them too."""
    clone.run("-c", "from flows import project; project.enter(); project.tidy()")


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("", 0))
        return int(server.getsockname()[1])


if __name__ == "__main__":
    main()
