"""The command line, on a project with this repository's dvc.yaml and quick dummy stages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import small_project
from small_project import dvc, make
from tiny_captures import numbered, write_video
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.doctor import examine
from flows.inbox import Arrival, register
from flows.project import tidy
from gha_core.errors import CaptureError
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


def write(folder: Path) -> None:
    """Fill an empty folder with a project that has no subjects yet."""
    small_project.under_dvc(folder)
    shutil.copy(ROOT / "params.yaml", folder)
    stages = (ROOT / "dvc.yaml").read_text().replace("python -m tasks", "python stage.py")
    (folder / "dvc.yaml").write_text(stages)
    for name in ("gha_core", "tasks"):  # copies: code that is edited meanwhile would be stale
        shutil.copytree(ROOT / name, folder / name)
    for name in ("CMakeLists.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "stage.py").write_text(STAGE)
    (folder / "subjects.yaml").write_text("# people\nsubjects: {}\n")
    (folder / "footage" / "left").mkdir(parents=True)
    write_video(folder / "footage" / "ann.mp4", [numbered(k) for k in range(3)])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gha(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def refused(*arguments: str) -> str:
    """The sentence with which a command is refused."""
    done = gha(*arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("error: ")
    return done.stderr


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
    for part in ("monocular", "1 camera, 48x64 pixels, not calibrated", "3 timesteps", "none"):
        assert part in done.output
    assert gha("add", "ann", "footage/ann.mp4").exit_code == 0, "adding it again is no mistake"


def test_a_capture_that_cannot_be_read_is_not_registered(project: Path) -> None:
    (project / "footage/bad.mp4").write_text("not found")
    done = gha("add", "bad", "footage/bad.mp4")
    assert done.exit_code == 2
    assert not read_subjects(project)


def test_an_inbox_opens_what_it_registers(project: Path) -> None:
    (project / "footage/bad.mp4").write_text("not found")
    with pytest.raises(CaptureError, match=r"bad\.mp4 cannot be read"):
        register(Arrival("bad", project / "footage/bad.mp4"))
    register(Arrival("ann", project / "footage/ann.mp4"))
    assert list(read_subjects(project)) == ["ann"]


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
    assert sentence in refused(*arguments)


def test_a_taken_name_is_not_given_away(project: Path) -> None:
    gha("add", "ann", "footage/ann.mp4")
    write_video(project / "footage/other.mp4", [numbered(k) for k in range(2)])
    sentence = refused("add", "ann", "footage/other.mp4")
    assert "The name ann is taken by footage/ann.mp4" in sentence


def test_outside_a_project_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is not inside a gha project" in refused("status")


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
    rows = {finding.what: finding for finding in examine()}
    for operation in ("Gaussian splatting", "mesh rasterisation"):
        on_cpu = rows[f"{operation} on the CPU"]
        assert on_cpu.state == "ok"
        assert on_cpu.detail.startswith("native")
        on_cuda = next(f for what, f in rows.items() if what.startswith(f"{operation} on CUDA"))
        assert "twin (Apache-2.0)" in on_cuda.detail
    splatting = next(f for what, f in rows.items() if what.startswith("Gaussian splatting on CUDA"))
    assert "diff_gaussian_rasterization (non-commercial research only)" in splatting.detail


def test_doctor_speaks_of_a_remote_that_is_not_verified(project: Path) -> None:
    small_project.add_remote(project / "store")
    assert "DVC remote" not in gha("doctor").output
    settings = project / ".dvc" / "config.local"
    settings.write_text(settings.read_text().replace("verify = true", "verify = false"))
    done = gha("doctor")
    assert "dvc remote modify --local store verify true" in " ".join(done.output.split())
    assert done.exit_code == 1


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
    (project / "params.yaml").write_text(text.replace("max_views: 36", "max_views: 12"))
    state = gha("status").output
    assert "evaluation of ann, bob: evaluation.max_views: 36 → 12" in state
    assert (state.count("fresh"), state.count("stale")) == (2 * len(STAGES) - 2, 2)


@pytest.mark.slow
def test_without_keep_going_a_failure_is_the_end(project: Path) -> None:
    """With Prefect: what was not begun is skipped and can be run later."""
    gha("add", "ann", "footage/ann.mp4")
    gha("add", "bob", "footage/ann.mp4")
    (project / "ingest@ann.fate").write_text("fail")
    done = gha_process("run", "--no-keep-going", "--until", "matting")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ingest@ann failed: The capture is too dark." in done.stdout
    assert done.stdout.count("skipped") == 3
    assert (project / "runs").read_text().split() == ["ingest@ann"]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.fixture(scope="module")
def people_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write(folder)
    with chdir(folder):
        for name in ("ann", "bob"):
            gha("add", name, "footage/ann.mp4")
        make()
    return folder


@pytest.fixture
def people(people_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two subjects whose every stage is fresh, made without Prefect; entered."""
    folder = tmp_path / "project"
    shutil.copytree(people_once, folder, symlinks=True)
    for link in (folder / "data/captures").iterdir():
        link.unlink()  # it leads to the other one's footage
    monkeypatch.chdir(folder)
    tidy()
    return folder


