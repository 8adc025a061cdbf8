"""Pages about several avatars: gha compare and gha report --all, from tables alone, and gha plan's
straight lines."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import batch_report, compare, plan
from gha_core.avatar import Avatar
from gha_core.errors import ArtifactError, ParameterError
from gha_core.evaluation.catalogue import METRICS
from tasks import cross_identity

SUBJECTS = "".join(
    f"  {name}: {{capture: x, format: auto, splits: {{}}, ingest: {{}}, matting: {{}}, "
    "landmarks: {}, tracking: {}, geometry: {}, avatar: {}, evaluation: {}}\n"
    for name in ("ann", "bob", "cid", "dan", "eve", "<zoe")[:5]
)


@pytest.fixture
def project(dvc_project: Path) -> Path:
    """Five subjects; eve has no scores and dan has bad ones."""
    (dvc_project / "subjects.yaml").write_text("subjects:\n" + SUBJECTS)
    (dvc_project / "dvc.yaml").write_text("stages: {}\n")
    for name, db in (("ann", 30.0), ("bob", 30.4), ("cid", 29.8), ("dan", 22.0)):
        folder = dvc_project / "data/subjects" / name / "evaluation"
        folder.mkdir(parents=True)
        entry = {"mean": db, "std": 1.0, "median": db, "count": 4}
        scores = {"novel_view": {"head": {"psnr": entry}}}
        (folder / "metrics.json").write_text(json.dumps(scores))
        (folder / "report.html").write_text("report")
    return dvc_project


def test_the_batch_page_shows_the_doubtful_first_and_needs_no_network(project: Path) -> None:
    path = batch_report.write_batch_report(["ann", "bob", "cid", "dan", "eve"], None)
    page = path.read_text()
    rows = re.findall(r'<td data-value="(\w+)">', page)
    assert [name for name in rows if name in SUBJECTS][:2] == ["eve", "dan"]
    assert "Not evaluated. Run: gha run eve" in page
    assert re.search(r"deviations worse than the batch: PSNR \(dB\), head [\d.]+", page)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert "../data/subjects/ann/evaluation/report.html" in links
    assert not [link for link in links if "//" in link]
    assert "28.05 dB" in page, "the mean"


@pytest.mark.parametrize(
    ("items", "kind", "sentence"),
    [
        (["ann"], ParameterError, "at least two"),
        (["ann", "ann"], ParameterError, "at least two"),
        (["ann", "xyz"], ParameterError, "no subject 'xyz'"),
        (["ann", "eve"], ArtifactError, "not evaluated yet"),
        (["ann@nowhere", "bob"], ParameterError, "no dvc.lock at the revision 'nowhere'"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(
    project: Path, items: list[str], kind: type[Exception], sentence: str
) -> None:
    shutil.copy(Path(__file__), project / "data/subjects/ann/evaluation/frames.parquet")
    with pytest.raises(kind, match=sentence):
        compare.compare_subjects(items, None, None)
    assert not (project / "outputs").exists()


def into_cache(folder: Path) -> dict[str, Any]:
    """Put a folder into the project's DVC cache; returns its entry for dvc.lock."""

    def store(data: bytes, suffix: str = "") -> str:
        digest = hashlib.md5(data).hexdigest() + suffix
        path = Path(".dvc/cache/files/md5", digest[:2], digest[2:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    listing = [
        {"md5": store(path.read_bytes()), "relpath": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return {"path": str(folder), "md5": store(json.dumps(listing).encode(), ".dir")}


@pytest.mark.slow
def test_an_avatar_is_compared_with_itself_in_a_commit(
    project: Path, tiny_artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(project / "data/subjects/ann")
    shutil.copytree(tiny_artifacts, "data/subjects/ann")
    stages = {
        f"{stage}@ann": {"cmd": "x", "outs": [into_cache(Path("data/subjects/ann", stage))]}
        for stage in compare.STAGES
    }
    Path("dvc.lock").write_text(json.dumps({"schema": "2.0", "stages": stages}))
    for command in (["add", "-f", "dvc.lock"], ["commit", "-qm", "made"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        subprocess.run(["git", *identity, *command], check=True)
    monkeypatch.setattr(cross_identity, "FRAMES", 4)
    monkeypatch.setattr(cross_identity, "CAMERAS", 2)
    made = compare.compare_subjects(["ann", "ann@HEAD"], "ann:FREE", None)
    assert made.notes == []
    page = made.page.read_text()
    assert page.count('alt="ann@HEAD"') == 3, "worst, median, largest difference"
    assert not re.search(r'class="(better|worse)"', page), "no difference to itself"
    assert "+0.00" in page
    assert "Driven by ann:FREE: 4 frames, seen by 2 cameras" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    digest = stages["avatar@ann"]["outs"][0]["md5"]
    Path(".dvc/cache/files/md5", digest[:2], digest[2:]).unlink()
    with pytest.raises(ArtifactError, match="avatar of that revision is neither in DVC's cache"):
        compare.compare_subjects(["ann", "ann@HEAD"], None, None)


@pytest.mark.slow
def test_quality_against_time_is_of_the_training(tiny_artifacts: Path) -> None:
    summary = json.loads((tiny_artifacts / "evaluation/summary.json").read_text())
    curve = [(row["step"], row["head_psnr_db"]) for row in summary["learning_curve"]]
    assert [step for step, _ in curve] == [0, 2, 4, 8, 16, 28, 40]
    assert curve[-1][1] > curve[0][1] + 1
    metrics = json.loads((tiny_artifacts / "evaluation/metrics.json").read_text())
    assert curve[-1][1] == pytest.approx(metrics["novel_expression"]["head"]["psnr"]["mean"], abs=2)
    assert "of the gain of" in (tiny_artifacts / "evaluation/report.html").read_text()
    images = {path.name for path in (tiny_artifacts / "evaluation/images").iterdir()}
    assert {"learning.svg", "frames.svg", "losses.svg", "views.jpg", "rank_1_worst.jpg"} <= images


@pytest.mark.slow
def test_driven_by_itself_the_same_motion_is_found_again(
    tiny_artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_identity, "FRAMES", 6)
    monkeypatch.setattr(cross_identity, "CAMERAS", 2)
    avatar = Avatar.load(tiny_artifacts / "avatar")
    tracking = tiny_artifacts / "tracking"
    found = cross_identity.score(tiny_artifacts, avatar, tracking, "FREE")
    assert (found.frames, found.cameras) == (6, 2)
    assert 0 < found.apd < 6
    assert 0 < found.aed < 0.15
    assert found.csim is not None or "insightface" in found.missing
    assert np.isfinite([found.aed, found.apd]).all()


def measured(seconds: float, memory: float, pace: float = 0.0) -> plan.Measured:
    return plan.Measured(seconds, memory, 10 * seconds, {"training avatar": pace})


def test_what_grows_with_timesteps_is_drawn_on_as_a_line() -> None:
    small, large = measured(5.0, 100.0), measured(8.0, 130.0)
    found = plan._line("tracking", [2, 5], [small, large], 100)
    assert found.seconds == pytest.approx(3 + 100)
    assert found.memory == pytest.approx(80 + 10 * 100)
    streaming = plan._line("matting", [2, 5], [small, large], 100)
    assert streaming.memory == 130
    noisy = plan._line("ingest", [2, 5], [large, small], 100)
    assert noisy.seconds == 8, "less time for more timesteps is noise"


def test_paces_leave_out_how_work_warms_up(tmp_path: Path) -> None:
    points = [(0, 0.0), (1, 9.0), (2, 10.0), (3, 11.0), (4, 12.0)]
    lines = [{"description": "d", "done": n, "total": 4, "seconds": s} for n, s in points]
    (tmp_path / "progress").write_text("\n".join(json.dumps(line) for line in lines))
    assert dict(plan._paces(tmp_path / "progress")) == {"d": 1.0}
    assert dict(plan._paces(tmp_path / "absent")) == {}


def test_what_does_not_fit_is_said() -> None:
    forecast = plan.Forecast("avatar", 7200, 31 * 2**30, 9e9)
    made = plan.Plan("ann", "work", [forecast], memory=16 * 2**30, disk=5e9)
    memory, disk = made.warnings
    assert "avatar will want 31.0 GiB" in memory
    assert "has 16.0" in memory
    assert "9.0 GB" in disk
    assert not plan.Plan("ann", "work", [forecast], 64 * 2**30, 1e12).warnings
    failure = plan._failure("avatar", "RuntimeError: can't allocate memory")
    assert "does not fit" in failure
    assert "Lower avatar.gaussians" in failure


def test_every_score_says_how_it_is_taken() -> None:
    for metric in METRICS.values():
        assert len(metric.protocol) > 20
        assert metric.better in ("higher", "lower", "")
    docs = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text().lower()
    for metric in METRICS.values():
        assert metric.title.split(" (")[0].split(",")[0].lower() in docs, metric.title
