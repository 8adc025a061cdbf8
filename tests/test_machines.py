"""Several clones and one remote: orders, what travels, and what a worker refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from distributed import LocalCluster
from dvc_data.hashfile.meta import Meta
from pydantic import BaseModel
from ruamel.yaml import YAML

from flows import dvc_bridge, machines, making, server, stage_process
from flows.dvc_bridge import Entry, Outcome
from flows.inbox import arrivals, unfinished
from flows.machines import Here, Workers
from flows.resources import Capacity, claim_gpu
from gha_core.artifacts.images import decode_image, encode_jpeg
from gha_core.errors import ArtifactError, GhaError, ParameterError
from gha_core.splits import Splits
from tasks.needs import NEEDS, Needs
from tasks.parameters import STAGES, Subject, params_type

ROOT = Path(__file__).parents[1]

# Two stages per subject, with names of real ones: ingest -> matting.
DVC_YAML = """
vars: [subjects.yaml]
stages:
  ingest:
    foreach: ${subjects}
    do:
      cmd: python stage.py ingest ${key}
      deps: ["data/captures/${key}", stage.py]
      params: [ingest, subjects.yaml: ["subjects.${key}.ingest"]]
      outs: ["data/subjects/${key}/ingest"]
  matting:
    foreach: ${subjects}
    do:
      cmd: python stage.py matting ${key}
      deps: ["data/subjects/${key}/ingest", stage.py]
      params: [matting]
      metrics: ["data/subjects/${key}/matting/metrics.json"]
      plots: ["data/subjects/${key}/matting/images"]
      outs: ["data/subjects/${key}/matting/alpha"]
"""
SCRIPT = """
import ctypes, signal, sys, time
from pathlib import Path
from ruamel.yaml import YAML
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # as tasks.__main__ does: it dies with its parent
stage, subject = sys.argv[1:]
Path("data/logs").mkdir(exist_ok=True)
slow = Path(subject + ".slow").exists()  # before it is known to run: then the file may go
with open("data/logs/runs", "a") as runs:
    runs.write(f"{stage}@{subject} ")
if slow:
    time.sleep(60)
out = Path("data/subjects", subject, stage)
out.mkdir(parents=True, exist_ok=True)
if stage == "ingest":
    text = Path("data/captures", subject).read_text()
    times = YAML(typ="safe").load(Path("params.yaml"))["ingest"]["images"]
    (out / "text").write_text(" ".join([text] * times))
    (out / "more").write_text(text * 2)
else:
    text = Path("data/subjects", subject, "ingest", "text").read_text()
    (out / "alpha").write_text(text.upper())
    (out / "metrics.json").write_text(f'{{"words": {len(text.split())}}}')
    (out / "images").mkdir(exist_ok=True)
    (out / "images" / "curve.svg").write_text(f"<svg><text>{text}</text></svg>")
