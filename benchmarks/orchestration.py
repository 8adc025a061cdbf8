"""What orchestration costs: many subjects through the real dvc.yaml, with stages that do nothing.

    python benchmarks/orchestration.py [--subjects 100] [--quick] [--json]

Cold: `gha run --all --jobs 2` of a tenth of the subjects and of all, and stock `dvc repro`, which
is stopped as soon as it has taken long enough to meet the bar. No-op: the same again, from shell to
shell, alternating with stock `dvc status`, and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from small_project import under_dvc  # noqa: E402

from tasks.parameters import SECTIONS, STAGES  # noqa: E402

GHA = [sys.executable, "-c", "from flows.cli import app; app()"]
DVC = [sys.executable, "-m", "dvc"]
NOOP_SECONDS, NOOP_FACTOR, PREFECT_SECONDS = 10.0, 1.5, 6.0
MEMORY, SPEEDUP, GROWTH = 400e6, 15.0, 1.5

STAGE = """
import os, sys
stage, subject = sys.argv[1:]
out = f"data/subjects/{subject}/{stage}"
os.makedirs(f"{out}/images", exist_ok=True)
for name in ("frames.parquet", "preview.jpg", "report.html", "protocol.json", "summary.json",
             "video.mp4", "images/curve.svg", "metrics.json"):
    with open(f"{out}/.{name.replace('/', '-')}", "w") as file:
        file.write("{}" if name.endswith("json") else f"{name} of {stage}, {subject}")
    os.replace(file.name, f"{out}/{name}")
"""


@dataclass(frozen=True)
class Run:
    """Wall time from shell to shell, seconds; peak memory of the process, bytes; whether it ended
    by itself."""

    seconds: float
    memory: float
    ended: bool = True


def write_project(folder: Path, subjects: int) -> None:
    """A project with this repository's dvc.yaml, code and parameters, and stages of no work."""
    folder.mkdir(parents=True)
    under_dvc(folder)
    stages = (ROOT / "dvc.yaml").read_text().replace("python -m tasks", "python -S -E stage.py")
    (folder / "dvc.yaml").write_text(stages)
    (folder / "stage.py").write_text(STAGE)
    for name in ("params.yaml", "CMakeLists.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("gha_core", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    entries = ["subjects:"]
    for number in range(subjects):
        capture = folder / "footage" / f"{number:03d}"
        capture.mkdir(parents=True)
        (capture / "left.mp4").write_text(f"video {number}")
        link = folder / "data" / "captures" / f"s{number:03d}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(capture)
        entries += [f"  s{number:03d}:", f"    capture: footage/{number:03d}"]
        entries += ["    format: monocular", *(f"    {section}: {{}}" for section in SECTIONS)]
    (folder / "subjects.yaml").write_text("\n".join(entries) + "\n")


def timed(command: list[str], folder: Path, limit: float | None = None) -> Run:
    """Run a command in the project ``folder``; ended after ``limit`` seconds.

    Raises:
        RuntimeError: it failed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        "PREFECT_HOME": str(folder.parent / "prefect"),
        "DVC_NO_ANALYTICS": "true",
    }
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ended, memory = True, 0
        while (done := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            time.sleep(0.02)
            memory = max(memory, _peak_memory(process.pid))
            if ended and limit and time.monotonic() - began > limit:
                ended = False
                os.killpg(process.pid, 9)
        process.returncode = os.waitstatus_to_exitcode(done[1])
        seconds = time.monotonic() - began
        if ended and process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{output.read()[-2000:]}")
    return Run(round(seconds, 2), memory, ended)


def _peak_memory(process: int) -> int:
    """Bytes, of the process alone: what wait4 says includes its largest child."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def measure(folder: Path, subjects: int, repeats: int, patience: float) -> dict[str, object]:
    """All figures and whether they meet their bars.

    Args:
        patience: stock `dvc repro` is stopped after so many times what ours took.
    """
    few = max(1, subjects // 10)
    run_all = [*GHA, "run", "--all", "--jobs", "2"]
    cold = {}
    for count in (few, subjects):
        write_project(folder / f"ours-{count}", count)
        cold[count] = timed(run_all, folder / f"ours-{count}")
    ours = cold[subjects].seconds
    write_project(folder / "stock", subjects)
    stock = timed([*DVC, "repro", "-q"], folder / "stock", limit=patience * ours)

    project = folder / f"ours-{subjects}"
    pairs = [(timed(run_all, project), timed([*DVC, "status"], project)) for _ in range(repeats)]
    noop = min(pair[0].seconds for pair in pairs)
    status = min(pair[1].seconds for pair in pairs)
    memory = max(run.memory for run in [cold[subjects], *(pair[0] for pair in pairs)])
    per_stage = {count: run.seconds / count / len(STAGES) for count, run in cold.items()}
    return {
        "stages": subjects * len(STAGES),
        "cold": asdict(cold[subjects]),
        "cold_few": asdict(cold[few]),
        "stock_repro": asdict(stock),
        "speedup_at_least": round(stock.seconds / ours, 1),
        "growth_per_stage": round(per_stage[subjects] / per_stage[few], 2),
        "noop_seconds": [pair[0].seconds for pair in pairs],
        "status_seconds": [pair[1].seconds for pair in pairs],
        "peak_memory": memory,
        "met": {
            f"no-op <= {NOOP_SECONDS:.0f} s": noop <= NOOP_SECONDS,
            "no-op <= 1.5 x dvc status + 6 s": noop <= NOOP_FACTOR * status + PREFECT_SECONDS,
            "memory <= 400 MB": memory <= MEMORY,
            "cold >= 15 x dvc repro": stock.seconds >= SPEEDUP * ours,
            "growth linear": per_stage[subjects] <= GROWTH * per_stage[few],
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3, help="of the no-op and dvc status")
    parser.add_argument("--quick", action="store_true", help="ten subjects, once; no bar is asked")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    subjects, repeats, patience = options.subjects, options.repeats, 1.02 * SPEEDUP
    if options.quick:
        subjects, repeats, patience = 10, 1, 1.5
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), subjects, repeats, patience)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<18}{value}")
    met = figures["met"]
    assert isinstance(met, dict)
    return 0 if options.quick or all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
