"""Kill drivers and stage processes at random moments, and prove that nothing comes of it.

    python benchmarks/faults.py [--kills 200] [--seed 0] [--quick] [--json]

A project of three stages and two subjects is changed, and made fresh by a driver that is killed, or
loses a stage process, again and again until it gets through. After every kill: dvc.lock parses, no
artifact is half-written, no stage process outlives its driver by two seconds, every trusted object
of the cache has the content of its name. In the end no stage ran more often than the kills explain.
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
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dvc.utils.serialize import load_yaml

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import small_project  # noqa: E402

JOBS = 2
GRACE = 2.0  # seconds that a stage process may outlive its driver
LONGEST = 2.0  # seconds after which a kill comes at the latest

# Writes in two halves with time between, so that kills find half-written files.
SLOW = """
import time

def slowly(path, text):
    with path.open("w") as file:
        file.write(text[: len(text) // 2])
        file.flush()
        time.sleep(0.2)
        file.write(text[len(text) // 2 :])
        file.write("|")
"""
DRIVER = f"import small_project; print(flush=True); small_project.drive(jobs={JOBS})"


@dataclass
class Report:
    """What happened. The counts of what went wrong must be 0.

    Attributes:
        drivers: how often a driver was started.
        executions: how often a stage really ran; at most ``allowed``.
        allowed: stages that had to run + kills x workers.
        orphans: stage processes that outlived their driver by more than two seconds.
    """

    kills: int = 0
    driver_kills: int = 0
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


def run(folder: Path, kills: int, seed: int = 0) -> Report:
    """Kill ``kills`` processes while the project in the empty ``folder`` is made fresh."""
    chance, report, began = random.Random(seed), Report(), time.monotonic()
    _prepare(folder)
    while report.kills < kills:
        report.allowed += 6
        change = json.dumps({"read": {"times": report.allowed}, "shout": {"mark": "!"}})
        (folder / "params.yaml").write_text(change)
        done = False
        while not done:
            done = _drive(folder, report, chance, kills)
            _examine(folder, report)
    report.allowed += report.kills * JOBS
    report.executions = len((folder / "runs").read_text().split())
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _prepare(folder: Path) -> None:
    small_project.under_dvc(folder)
    small_project.write(folder)
    for script in (folder / "code").glob("*.py"):
        text = script.read_text()
        for name in ("text", "metrics.json", "words"):
            text = text.replace(f'(new / "{name}").write_text(', f'slowly(new / "{name}", ')
        text = text.replace('"read" / "text").read_text()', '"read" / "text").read_text()[:-1]')
        text = text.replace('"shout" / "text").read_text()', '"shout" / "text").read_text()[:-1]')
        script.write_text(SLOW + text)


def _drive(folder: Path, report: Report, chance: random.Random, kills: int) -> bool:
    """Start a driver and kill something of it, up to ``kills`` in all; whether it got through."""
    report.drivers += 1
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout
    driver.stdout.readline()  # it has loaded its libraries, where a kill would prove little
    while report.kills < kills:
        try:
            driver.wait(chance.uniform(0.0, LONGEST))
            break
        except subprocess.TimeoutExpired:
            pass
        stages = _processes(folder) - {driver.pid}
        victim = chance.choice([driver.pid, *stages, *stages])
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            report.kills += 1
            report.driver_kills += victim == driver.pid
    _, errors = driver.communicate()
    if driver.returncode not in (0, -signal.SIGKILL):
        report.failures += 1
        print(errors, file=sys.stderr)
    deadline = time.monotonic() + GRACE
    while (left := _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    report.orphans += len(left)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return driver.returncode != -signal.SIGKILL


def _processes(folder: Path) -> set[int]:
    """Living processes whose current folder is ``folder``."""
    found = set()
    for path in Path("/proc").iterdir():
        try:
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            if (
                path.name.isdigit()
                and state != "Z"
                and (path / "cwd").resolve() == folder.resolve()
            ):
                found.add(int(path.name))
        except OSError:
            continue
    return found


def _examine(folder: Path, report: Report) -> None:
    try:
        if (folder / "dvc.lock").exists():
            assert load_yaml(str(folder / "dvc.lock"))["stages"]
    except Exception as error:
        print(f"dvc.lock: {error}", file=sys.stderr)
        report.unreadable_locks += 1
    for path in (folder / "data" / "subjects").rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and not path.read_text().endswith("|"):
            report.half_written += 1
    for path in (folder / ".dvc" / "cache" / "files" / "md5").rglob("*"):
        # DVC trusts what is read-only, and looks again at anything else.
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o444:
            content = hashlib.md5(path.read_bytes()).hexdigest()
            report.damaged_objects += content != f"{path.parent.name}{path.stem}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="ten kills")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DVC_SITE_CACHE_DIR", f"{folder}/site")
        project = Path(folder, "project")
        project.mkdir()
        report = run(project, 10 if options.quick else options.kills, options.seed)
    if options.json:
        print(json.dumps({**asdict(report), "good": report.good}))
    else:
        for name, value in asdict(report).items():
            print(f"{name.replace('_', ' '):<18}{value}")
        print("good" if report.good else "NOT GOOD")
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