print("made", stage, "of", subject)
"""
SECTIONS = "".join(f"    {name}: {{}}\n" for name in ("splits", *STAGES))


@pytest.fixture
def clones(dvc_project: Path) -> Path:
    """A folder with the clones driver, one and two, and the remote that they share."""
    for name in ("driver", "one", "two"):
        root = dvc_project / name
        shutil.copytree(dvc_project / ".dvc", root / ".dvc")
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        (root / "dvc.yaml").write_text(DVC_YAML)
        (root / "stage.py").write_text(SCRIPT)
        (root / "params.yaml").write_text("{ingest: {images: 1}, matting: {}}")
        entries = "".join(
            f"  {s}:\n    capture: {dvc_project / s}\n    format: auto\n{SECTIONS}"
            for s in ("ann", "bob")
        )
        (root / "subjects.yaml").write_text(f"subjects:\n{entries}")
        (root / "data" / "captures").mkdir(parents=True)
        for subject in ("ann", "bob"):
            (dvc_project / subject).write_text(f"footage of {subject}")
            (root / "data" / "captures" / subject).symlink_to(dvc_project / subject)
        url = dvc_project / "remote"
        (root / ".dvc" / "config.local").write_text(
            f"[core]\n    remote = here\n['remote \"here\"']\n    url = {url}\n"
        )
    shutil.rmtree(dvc_project / ".dvc")
    return dvc_project


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def runs(clone: Path) -> list[str]:
    path = clone / "data" / "logs" / "runs"
    return path.read_text().split() if path.exists() else []


def send(clones: Path, name: str, worker: str, made: dict[str, Entry]) -> Outcome:
    """What the driver and a worker do for one stage."""
    with inside(clones / "driver"):
        (stage,) = (stage for stage in dvc_bridge.plan() if stage.name == name)
        order = dvc_bridge.order(name, stage.upstream, made)
    with inside(clones / worker):
        return making.fulfil(order, threads=1)


def test_each_stage_can_be_made_in_another_clone(clones: Path) -> None:
    first = send(clones, "ingest@ann", "one", {})
    assert first.entry
    made = {"ingest@ann": first.entry}
    second = send(clones, "matting@ann", "two", made)
    assert second.entry
    assert (clones / "two/data/subjects/ann/ingest/more").read_text() == "footage of ann" * 2
    assert (runs(clones / "one"), runs(clones / "two")) == (["ingest@ann"], ["matting@ann"])
    assert not (clones / "one" / "dvc.lock").exists(), "only the driver commits"

    made["matting@ann"] = second.entry
    with inside(clones / "driver"):
        assert not Path("data/subjects").exists()
        dvc_bridge.commit(made)
        dvc_bridge.collect(made.values())
        assert Path("data/subjects/ann/matting/alpha").read_text() == "FOOTAGE OF ANN"
        assert [s.reasons for s in dvc_bridge.plan(["ann"])] == [(), ()]
        assert runs(Path()) == []


def test_what_a_killed_driver_did_not_commit_is_restored(clones: Path) -> None:
    """Its worker has sent the outputs and the run to the remote; whichever gets the order then
    restores them."""
    entry = send(clones, "ingest@ann", "one", {}).entry
    assert not (clones / "driver" / "dvc.lock").exists()
    (record,) = (clones / "remote" / "runs").glob("*/*/*")
    record.with_name(".half.tmp").write_text("cmd: 'what a killed worker leaves")
    outcome = send(clones, "ingest@ann", "two", {})
    assert (outcome.how, outcome.entry) == ("restored", entry)
    assert runs(clones / "two") == []
    # Again, and with its output gone: from the clone's own cache.
    shutil.rmtree(clones / "two" / "data" / "subjects")
    assert send(clones, "ingest@ann", "two", {}).how == "restored"


def test_what_the_driver_made_itself_is_sent_to_the_remote(clones: Path) -> None:
    with inside(clones / "driver"):
        outcome = making.make("ingest@ann", threads=1)
        assert outcome.entry
        dvc_bridge.commit({"ingest@ann": outcome.entry})
    assert send(clones, "matting@ann", "one", {}).how == "ran"
    assert runs(clones / "one") == ["matting@ann"]


def test_a_worker_without_the_drivers_state_says_what_differs(clones: Path) -> None:
    with (clones / "one" / "stage.py").open("a") as file:
        file.write("# newer\n")
    with pytest.raises(ArtifactError, match=r"stage\.py is not what the driver has.*git pull"):
        send(clones, "ingest@ann", "one", {})
    (clones / "two" / "params.yaml").write_text("{ingest: {images: 2}, matting: {}}")
    with pytest.raises(
        ArtifactError, match=r"params\.yaml: ingest\.images is 2 here and 1 for the driver"
    ):
        send(clones, "ingest@ann", "two", {})
    assert not (clones / "two" / "data" / "subjects").exists()


def test_a_lost_remote_object_is_a_sentence_or_a_new_run(clones: Path) -> None:
    entry = send(clones, "ingest@ann", "one", {}).entry
    assert entry
    shutil.rmtree(clones / "remote" / "files")
    assert send(clones, "ingest@ann", "two", {}).how == "ran"
    shutil.rmtree(clones / "remote" / "files")
    shutil.rmtree(clones / "one" / ".dvc" / "cache")
    shutil.rmtree(clones / "one" / "data" / "subjects")
    with pytest.raises(ArtifactError, match="ingest cannot be fetched from the DVC remote"):
        send(clones, "matting@ann", "one", {"ingest@ann": entry})


def test_without_a_remote_nothing_starts(clones: Path) -> None:
    (clones / "driver" / ".dvc" / "config.local").unlink()
    with inside(clones / "driver"), pytest.raises(ParameterError, match="no DVC remote"):
        machines.check_runner("dask", "tcp://127.0.0.1:9")


def test_a_scheduler_that_is_not_there_is_a_sentence(
    clones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "PATIENCE", 1)
    monkeypatch.chdir(clones / "driver")
    with pytest.raises(ParameterError, match="No Dask scheduler answers at 127"):
        machines.check_runner("dask", "127.0.0.1:9")


def test_capacity_counts_slots_memory_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEEDS, "geometry", Needs(memory=3, gpu=True))
    monkeypatch.setitem(NEEDS, "avatar", Needs(memory=5, gpu=True))
    machine = Capacity(slots=3, memory=8, gpus=1)
    assert machine.allows("ingest@a", ["ingest@b", "ingest@c"])
    assert not machine.allows("ingest@a", ["ingest@b", "ingest@c", "ingest@d"])
    assert not machine.allows("avatar@a", ["geometry@b"]), "one GPU"
    assert Capacity(3, 8, gpus=2).allows("avatar@a", ["geometry@b"])
    assert Capacity(3, 8, gpus=0).allows("avatar@a", ["geometry@b"]), "no GPU: the CPU does it"
    assert not Capacity(3, 7, gpus=2).allows("avatar@a", ["geometry@b"]), "memory"
    assert Capacity(3, 1).allows("avatar@a", []), "one alone always may"


def test_a_stage_gets_its_share_of_the_cores_and_no_more_than_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert machines._threads("avatar@ann", 1) == 8
    assert machines._threads("avatar@ann", 3) == 2
    assert machines._threads("avatar@ann", 20) == 1
    monkeypatch.setitem(NEEDS, "matting", Needs(cores=3))
    assert machines._threads("matting@ann", 1) == 3


CLAIM = """
import sys
from flows.resources import claim_gpu
from tasks.needs import Needs
with claim_gpu(Needs(gpu=True), ["7", "8"]) as variables:
    print(variables["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


def test_a_gpu_has_one_stage_at_a_time_also_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert machines.needs_of("ingest@ann") == NEEDS["ingest"]
    assert machines.needs_of("film@ann") == Needs()
    with claim_gpu(Needs(gpu=False), ["7"]) as none, claim_gpu(Needs(gpu=True), []) as cpu:
        assert (none, cpu) == ({}, {})
    holder = subprocess.Popen(
        [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "7\n"
    with claim_gpu(Needs(gpu=True), ["7", "8"]) as variables:
        assert variables == {"CUDA_VISIBLE_DEVICES": "8"}
        holder.kill()
        holder.communicate()
        with claim_gpu(Needs(gpu=True), ["7", "8"]) as freed:
            assert freed == {"CUDA_VISIBLE_DEVICES": "7"}


def test_an_inbox_gives_new_complete_captures_a_free_name(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    (inbox / "Anna Müller").mkdir(parents=True)
    for path in ("Anna Müller/a.mp4", "bob.mp4", "known.mp4", ".hidden", "arriving.mp4"):
        (inbox / path).write_text("video")
    for path in [*inbox.rglob("*"), inbox]:
        os.utime(path, (0, 0))
    os.utime(inbox / "arriving.mp4")
    known = [
        Subject("other", inbox / "known.mp4", "auto", {}),
        Subject("bob", tmp_path / "elsewhere.mp4", "auto", {}),
    ]
    found = [(each.name, each.capture.name) for each in arrivals(inbox, known, quiet=60)]
    assert found == [("Anna-M-ller", "Anna Müller"), ("bob-2", "bob.mp4")]
    assert list(arrivals(tmp_path / "none", known, 60)) == []


def test_an_inbox_leaves_failed_subjects_to_a_person(clones: Path) -> None:
    with inside(clones / "one"):
        assert unfinished(["ann", "bob"]) == ["ann", "bob"]
        (clones / "one" / "stage.py").write_text("import sys; sys.exit('error: too dark.')")
        with pytest.raises(stage_process.StageFailed, match="too dark"):
            making.make("ingest@ann", threads=1)
        assert unfinished(["ann", "bob"]) == ["bob"]
        (clones / "one" / "stage.py").write_text("import os; os.kill(os.getpid(), 9)")
        with pytest.raises(stage_process.StageFailed, match="killed"):
            making.make("ingest@bob", threads=1)
        assert unfinished(["ann", "bob"]) == ["bob"], "a kill is nobody's mistake"


def test_deployments_name_flows_that_take_their_parameters() -> None:
    from prefect.flows import load_flow_from_entrypoint

    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    assert {each["name"] for each in deployments} == {"subject", "batch", "watch"}
    for each in deployments:
        flow = load_flow_from_entrypoint(str(ROOT / each["entrypoint"]))
        assert flow.name == each["name"]
        flow.validate_parameters(each.get("parameters", {}))


def test_a_server_that_does_not_answer_is_a_sentence() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(
            GhaError, match=r"127\.0\.0\.1:9/api does not answer .*unset PREFECT_API_URL"
        ),
    ):
        server.reach()


def test_no_server_hears_of_artifacts_unless_one_is_configured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []
    monkeypatch.setattr(server, "_create", lambda kind, **content: made.append(content["key"]))
    monkeypatch.setattr(server, "ARTIFACTS", tmp_path)
    (tmp_path / "ann" / "tracking").mkdir(parents=True)
    picture = encode_jpeg(np.zeros((900, 1600, 3), np.uint8))
    (tmp_path / "ann" / "tracking" / "preview.jpg").write_bytes(picture)
    monkeypatch.setattr(server, "in_use", lambda: False)
    server.show_preview("tracking@ann")
    with server.progress("tracking@ann"):
        pass
    assert made == []
    monkeypatch.setattr(server, "in_use", lambda: True)
    server.show_preview("tracking@ann")
    server.show_preview("tracking@missing")
    with server.progress("tracking@ann"):
        pass
    assert made == ["preview-tracking-ann", "progress-tracking-ann"]
    assert decode_image(server._small(picture)).shape == (360, 640, 3)


@pytest.mark.slow
def test_experiments_differences_and_plots_of_stock_dvc(clones: Path) -> None:
    root = clones / "driver"
    with inside(root):
        git("add", "-A")
        git("commit", "-qm", "as it is")
        dvc("repro", "-q", "ingest@ann", "matting@ann")
        git("add", "-f", "dvc.lock")  # what `metrics diff` compares with
        git("commit", "-qm", "made")
        dvc("exp", "run", "-q", "-S", "ingest.images=2", "matting@ann")
        assert runs(Path()) == ["ingest@ann", "matting@ann"] * 2
        assert [stage.reasons for stage in dvc_bridge.plan(["ann"])] == [(), ()]
        (row,) = [line for line in dvc("metrics", "diff").splitlines() if "words" in line]
        assert row.split()[1:] == ["words", "3", "6", "3"]
        dvc("plots", "diff", "HEAD")
        page = Path("dvc_plots/index.html").read_text()
    assert page.count("curve.svg") >= 2
    assert not re.search(r'<script[^>]+src|(?:src|href)="(?:https?:)?//', page), (
        "the page loads something"
    )


def git(*arguments: str) -> None:
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *person, *arguments], check=True)


def dvc(*arguments: str) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_parameter_has_a_name_that_dvcs_run_cache_leaves_out() -> None:
    """DVC 3.67 drops every key named size or nfiles, however deep, from the key of a run: with
    ``ingest.size`` it gave the images of another size back as if they had just been made."""

    def names(model: type[BaseModel]) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield name
            for inner in [field.annotation, *get_args(field.annotation)]:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from names(inner)

    found = {name for model in (Splits, *map(params_type, STAGES)) for name in names(model)}
    assert {"image_size", "test_cameras", "steps"} <= found
    assert not found & {Meta.PARAM_SIZE, Meta.PARAM_NFILES}


def start_worker(clone: Path, address: str) -> subprocess.Popen[bytes]:
    arguments = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    with (clone / "worker.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_worker", address, *arguments],
            cwd=clone,
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
def test_a_lost_worker_costs_its_stage_and_one_with_other_code_is_refused(
    clones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clones / "driver")
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster:
        address = cluster.scheduler_address
        with pytest.raises(ParameterError, match="has no workers"):
            machines.check_runner("dask", address)
        workers = {name: start_worker(clones / name, address) for name in ("one", "two")}
        try:
            cluster.wait_for_workers(2, timeout=60)
            with machines.hands("dask", address, 1) as hands:
                assert hands.capacity.slots == 2
                kill_in_the_middle(clones, workers, hands)
            survivor = next(name for name, each in workers.items() if each.poll() is None)
            with (clones / survivor / "stage.py").open("a") as file:
                file.write("# newer")
            with pytest.raises(ParameterError, match=rf"/{survivor} has other code.*stage\.py"):
                machines.check_runner("dask", address)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()


def kill_in_the_middle(
    clones: Path, workers: dict[str, subprocess.Popen[bytes]], hands: Here | Workers
) -> None:
    """Of ingest@ann, by SIGKILL of its worker; the other one makes it and what follows."""
    for name in workers:
        (clones / name / "ann.slow").touch()
    first, second = dvc_bridge.plan(["ann"])
    with ThreadPoolExecutor() as pool:
        future = pool.submit(hands.make, first, {})
        while not (busy := [name for name in workers if runs(clones / name)]):
            assert not future.done(), future.result()
            time.sleep(0.05)
        (victim,) = busy
        for name in workers:
            (clones / name / "ann.slow").unlink()
        workers[victim].kill()
        outcome = future.result()
    (other,) = set(workers) - {victim}
    assert outcome.entry
    assert outcome.how == "ran"
    assert (runs(clones / victim), runs(clones / other)) == (["ingest@ann"], ["ingest@ann"])
    record = stage_process.read_record("ingest@ann")
    assert record
    assert record.state == "done"
    assert "made ingest of ann" in stage_process.log_path("ingest@ann").read_text()

    made = {"ingest@ann": outcome.entry}
    made["matting@ann"] = hands.make(second, made).entry or {}
    dvc_bridge.commit(made)
    hands.collect(made)
    assert not any(stage.reasons for stage in dvc_bridge.plan(["ann"]))
    assert runs(clones / "driver") == []
