"""The bridge to DVC, held against stock DVC on a small project. Prefect: see test_cli.py."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
import small_project
from ruamel.yaml import YAML
from small_project import CODE, dvc, make, make_one

from benchmarks import faults
from flows import dvc_bridge, lock_file, stage_process, upkeep
from gha_core.errors import ArtifactError, CaptureError, ParameterError


@pytest.fixture
def project(dvc_project: Path) -> Path:
    small_project.write(dvc_project)
    return dvc_project


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    small_project.under_dvc(folder)
    small_project.write(folder)
    with chdir(folder):
        make()
    return folder


@pytest.fixture
def made(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose every stage is fresh; entered."""
    folder = tmp_path / "project"
    shutil.copytree(made_once, folder, symlinks=True)
    monkeypatch.chdir(folder)
    return folder


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


def test_a_parameter_reruns_its_stage_and_what_follows(made: Path) -> None:
    edit("params.yaml", '"!"', '"?"')
    assert reasons()["shout@ann"] == ("shout.mark: ! → ?",)
    assert reasons()["tally@ann"] == ("follows shout@ann",)
    assert reasons()["read@ann"] == ()
    assert sorted(make()) == ["shout@ann", "shout@bob", "tally@ann", "tally@bob"]
    assert "up to date" in dvc("status")


def test_a_subjects_override_reruns_only_that_subject(made: Path) -> None:
    edit("subjects.yaml", "bob: {read: {}}", "bob: {read: {times: 2}}")
    assert {name for name, why in reasons().items() if why} == {
        "read@bob",
        "shout@bob",
        "tally@bob",
    }
    # This stage ignores the override, so its output is the same and the wave ends.
    assert make() == ["read@bob"]


def test_an_unchanged_output_ends_the_wave(made: Path) -> None:
    Path("data/captures/ann/text").write_text("Hello Ann ")
    assert make() == ["read@ann", "shout@ann"]
    assert "up to date" in dvc("status")


def test_code_reruns_its_stage(made: Path) -> None:
    with Path("code/tally.py").open("a") as file:
        file.write("# a comment\n")
    assert reasons()["tally@bob"] == ("code/tally.py changed",)
    assert make() == ["tally@ann", "tally@bob"]


def test_going_back_restores_without_running(made: Path) -> None:
    before = Path("data/subjects/ann/shout/text").read_text()
    edit("params.yaml", '"!"', '"?"')
    make()
    edit("params.yaml", '"?"', '"!"')
    assert make() == []
    assert Path("data/subjects/ann/shout/text").read_text() == before
    assert "up to date" in dvc("status")


def test_deleted_outputs_and_a_deleted_lock_come_back_from_the_cache(made: Path) -> None:
    shutil.rmtree("data/subjects/ann")
    assert reasons()["read@ann"] == ("output data/subjects/ann/read is missing",)
    assert make() == []
    Path("dvc.lock").unlink()
    assert make() == []
    shutil.rmtree("data/subjects")
    shutil.rmtree(".dvc/cache")
    assert len(make()) == 6
    assert "up to date" in dvc("status")


def test_an_altered_output_is_noticed_and_put_back(made: Path) -> None:
    altered = Path("data/subjects/ann/shout/text")
    good = altered.read_text()
    altered.unlink()
    altered.write_text("something else")
    assert reasons()["shout@ann"] == ("output data/subjects/ann/shout was altered (text)",)
    assert make() == []
    assert altered.read_text() == good


