"""The bridge to DVC, held against stock DVC on a small project. Prefect: see test_cli.py."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows import dvc_bridge, stage_process
from gha_core.errors import ArtifactError, CaptureError, ParameterError

# Three stages per subject: read -> shout -> tally. `shout` forgets the case of its input, so that a
# change of case ends there.
DVC_YAML = """
vars: [subjects.yaml]
stages:
  read:
    foreach: ${subjects}
    do:
      cmd: python code/read.py ${key}
      deps: ["data/captures/${key}", code/read.py]
      params: [read, subjects.yaml: ["subjects.${key}.read"]]
      outs: ["data/subjects/${key}/read"]
  shout:
    foreach: ${subjects}
    do:
      cmd: python code/shout.py ${key}
      deps: ["data/subjects/${key}/read", code/shout.py]
      params: [shout]
      outs: ["data/subjects/${key}/shout"]
  tally:
    foreach: ${subjects}
    do:
      cmd: python code/tally.py ${key}
      deps: ["data/subjects/${key}/shout", code/tally.py]
      metrics: ["data/subjects/${key}/tally/metrics.json"]
      outs: ["data/subjects/${key}/tally/words"]
"""
STAGE = """
import json, sys
from pathlib import Path
subject = sys.argv[1]
params = json.loads(Path("params.yaml").read_text())
with open("runs", "a") as runs:
    runs.write(f"NAME@{subject}\\n")
