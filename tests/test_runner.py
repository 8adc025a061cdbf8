"""``python -m tasks STAGE SUBJECT``: whole folders or none, exit statuses, work folders, death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flows import tether

ROOT = Path(__file__).parents[1]

# Runs tasks.__main__ with a stage of our own in the place of ingest.
DRIVER = """
import random, sys, time, types
from pathlib import Path
sys.path.insert(0, {root!r})
import tasks
from tasks.stage import StageParams
from gha_core.artifacts import schemas, tables
from gha_core.errors import CaptureError

class Params(StageParams):
    size: int = 1

def tables_into(out):
    from gha_core.cameras import Camera
    import numpy as np
    camera = Camera("left", np.eye(3), np.eye(4), 8, 8)
    tables.write_table(out / "cameras.parquet", schemas.CAMERAS, [camera.row("ann")])
    tables.write_table(out / "frames.parquet", schemas.FRAMES, [])

def run(inputs, params, out):
    tables_into(out)
{body}

module = types.ModuleType("tasks.ingest")
module.Params, module.run = Params, run
sys.modules["tasks.ingest"] = tasks.ingest = module
from tasks.__main__ import main
sys.exit(main(["ingest", "ann"]))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("seed: 5\ningest: {}\n")
    (tmp_path / "subjects.yaml").write_text(
        "subjects: {ann: {capture: a.mp4, format: monocular}}\n"
    )
    return tmp_path


def start(project: Path, body: str, **environment: str) -> subprocess.Popen[str]:
    script = project / "driver.py"
    script.write_text(DRIVER.format(root=str(ROOT), body=textwrap.indent(body, "    ")))
    return subprocess.Popen(
        [sys.executable, str(script)],
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(project: Path, body: str) -> tuple[int, str]:
    process = start(project, body)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def out(project: Path) -> Path:
    return project / "data" / "subjects" / "ann" / "ingest"


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


def test_a_folder_appears_complete_and_scratch_goes(project: Path) -> None:
    status, errors = run(
        project,
        '(inputs.work / "checkpoint").write_text("x")\n'
        '(out / "drawn").write_text(f"{random.random()} {inputs.seed} {inputs.splits}")',
    )
    assert status == 0, errors
    first = (out(project) / "drawn").read_text()
    assert sorted(p.name for p in out(project).parent.iterdir()) == [".ingest.lock", "ingest"]
    run(project, '(out / "drawn").write_text(f"{random.random()} {inputs.seed} {inputs.splits}")')
    assert (out(project) / "drawn").read_text() == first, "the seed is not set"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ('raise CaptureError("The video\\nis empty.")', 2, "error: The video is empty.\n"),
        ('raise MemoryError("no")', 75, "error: ingest ran out of memory. no\n"),
        ('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', 75, "out of memory"),
        ('raise ValueError("a bug")', 1, "Traceback"),
    ],
)
def test_a_failure_keeps_what_was_there(project: Path, body: str, status: int, words: str) -> None:
    run(project, '(out / "drawn").write_text("good")')
    got, errors = run(project, f'(out / "drawn").write_text("half")\n{body}')
    assert got == status
    assert words in errors
    assert ("Traceback" in errors) == (status == 1)
    assert (out(project) / "drawn").read_text() == "good"
    assert not list(out(project).parent.glob("*.writing"))


def test_a_held_out_camera_that_does_not_exist_is_refused_at_once(project: Path) -> None:
    (project / "params.yaml").write_text("splits: {test_cameras: [rihgt]}\n")
    status, errors = run(project, "")
    assert status == 2
    assert "names the camera 'rihgt', which the capture does not have. It has: left" in errors
    assert not out(project).exists()


def test_checkpoints_survive_a_kill_but_not_a_change_of_parameters(project: Path) -> None:
    body = (
        'kept = inputs.work / "checkpoint"\n'
        '(out / "found").write_text(str(kept.exists()))\n'
        'kept.write_text("x")\n'
        'Path("go").exists() or time.sleep(60)\n'
    )

    def kill_one() -> None:
        process = start(project, body)
        for _ in range(3000):
            if list(out(project).parent.glob(".ingest.work/*/checkpoint")):
                break
            time.sleep(0.02)
        process.kill()
        process.communicate()

    kill_one()
    assert not out(project).exists()
    (project / "go").touch()
    assert run(project, body)[0] == 0
    assert (out(project) / "found").read_text() == "True"

    (project / "go").unlink()
    kill_one()
    (project / "go").touch()
    (project / "params.yaml").write_text("seed: 5\ningest: {size: 2}\n")
    assert run(project, body)[0] == 0
    assert (out(project) / "found").read_text() == "False"


def test_two_processes_never_write_the_same_stage(project: Path) -> None:
    waiting = start(project, 'Path("started").touch()\ntime.sleep(60)')
    wait_for(project / "started")
    status, errors = run(project, "")
    waiting.kill()
    waiting.communicate()
    assert status == 2
    assert "ingest of ann is being made by another process" in errors


def test_a_stage_dies_with_the_driver_that_started_it(project: Path) -> None:
    """A driver starts the stage and is killed; the stage must be gone within two seconds."""
    script = project / "driver.py"
    body = 'Path("pid").write_text(str(__import__("os").getpid()))\ntime.sleep(60)'
    script.write_text(DRIVER.format(root=str(ROOT), body=textwrap.indent(body, "    ")))
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys\n"
            f"tether = [sys.executable, {tether.__file__!r}, str(os.getpid())]\n"
            f"subprocess.run([*tether, sys.executable, {str(script)!r}])",
        ],
        cwd=project,
    )
    wait_for(project / "pid")
    time.sleep(0.05)
    stage = int((project / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 2
    while Path(f"/proc/{stage}").exists() and _state(stage) != "Z":
        assert time.monotonic() < deadline, "the stage outlived its driver"
        time.sleep(0.02)


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