def test_a_capture_behind_a_link_is_followed(made: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    Path("data/captures/ann").rename(elsewhere)
    Path("data/captures/ann").symlink_to(elsewhere)
    assert not any(reasons().values())
    (elsewhere / "text").write_text("bye ann ")
    assert reasons()["read@ann"] == ("data/captures/ann changed (text)",)


def test_a_failed_stage_leaves_everything_as_it_was(made: Path) -> None:
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
    make_one("read@ann")
    assert "read@ann" not in make(["ann"])


def test_the_same_stage_runs_once_for_two_callers(project: Path) -> None:
    started = threading.Barrier(2)
    outcomes = []

    def work() -> None:
        started.wait()
        outcome = make_one("read@ann")
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
    outcome = make_one("read@ann")
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


def test_a_folder_says_which_of_its_files_changed(project: Path) -> None:
    edit("dvc.yaml", "code/shout.py]", "code]")
    make()
    Path("code/new.py").write_text("")
    with Path("code/tally.py").open("a") as file:
        file.write("# a comment\n")
    assert reasons()["shout@ann"] == ("code changed (new new.py, tally.py)",)


def test_an_accepted_edit_keeps_the_outputs(made: Path) -> None:
    with Path("code/shout.py").open("a") as file:
        file.write("# a comment\n")
    assert dvc_bridge.accept("shout@ann") == ("code/shout.py changed",)
    assert {name for name, why in reasons().items() if why} == {"shout@bob", "tally@bob"}
    assert dvc_bridge.accept("shout@ann") == ()
    assert make(["ann"]) == []
    Path("dvc.lock").unlink()
    assert make(["ann"]) == [], "the run cache knows it too"


def test_what_is_more_than_an_edit_is_not_accepted(made: Path) -> None:
    for name in ("read", "tally"):
        with Path(f"code/{name}.py").open("a") as file:
            file.write("# a comment\n")
    with pytest.raises(ArtifactError, match=r"tally@ann cannot be accepted: .*read@ann is not"):
        dvc_bridge.accept("tally@ann")
    edit("params.yaml", '"times": 1', '"times": 2')
    with pytest.raises(ArtifactError, match=r"read\.times: 1 → 2"):
        dvc_bridge.accept("read@ann")
    Path("data/subjects/bob/read/text").unlink()
    with pytest.raises(ArtifactError, match="was altered"):
        dvc_bridge.accept("read@bob")


def flip(path: Path) -> None:
    """Another first byte, at the same size and in the same place, still read-only."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"#")
    path.chmod(0o444)


def object_of(path: str) -> Path:
    return dvc_bridge.object_path(hashlib.md5(Path(path).read_bytes()).hexdigest())


def test_check_mends_from_the_workspace_and_names_what_it_cannot(made: Path) -> None:
    assert list(upkeep.check()) == []
    # The workspace has a link to the object here, so that both are damaged: a copy has not.
    text = Path("data/subjects/ann/shout/text")
    damaged = object_of(str(text))
    content = text.read_bytes()
    text.unlink()
    text.write_bytes(content)
    flip(damaged)
    assert "up to date" in dvc("status"), "stock DVC trusts it"
    assert [(f.file, f.wrong, f.mended) for f in upkeep.check()] == [
        (text, "its object in the cache is damaged", "replaced by what the workspace has")
    ]
    assert damaged.read_bytes() == content
    assert list(upkeep.check()) == []

    flip(damaged)
    text.unlink()
    (found,) = upkeep.check()
    assert (found.mended, found.todo) == ("", "make it again: gha run ann")
    assert make() == ["shout@ann"]
    assert list(upkeep.check()) == []


def test_check_mends_from_the_remote(made: Path, tmp_path: Path) -> None:
    small_project.add_remote(tmp_path / "store")
    dvc("push", "-q")
    text = Path("data/subjects/ann/read/text")
    damaged = object_of(str(text))
    listing = next(
        item["md5"]
        for item in lock_file.read()["read@ann"]["outs"]
        if item["path"].endswith("read")
    )
    flip(damaged)
    dvc_bridge.object_path(listing).unlink()
    text.unlink()
    os.link(damaged, text)
    found = [(f.wrong, f.mended) for f in upkeep.check()]
    assert found == [
        ("the cached list of its files is missing", "replaced by what the remote has"),
        ("its object in the cache is damaged", "replaced by what the remote has"),
        ("is not what the stage made", "replaced by what the cache has"),
    ]
    assert text.read_text() == "hello ann "
    assert list(upkeep.check()) == []
    assert make() == []


def test_a_damaged_remote_is_noticed_when_pulling(made: Path, tmp_path: Path) -> None:
    small_project.add_remote(tmp_path / "store")
    dvc("push", "-q")
    damaged = object_of("data/subjects/ann/read/text")
    flip(tmp_path / "store" / damaged.relative_to(made / ".dvc" / "cache"))
    shutil.rmtree("data/subjects")
    shutil.rmtree(".dvc/cache")
    assert "Checkout failed" in dvc("pull", fails=True)
    assert not damaged.exists()
    assert not Path("data/subjects/ann/read/text").exists()
    assert make() == ["read@ann"], "all the rest was pulled"


def test_a_remote_that_cannot_be_reached_hinders_nobody(project: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the remote should be")
    small_project.add_remote(tmp_path / "store")
    assert len(make()) == 6
    object_of("data/subjects/ann/read/text").unlink()
    Path("data/subjects/ann/read/text").unlink()
    (found,) = upkeep.check()
    assert found.wrong == "its object in the cache is missing"
    assert not found.mended


def test_removed_subjects_leave_nothing_after_pruning(made: Path) -> None:
    edit("subjects.yaml", "  bob: {read: {}}\n", "")
    left = upkeep.leftovers()
    assert sorted(left.entries) == ["read@bob", "shout@bob", "tally@bob"]
    assert [str(path) for path in left.folders] == [
        "data/subjects/bob",
        "data/logs/bob",
        "data/captures/bob",
    ]
    upkeep.remove(left)
    assert upkeep.leftovers() == upkeep.Leftovers((), ())
    assert make() == []
    assert set(lock_file.read()) == {"read@ann", "shout@ann", "tally@ann"}


def test_lock_files_of_two_branches_merge(project: Path) -> None:
    make(["ann"])
    base = Path("dvc.lock").read_text()
    edit("params.yaml", '"!"', '"?"')
    make(["ann"])
    ours = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(base)
    edit("params.yaml", '"?"', '"."')
    make(["bob"])
    theirs = Path("dvc.lock").read_text()
    merged = lock_file.merge(base, ours, theirs)
    Path("dvc.lock").write_text(merged)
    entries = lock_file.read()
    assert len(entries) == 6
    assert entries["shout@ann"]["params"]["params.yaml"]["shout"]["mark"] == "?"
    assert entries == YAML(typ="safe").load(merged)["stages"]
    assert make() == ["shout@ann", "tally@ann"]
    flow = json.dumps({"schema": "2.0", "stages": entries})
    assert lock_file.merge(flow, flow, flow) == lock_file.merge(merged, merged, merged)


def test_git_merges_lock_files_with_the_driver(project: Path) -> None:
    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, check=True, capture_output=True)

    shutil.copy(small_project.ROOT / ".gitattributes", project)
    code = "from flows.cli import app; app()"
    driver = f"PYTHONPATH={small_project.ROOT} {sys.executable} -c '{code}' merge-lock %O %A %B"
    git("config", "merge.dvc-lock.driver", driver)
    git("add", ".")
    git("commit", "-qm", "before")
    make(["ann"])
    git("checkout", "-qb", "other")
    git("add", "dvc.lock")
    git("commit", "-qm", "ann")
    git("checkout", "-q", "-")
    make(["bob"])
    git("add", "dvc.lock")
    git("commit", "-qm", "bob")
    git("merge", "-q", "other", "-m", "both")
    assert len(lock_file.read()) == 6
    assert make() == []


@contextmanager
def mounted(folder: Path, options: str, source: str = "tmpfs") -> Iterator[None]:
    arguments = ["-o", options, *(["-t", "tmpfs"] if source == "tmpfs" else [])]
    done = subprocess.run(["mount", *arguments, source, str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting needs the rights of root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_only_the_stage_that_filled_it(project: Path) -> None:
    make(["ann"])
    before = Path("dvc.lock").read_text()
    Path("data/captures/bob/text").write_text("hello bob " * 200_000)
    Path("data/subjects/bob").mkdir()
    with mounted(Path("data/subjects/bob"), "size=1m"):
        with pytest.raises(stage_process.StageFailed, match="No space left on device"):
            make(["bob"])
        assert not Path("data/subjects/bob/read").exists()
    shutil.move(".dvc/cache", "data/kept")
    Path(".dvc/cache").mkdir()
    full = pytest.raises(ArtifactError, match=r"No space left on device.*run again")
    with mounted(Path(".dvc/cache"), "size=1m"), full:
        make(["bob"])
    shutil.rmtree(".dvc/cache")
    shutil.move("data/kept", ".dvc/cache")
    assert Path("dvc.lock").read_text() == before
    assert list(upkeep.check()) == []
    assert make() == ["read@bob", "shout@bob", "tally@bob"]


def test_a_read_only_cache_is_a_sentence(project: Path) -> None:
    make(["ann"])
    with mounted(Path(".dvc/cache"), "bind", ".dvc/cache"):
        subprocess.run(["mount", "-o", "remount,bind,ro", ".dvc/cache"], check=True)
        assert make(["ann"]) == []
        with pytest.raises(ArtifactError, match="Read-only file system"):
            make(["bob"])
    assert "read@bob" in make()
    assert list(upkeep.check()) == []


@pytest.mark.parametrize("jobs", [2, 4, 8])
def test_side_by_side_every_stage_runs_once(project: Path, jobs: int) -> None:
    small_project.drive(jobs)
    assert sorted(small_project.ran()) == sorted(f"{s}@{n}" for s in CODE for n in ("ann", "bob"))
    assert not any(reasons().values())


def test_two_drivers_and_a_human_run_every_stage_once(project: Path) -> None:
    driver = (
        f"import sys; sys.path[:0] = [{str(small_project.ROOT / 'tests')!r}]\n"
        "import small_project; small_project.drive(jobs=2)"
    )
    edit("code/read.py", "import json, sys", "import json, sys, time; time.sleep(0.3)")
    command = [sys.executable, "-c", driver]
    drivers = [subprocess.Popen(command) for _ in range(2)]
    people = [
        subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q"], stderr=subprocess.PIPE)
    ]
    errors = [person.communicate()[1].decode() for person in people]
    assert [driver.wait() for driver in drivers] == [0, 0]
    assert all("busy" in error for error in errors if error), errors
    assert sorted(small_project.ran()) == sorted(f"{s}@{n}" for s in CODE for n in ("ann", "bob"))
    assert not any(reasons().values())
    assert "up to date" in dvc("status")


@pytest.mark.slow
def test_kills_at_random_moments_leave_no_trace(tmp_path: Path) -> None:
    """A few, of the quick kind; benchmarks/faults.py kills two hundred, of all kinds."""
    report = faults.run(tmp_path, faults.KINDS[0], kills=3, seed=3)
    assert sum(report.kills.values()) == 3
    assert report.good, report


def test_locks_of_the_dead_hinder_nobody(project: Path) -> None:
    """DVC knows who locks a path by process id, which a zombie keeps and a restart gives away."""
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is not reaped
    place = project / "data" / "subjects" / "ann"
    locks = {
        "write": {
            str(place / "read"): {"pid": zombie.pid, "cmd": "dvc repro"},
            str(place / "shout"): {"pid": os.getppid(), "cmd": "gha shout@ann"},
        },
        "read": {str(place / "shout"): [{"pid": os.getppid(), "cmd": "gha tally@ann"}]},
    }
    (project / ".dvc" / "tmp").mkdir(parents=True, exist_ok=True)
    (project / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(locks))
    making = threading.Thread(target=make, daemon=True)
    making.start()
    making.join(60)
    zombie.wait()
    assert not making.is_alive()
    assert len(Path("runs").read_text().split()) == 6