out = Path("data/subjects", subject, "NAME")
new = out.with_name(".NAME.writing")
new.mkdir(parents=True, exist_ok=True)
"""
END = """
import shutil
shutil.rmtree(out, ignore_errors=True)
new.rename(out)
"""
CODE = {
    "read": 'text = Path("data/captures", subject, "text").read_text()\n'
    '(new / "text").write_text(text * params["read"]["times"])',
    "shout": 'text = (out.parent / "read" / "text").read_text().upper()\n'
    'if "BAD" in text: sys.exit("error: the text is bad.")\n'
    '(new / "text").write_text(text + params["shout"]["mark"])',
    "tally": 'words = (out.parent / "shout" / "text").read_text().split()\n'
    '(new / "metrics.json").write_text(json.dumps({"words": len(words)}))\n'
    '(new / "words").write_text(" ".join(sorted(words)))',
}


@pytest.fixture
def project(dvc_project: Path) -> Path:
    (dvc_project / "code").mkdir()
    for name, body in CODE.items():
        script = (STAGE + body + END).replace("NAME", name)
        (dvc_project / "code" / f"{name}.py").write_text(script)
    (dvc_project / "dvc.yaml").write_text(DVC_YAML)
    (dvc_project / "params.yaml").write_text('{"read": {"times": 1}, "shout": {"mark": "!"}}')
    (dvc_project / "subjects.yaml").write_text("subjects:\n  ann: {read: {}}\n  bob: {read: {}}\n")
    for subject in ("ann", "bob"):
        folder = dvc_project / "data" / "captures" / subject
        folder.mkdir(parents=True)
        (folder / "text").write_text(f"hello {subject} ")
    return dvc_project


def make(names: Iterable[str] | None = None) -> list[str]:
    """Make all stages fresh, as the driver does; returns which ones ran, in order."""
    Path("runs").unlink(missing_ok=True)
    entries = {}
    for stage in dvc_bridge.plan(names):
        if stage.reasons:
            outcome = dvc_bridge.execute(
                stage.name, lambda cmd, n=stage.name: stage_process.run(n, cmd, threads=1)
            )
            if outcome.entry:
                entries[stage.name] = outcome.entry
    dvc_bridge.commit(entries)
    return Path("runs").read_text().split() if Path("runs").exists() else []


def dvc(*arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


def reasons() -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.reasons for stage in dvc_bridge.plan()}


def test_stock_dvc_has_nothing_to_do_after_the_bridge(project: Path) -> None:
    ran = make()
    assert sorted(ran) == sorted(f"{s}@{n}" for s in CODE for n in ("ann", "bob"))
    assert ran.index("read@ann") < ran.index("shout@ann") < ran.index("tally@ann")
    assert "up to date" in dvc("status")
    dvc("repro")
    assert Path("runs").read_text().split() == ran
    assert "words" in dvc("metrics", "show")
    assert make() == []


def test_the_bridge_has_nothing_to_do_after_stock_dvc(project: Path) -> None:
    dvc("repro")
    assert make() == []
    assert not any(reasons().values())


def test_a_parameter_reruns_its_stage_and_what_follows(project: Path) -> None:
    make()
    edit("params.yaml", '"!"', '"?"')
    assert reasons()["shout@ann"] == ("shout.mark: ! → ?",)
    assert reasons()["tally@ann"] == ("follows shout@ann",)
    assert reasons()["read@ann"] == ()
    assert sorted(make()) == ["shout@ann", "shout@bob", "tally@ann", "tally@bob"]
    assert "up to date" in dvc("status")


def test_a_subjects_override_reruns_only_that_subject(project: Path) -> None:
    make()
    edit("subjects.yaml", "bob: {read: {}}", "bob: {read: {times: 2}}")
    assert {name for name, why in reasons().items() if why} == {
        "read@bob",
        "shout@bob",
        "tally@bob",
    }
    # This stage ignores the override, so its output is the same and the wave ends.
    assert make() == ["read@bob"]


def test_an_unchanged_output_ends_the_wave(project: Path) -> None:
    make()
    Path("data/captures/ann/text").write_text("Hello Ann ")
    assert make() == ["read@ann", "shout@ann"]
    assert "up to date" in dvc("status")


def test_code_reruns_its_stage(project: Path) -> None:
    make()
    with Path("code/tally.py").open("a") as file:
        file.write("# a comment\n")
    assert reasons()["tally@bob"] == ("code/tally.py changed",)
    assert make() == ["tally@ann", "tally@bob"]


def test_going_back_restores_without_running(project: Path) -> None:
    make()
    before = Path("data/subjects/ann/shout/text").read_text()
    edit("params.yaml", '"!"', '"?"')
    make()
    edit("params.yaml", '"?"', '"!"')
    assert make() == []
    assert Path("data/subjects/ann/shout/text").read_text() == before
    assert "up to date" in dvc("status")


def test_deleted_outputs_and_a_deleted_lock_come_back_from_the_cache(project: Path) -> None:
    make()
    shutil.rmtree("data/subjects/ann")
    assert reasons()["read@ann"] == ("output data/subjects/ann/read is missing",)
    assert make() == []
    Path("dvc.lock").unlink()
    assert make() == []
    shutil.rmtree("data/subjects")
    shutil.rmtree(".dvc/cache")
    assert len(make()) == 6
    assert "up to date" in dvc("status")


def test_an_altered_output_is_noticed_and_put_back(project: Path) -> None:
    make()
    altered = Path("data/subjects/ann/shout/text")
    good = altered.read_text()
    altered.unlink()
    altered.write_text("something else")
    assert reasons()["shout@ann"] == ("output data/subjects/ann/shout was altered (text)",)
    assert make() == []
    assert altered.read_text() == good


def test_a_capture_behind_a_link_is_followed(project: Path, tmp_path: Path) -> None:
    make()
    elsewhere = tmp_path / "elsewhere"
    Path("data/captures/ann").rename(elsewhere)
    Path("data/captures/ann").symlink_to(elsewhere)
    assert not any(reasons().values())
    (elsewhere / "text").write_text("bye ann ")
    assert reasons()["read@ann"] == ("data/captures/ann changed (text)",)


def test_a_failed_stage_leaves_everything_as_it_was(project: Path) -> None:
    make()
    lock = Path("dvc.lock").read_text()
    Path("data/captures/ann/text").write_text("bad ")
    with pytest.raises(stage_process.StageFailed, match=r"^the text is bad\.$") as failure:
        make(["ann"])
    assert not failure.value.worth_retrying
    assert Path("data/subjects/ann/shout/text").read_text() == "HELLO ANN !"
    assert Path("dvc.lock").read_text() == lock
    record = stage_process.read_record("shout@ann")
    assert record
    assert (record.state, record.error) == ("failed", "the text is bad.")


def test_what_was_finished_before_a_kill_is_not_run_again(project: Path) -> None:
    """The driver is killed after a stage ended and before dvc.lock was written."""
    dvc_bridge.execute("read@ann", lambda cmd: stage_process.run("read@ann", cmd, 1))
    assert "read@ann" not in make(["ann"])


def test_the_same_stage_runs_once_for_two_callers(project: Path) -> None:
    started = threading.Barrier(2)
    outcomes = []

    def work() -> None:
        started.wait()
        outcome = dvc_bridge.execute("read@ann", lambda c: stage_process.run("read@ann", c, 1))
        outcomes.append(outcome.how)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["ran", "restored"]
    assert Path("runs").read_text().split() == ["read@ann"]


def test_commits_merge_with_what_others_wrote(project: Path) -> None:
    dvc("repro", "read@bob")
    outcome = dvc_bridge.execute("read@ann", lambda c: stage_process.run("read@ann", c, 1))
    assert outcome.entry
    dvc_bridge.commit({"read@ann": outcome.entry})
    stages = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
    assert set(stages) == {"read@ann", "read@bob"}


def test_mistakes_are_sentences(project: Path) -> None:
    shutil.rmtree("data/captures/ann")
    with pytest.raises(CaptureError, match="capture data/captures/ann does not exist"):
        make(["ann"])
    edit("subjects.yaml", "bob: {read: {}}", "bob: {}")
    with pytest.raises(ParameterError, match=r"subjects\.bob\.read"):
        make(["bob"])
    Path("dvc.lock").write_text("stages: {")
    with pytest.raises(ArtifactError, match=r"dvc\.lock"):
        dvc_bridge.plan()


def test_memory_and_time_of_a_stage_are_recorded(project: Path) -> None:
    Path("big.py").write_text("data = bytearray(200_000_000)\nprint('made it')\n")
    stage_process.run("read@ann", "python big.py", threads=1)
    record = stage_process.read_record("read@ann")
    assert record
    assert record.state == "done"
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 200e6 < record.peak_memory < max(400e6, 1.2 * ours)
    assert stage_process.log_path("read@ann").read_text() == "made it\n"


def test_a_killed_stage_is_worth_another_try(project: Path) -> None:
    Path("die.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(stage_process.StageFailed) as failure:
        stage_process.run("read@ann", "python die.py", threads=1)
    assert failure.value.worth_retrying