def expected(*stages: str, subjects: tuple[str, ...] = ("ann", "bob")) -> set[str]:
    return {f"{stage}@{subject}" for stage in stages for subject in subjects}


def test_exactly_the_expected_stages_run_again(people: Path) -> None:
    """On the real dvc.yaml. The dummy stages' outputs do not depend on anything, so that each wave
    ends where it began: what runs is what itself has changed."""
    params, subjects = people / "params.yaml", people / "subjects.yaml"

    edit(params, "max_views: 36", "max_views: 12")
    assert set(make()) == expected("evaluation")
    edit(params, "max_views: 12", "max_views: 36")
    assert make() == [], "going back runs nothing"

    with (people / "tasks/tracking.py").open("a") as file:
        file.write("# a comment\n")
    assert set(make()) == expected("tracking")

    with (people / "gha_core/artifacts/tables.py").open("a") as file:
        file.write("# a comment\n")
    why = gha("why", "ann", "evaluation").output
    assert "evaluation@ann: gha_core/artifacts changed (tables.py)" in why
    assert "ingest@ann: gha_core/artifacts changed (tables.py)" in why
    assert set(make()) == expected(*STAGES)

    with (people / "gha_core/fitting/__init__.py").open("a") as file:
        file.write("# a comment\n")
    assert set(make()) == expected("tracking")

    edit(subjects, "    tracking: {}\n", "    tracking: {smoothness: 2.0}\n")
    assert set(make()) == expected("tracking", subjects=("ann",))

    (people / "footage/bob.mp4").write_text("video, encoded again")
    edit(subjects, "  bob:\n    capture: footage/ann.mp4", "  bob:\n    capture: footage/bob.mp4")
    (people / "data/captures/bob").unlink()
    assert gha("status").exit_code == 0, "it puts the link back"
    assert set(make()) == expected("ingest", subjects=("bob",))
    assert "up to date" in dvc("status")


def test_a_dry_run_says_what_would_run_and_why(people: Path) -> None:
    (people / "runs").unlink()
    edit(people / "params.yaml", "max_views: 36", "max_views: 12")
    edit(people / "subjects.yaml", "    geometry: {}\n", "    geometry: {steps: 7}\n")
    done = gha("run", "--dry-run")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.output.splitlines()]
    assert "geometry ann subjects.ann.geometry.steps: unset → 7" in lines
    assert "avatar ann follows geometry@ann" in lines
    assert "evaluation ann, bob evaluation.max_views: 36 → 12" in lines
    assert "4 of 14 stages would run." in lines
    assert "3 of 4 stages would run" in gha("run", "ann", "--from", "tracking", "--dry-run").output
    assert not (people / "runs").exists()

    sentence = refused("run", "--from", "evaluation", "--dry-run")
    assert "--from evaluation: geometry@ann, avatar@ann must run first" in sentence
    sentence = refused("run", "--from", "avatar", "--until", "ingest")
    assert "--until ingest comes before --from avatar" in sentence

    states = json.loads(gha("status", "--json").output)
    assert len(states) == 14
    assert states[0] == {
        "subject": "ann",
        "stage": "ingest",
        "state": "fresh",
        "reasons": [],
        "error": "",
        "log": "data/logs/ann/ingest.log",
    }
    (stale,) = (s for s in states if s["state"] == "stale" and s["subject"] == "bob")
    assert stale["reasons"] == ["evaluation.max_views: 36 → 12"]


def test_upkeep(people: Path) -> None:
    with (people / "tasks/matting.py").open("a") as file:
        file.write("# a comment\n")
    assert "accepted that tasks/matting.py changed" in gha("accept", "ann", "matting").output
    assert "there is nothing to accept" in gha("accept", "ann", "matting").output
    assert "matting@ann is fresh" in gha("why", "ann", "matting").output
    sentence = refused("accept", "bob", "landmarks")
    assert "landmarks@bob cannot be accepted: follows matting@bob" in sentence

    assert "Everything is sound." in gha("fsck").output
    altered = people / "data/subjects/ann/matting/video.mp4"
    content = altered.read_bytes()
    altered.unlink()
    altered.write_bytes(b"something else")
    done = gha("fsck")
    assert "matting/video.mp4 is not what the stage made: replaced by what the" in done.output
    assert altered.read_bytes() == content

    (people / "data/logs/ann/avatar.log").write_text("step 1\n")
    assert gha("logs", "ann", "avatar").output == "step 1\n"
    assert "There is no stage 'film'" in refused("logs", "ann", "film")

    text = (people / "subjects.yaml").read_text()
    (people / "subjects.yaml").write_text(text[: text.index("  bob:")])
    done = gha("prune")
    assert "data/subjects/bob" in done.output
    assert "dvc.lock: avatar@bob" in done.output
    assert (people / "data/subjects/bob").exists()
    gha("prune", "--yes")
    assert not (people / "data/subjects/bob").exists()
    assert (people / "footage/ann.mp4").exists()
    assert "Nothing is left" in gha("prune").output
