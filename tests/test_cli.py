"""The command line, on a project with this repository's dvc.yaml and quick dummy stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from tasks.parameters import STAGES, read_subjects

ROOT = Path(__file__).parents[1]

# Stands in for `python -m tasks`: writes all that dvc.yaml expects, in no time.
STAGE = """
import json, os, signal, sys
from pathlib import Path

stage, subject = sys.argv[1:]
with open("runs", "a") as runs:
    runs.write(f"{stage}@{subject}\\n")
fate = Path(f"{stage}@{subject}.fate")
if fate.exists():
    if fate.read_text() == "fail":
        sys.exit("error: The capture is too dark.")
    fate.unlink()
    os.kill(os.getpid(), signal.SIGKILL)
out = Path("data/subjects", subject, stage)
(out / "images").mkdir(parents=True, exist_ok=True)
scores = {"novel_view": {"head": {"psnr": {"mean": 31.25}, "ssim": {"mean": 0.95}}}}
names = ["frames.parquet", "preview.jpg", "report.html", "protocol.json", "summary.json"]
for name in [*names, "video.mp4", "images/curve.svg"]:
    (out / name).write_text(stage)
(out / "metrics.json").write_text(json.dumps(scores))
"""


@pytest.fixture
def project(dvc_project: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", dvc_project)
    stages = (ROOT / "dvc.yaml").read_text().replace("python -m tasks", "python stage.py")
    (dvc_project / "dvc.yaml").write_text(stages)
    for name in ("gha_core", "tasks"):  # copies: code that is edited meanwhile would be stale
        shutil.copytree(ROOT / name, dvc_project / name)
    for name in ("CMakeLists.txt", "constraints.txt"):
        shutil.copy(ROOT / name, dvc_project)
    (dvc_project / "stage.py").write_text(STAGE)
    (dvc_project / "subjects.yaml").write_text("# people\nsubjects: {}\n")
    (dvc_project / "footage" / "left").mkdir(parents=True)
    (dvc_project / "footage" / "ann.mp4").write_text("video")
    return dvc_project


def gha(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def gha_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import app; app()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        check=False,
    )


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom flows.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'prefect', 'dvc', 'pydantic', 'pyarrow', 'cv2', 'numpy'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gha demo" in done.stdout


def test_add_registers_a_capture_and_links_to_it(project: Path) -> None:
    done = gha("add", "ann", "footage/ann.mp4", "--test-last", "0.2")
    assert done.exit_code == 0, done.output
    subject = read_subjects(project)["ann"]
    assert (str(subject.capture), subject.format) == ("footage/ann.mp4", "monocular")
    assert subject.overrides["splits"] == {"test_last": 0.2}
    assert (project / "data/captures/ann").resolve() == project / "footage/ann.mp4"
    text = (project / "subjects.yaml").read_text()
    assert "# people" in text
    assert "avatar: {}" in text
    assert gha("add", "ann", "footage/ann.mp4").exit_code == 0, "adding it again is no mistake"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["add", "ann", "nowhere.mp4"], "nowhere.mp4 does not exist"),
        (["add", "a/b", "footage/ann.mp4"], "'a/b' cannot be a subject's name"),
        (["add", "ann", "footage/left"], "is of no known format; it contains nothing"),
        (["add", "ann", "footage/ann.mp4", "--format", "film"], "There is no format 'film'"),
        (["run", "bob"], "There are no subjects yet. Add one: gha add NAME PATH"),
        (["run"], "There are no subjects yet. Add one: gha add NAME PATH"),
        (["report", "bob"], "There are no subjects yet"),
    ],
)
def test_mistakes_are_sentences(project: Path, arguments: list[str], sentence: str) -> None:
    done = gha_process(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_name_is_not_given_away(project: Path) -> None:
    gha("add", "ann", "footage/ann.mp4")
    (project / "footage/other.mp4").write_text("other")
    done = gha_process("add", "ann", "footage/other.mp4")
    assert done.returncode == 2
    assert "The name ann is taken by footage/ann.mp4" in done.stderr


def test_outside_a_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = gha_process("status")
    assert done.returncode == 2
    assert "is not inside a gha project" in done.stderr


def test_what_people_remove_is_put_back(project: Path) -> None:
    gha("add", "ann", "footage/ann.mp4")
    text = (project / "subjects.yaml").read_text().replace("    matting: {}\n", "")
    (project / "subjects.yaml").write_text(text)
    (project / "data/captures/ann").unlink()
    done = gha("status")
    assert done.exit_code == 0, done.output
    assert "    matting: {}\n" in (project / "subjects.yaml").read_text()
    assert (project / "data/captures/ann").exists()


def test_doctor_speaks_of_every_part() -> None:
    done = gha("doctor")
    for part in ("PyTorch", "GPU", "native kernels", "gsplat", "facemesh", "Apache-2.0", "disk"):
        assert part in done.output


def test_assets_lists_licences() -> None:
    done = gha("assets")
    assert done.exit_code == 0, done.output
    assert "non-commercial research only" in done.output


@pytest.mark.slow
def test_a_batch_runs_and_stock_dvc_agrees(project: Path) -> None:
    """One pass over the whole: a killed stage is retried, a failed one stops only its subject."""
    runs = project / "runs"
    gha("add", "ann", "footage/ann.mp4")
    gha("add", "bob", "footage/ann.mp4")
    assert gha("status").output.count("missing") == 2 * len(STAGES)
    (project / "matting@ann.fate").write_text("die once")
    (project / "avatar@bob.fate").write_text("fail")

    done = gha_process("run", "--all", "--jobs", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "avatar@bob failed: The capture is too dark.\n  log: data/logs/bob/avatar.log" in (
        done.stdout
    )
    ran = runs.read_text().split()
    assert [name for name in ran if name.endswith("ann")] == [
        f"{stage}@ann" for stage in ("ingest", "matting", *STAGES[1:])
    ]
    assert [name for name in ran if name.endswith("bob")] == [f"{s}@bob" for s in STAGES[:6]]
    assert "31.25 dB" in done.stdout
    assert str(project / "data/subjects/ann/evaluation/report.html") in done.stdout
    assert "31.25 dB" in gha("report", "ann").output
    state = gha("status").output
    assert (state.count("fresh"), state.count("missing")) == (len(STAGES) + 5, 1)
    assert "avatar@bob failed: The capture is too dark." in state

    (project / "avatar@bob.fate").unlink()
    dvc("repro")
    assert runs.read_text().split() == [*ran, "avatar@bob", "evaluation@bob"]

    done = gha_process("run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("cached") == 2 * len(STAGES)
    assert "scheduler" not in done.stdout
    assert len(runs.read_text().split()) == len(ran) + 2, "a stage process was started"
    assert "up to date" in dvc("status")
    metrics = json.loads(dvc("metrics", "show", "--json"))
    assert "data/subjects/ann/evaluation/metrics.json" in metrics[""]["data"]
    assert "index.html" in dvc("plots", "show")

    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("max_views: 48", "max_views: 12"))
    state = gha("status").output
    assert "evaluation@ann: evaluation.max_views: 48 → 12" in state
    assert (state.count("fresh"), state.count("stale")) == (2 * len(STAGES) - 2, 2)


def dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=path, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
