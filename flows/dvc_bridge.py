"""The one file that touches DVC's internals: plan, check, execute, commit.

DVC's files are the only truth about what is fresh. What differs from ``dvc repro``: nothing here
holds the repository's lock while a stage runs, stages can run side by side, and ``dvc.lock`` is
written by one committer, in one piece. Stock ``dvc status`` and ``dvc repro`` find nothing to do
afterwards; tests/test_flows.py holds this file against stock DVC, and pyproject.toml pins its
minor version.

The project is the current folder, in every thread: parts of DVC resolve paths against it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from dvc.dependency import ParamsDependency
from dvc.dependency.base import DependencyDoesNotExistError
from dvc.dependency.param import MissingParamsError
from dvc.dvcfile import ProjectFile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.cache import _can_hash, _get_cache_hash
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.serialize import YAMLFileCorruptedError, dumps_yaml, load_yaml
from dvc_objects.fs.generic import copy

from gha_core.errors import ArtifactError, CaptureError, GhaError, ParameterError

logging.getLogger("dvc").setLevel(logging.ERROR)  # also silences its progress bars

LOCK_FILE = "dvc.lock"

Entry = dict[str, Any]
"""What ``dvc.lock`` says about one stage: its command and the hashes of all it reads and writes."""


@dataclass(frozen=True)
class Stage:
    """One stage of one subject as DVC sees it now.

    Attributes:
        name: ``stage@subject``.
        upstream: names of the stages whose outputs it reads.
        reasons: why its outputs cannot be used as they are, in words; none: it is fresh.
        exists: whether its outputs are there at all.
    """

    name: str
    upstream: tuple[str, ...]
    reasons: tuple[str, ...]
    exists: bool

    @property
    def stage(self) -> str:
        return self.name.split("@")[0]

    @property
    def subject(self) -> str:
        return self.name.partition("@")[2]


@dataclass(frozen=True)
class Outcome:
    """How a stage became fresh, and its new entry for ``dvc.lock`` if it needs one."""

    how: Literal["fresh", "restored", "ran"]
    entry: Entry | None = None


@dataclass(frozen=True)
class Order:
    """What another clone must know to make one stage exactly as the driver would.

    Attributes:
        name: ``stage@subject``.
        entry: what ``dvc.lock`` will say about it, without the hashes of its outputs.
        made: outputs of earlier stages that it reads: path and hash, as in an entry. They come from
            the remote; all else that it reads must be in the other clone already.
    """

    name: str
    entry: Entry
    made: tuple[Entry, ...]


def plan(subjects: Iterable[str] | None = None) -> list[Stage]:
    """All stages (of ``subjects``), upstream before downstream, with the reasons to run them.

    A stage that follows one that must run has that as its reason: whether it really runs is decided
    when its inputs are there, and an unchanged input ends the wave.

    Raises:
        GhaError: dvc.yaml, params.yaml, subjects.yaml or dvc.lock cannot be read.
    """
    wanted = None if subjects is None else set(subjects)
    with _sentences(), _repo() as repo:
        found = {
            name: stage
            for name, stage in _stages(repo).items()
            if wanted is None or name.partition("@")[2] in wanted
        }
        upstream = _upstream(found.values())
        planned: dict[str, Stage] = {}
        for name in TopologicalSorter(upstream).static_order():
            stage = found[name]
            reasons = _reasons(stage)
            follows = [up for up in sorted(upstream[name]) if planned[up].reasons]
            reasons += [f"follows {up}" for up in follows] if not reasons else []
            planned[name] = Stage(
                name,
                tuple(sorted(upstream[name])),
                tuple(reasons),
                all(out.exists for out in stage.outs),
            )
        return list(planned.values())


def execute(name: str, run: Callable[[str], None]) -> Outcome:
    """Make one stage fresh: nothing if it is, else restore it from the run cache, else run it.

    Its upstream must be fresh. Any number may execute side by side, in threads or processes; two
    callers of the same stage take turns, and the second finds it done.

    Args:
        run: runs the stage's command to its end in the project's folder; raises if it failed.

    Raises:
        GhaError: an input is missing, or a parameter that dvc.yaml lists is.
    """
    with _sentences(), _turn(name), _repo() as repo:
        stage = _stages(repo, name)[name]
        if not _reasons(stage):
            return Outcome("fresh")
        # Before the run: what is edited meanwhile is not what the stage has read, and must leave it
        # stale.
        for dependency in stage.deps:
            dependency.save()
        if _restored(stage):
            how: Literal["restored", "ran"] = "restored"
        else:
            how = "ran"
            run(stage.cmd)
        for out in stage.outs:
            out.save()
            if how == "ran":
                out.commit()
        entry = dict(to_single_stage_lockfile(stage))
        if how == "ran":
            repo.stage_cache.save(stage)
        return Outcome(how, entry)


def commit(entries: Mapping[str, Entry]) -> None:
    """Merge ``entries`` (by stage name) into ``dvc.lock`` under DVC's lock; replaces it atomically.

    DVC itself rewrites the file in place, and a kill at that moment leaves it empty.
    """
    if not entries:
        return
    with _sentences(), _repo() as repo, repo.lock:
        path = Path(LOCK_FILE)
        content = (load_yaml(str(path)) or {}) if path.exists() else {}
        stages = content.get("stages") or {}
        stages.update(entries)
        temporary = path.with_name(f".{LOCK_FILE}.writing")
        with temporary.open("w") as file:
            file.write(dumps_yaml({**content, "schema": "2.0", "stages": stages}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def remote() -> str:
    """The name of the default DVC remote.

    Raises:
        ParameterError: none is configured.
    """
    with _sentences(), _repo() as repo:
        if name := repo.config["core"].get("remote"):
            return name
    raise ParameterError(
        "There is no DVC remote, and workers exchange artifacts through one. Add it in every "
        "clone: dvc remote add --default NAME URL (docs/machines.md)."
    )


def code() -> dict[str, str]:
    """Path -> hash of all code that any stage depends on, as it is in this clone."""
    with _sentences(), _repo() as repo:
        dependencies = {
            dependency.def_path: dependency
            for stage in _stages(repo).values()
            for dependency in stage.deps
            if not isinstance(dependency, ParamsDependency)
            and Path(dependency.def_path).parts[0] != "data"
        }
        return {path: dependencies[path].get_hash().value for path in sorted(dependencies)}


def order(name: str, upstream: Iterable[str], made: Mapping[str, Entry]) -> Order:
    """What another clone needs to make the stage ``name``.

    Args:
        upstream: the stages that write what it reads; all are fresh.
        made: new entries, which are not in ``dvc.lock`` yet. The outputs of other stages are pushed
            to the remote unless they are there.

    Raises:
        GhaError: an input is missing, or the remote cannot be reached.
    """
    with _sentences(), _repo() as repo:
        outs: dict[str, Entry] = {}
        for up in upstream:
            entry = made.get(up) or to_single_stage_lockfile(_stages(repo, up)[up])
            if up not in made:
                _push(repo, entry["outs"])
            outs |= {out["path"]: out for out in entry["outs"]}
        stage = _stages(repo, name)[name]
        read = [outs[dep.def_path] for dep in stage.deps if dep.def_path in outs]
        return Order(name, _inputs(stage, read), tuple(read))


def fulfil(order: Order, run: Callable[[str], None]) -> Outcome:
    """Make one stage in a clone that is not the driver's; like ``execute``.

    What it reads of earlier stages is pulled. What was made before, here or elsewhere, is restored.
    The outputs and the run cache's record of them are pushed, and the outcome always has an entry.

    Raises:
        ArtifactError: this clone is not at the driver's state.
        GhaError: the remote cannot be reached, or as ``execute``.
    """
    name = order.name
    with _sentences(), _repo() as repo:
        _pull(repo, order.made)
        _same(order, _inputs(_stages(repo, name)[name], order.made))
        _pull_run(repo, order.entry)
    outcome = execute(name, run)
    with _sentences(), _repo() as repo:
        entry = outcome.entry or dict(to_single_stage_lockfile(_stages(repo, name)[name]))
        _same(order, entry)
        _push(repo, entry["outs"])
        _push_run(repo, entry)
    return Outcome(outcome.how, entry)


def collect(entries: Iterable[Entry]) -> None:
    """Bring the outputs of ``entries``, made in other clones, into this one."""
    outs = [out for entry in entries for out in entry["outs"]]
    if outs:
        with _sentences(), _repo() as repo:
            _pull(repo, outs)


@contextmanager
def _repo() -> Iterator[Repo]:
    # Waits for its lock: a person's `dvc repro` holds it only between stages.
    with Repo(_wait_for_lock=True) as repo:
        yield repo


def _stages(repo: Repo, only: str | None = None) -> dict[str, PipelineStage]:
    file = ProjectFile(repo, str(Path(repo.root_dir) / "dvc.yaml"))
    return {only: file.stages[only]} if only else dict(file.stages.items())


def _upstream(stages: Iterable[PipelineStage]) -> dict[str, set[str]]:
    """Stage name -> names of the stages that write what it reads."""
    stages = list(stages)
    writers = {Path(out.fs_path): stage.name for stage in stages for out in stage.outs}
    parents = {parent: name for path, name in writers.items() for parent in path.parents}
    upstream: dict[str, set[str]] = {}
    for stage in stages:
        paths = [Path(dep.fs_path) for dep in stage.deps]
        upstream[stage.name] = {
            found[candidate]
            for path in paths
            for found, candidates in ((writers, [path, *path.parents]), (parents, [path]))
            for candidate in candidates
            if candidate in found
        }
    return upstream


def _reasons(stage: PipelineStage) -> list[str]:
    if not any(out.hash_info for out in stage.outs):
        return ["never run"]
    reasons = ["its command changed"] if stage.changed_stage() else []
    for dependency in stage.deps:
        for path, status in dependency.status().items():
            if isinstance(dependency, ParamsDependency) and isinstance(status, dict):
                reasons += _changed_parameters(dependency)
            else:
                reasons.append(f"{path} {'is missing' if status == 'deleted' else 'changed'}")
    words = {"deleted": "is missing", "not in cache": "is not in the cache"}
    for out in stage.outs:
        for path, status in out.status().items():
            reasons.append(f"output {path} {words.get(status, 'was altered')}")
    return reasons


def _changed_parameters(dependency: ParamsDependency) -> list[str]:
    old, new = dependency.hash_info.value or {}, dependency.read_params()
    reasons = []
    for name in dependency.params:
        for path, before, after in _differences(name, old.get(name), new.get(name)):
            reasons.append(f"{path}: {_short(before)} → {_short(after)}")
    return reasons


def _differences(path: str, old: object, new: object) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=str):
            yield from _differences(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


def _short(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _restored(stage: PipelineStage) -> bool:
    """Check out the outputs of an earlier run with the same command and inputs, if it is known."""
    if not _can_hash(stage):
        return False
    cache = stage.repo.stage_cache
    known = cache._load(stage)
    if not known:
        return False
    earlier = cache._create_stage(known, wdir=stage.wdir)
    if not earlier.outs_cached():
        return False
    for out in earlier.outs:
        out.checkout(force=True)
    return True


def _inputs(stage: PipelineStage, made: Iterable[Entry]) -> Entry:
    """The part of the stage's entry that says what it reads; ``made`` is believed, not hashed."""
    StageLoader.fill_from_lock(stage, {"deps": list(made)})
    believed = {out["path"] for out in made}
    for dependency in stage.deps:
        if dependency.def_path not in believed:
            dependency.save()
    entry = dict(to_single_stage_lockfile(stage))
    return {**entry, "outs": [{"path": out["path"]} for out in entry["outs"]]}


def _same(order: Order, found: Entry) -> None:
    """Raise if ``found`` does not read what ``order`` says."""
    wanted = order.entry
    reasons = [] if found["cmd"] == wanted["cmd"] else ["dvc.yaml has another command"]
    for file, values in wanted.get("params", {}).items():
        for path, theirs, ours in _differences("", values, found.get("params", {}).get(file, {})):
            there = f"{_short(theirs)} for the driver"
            reasons.append(f"{file}: {path.lstrip('.')} is {_short(ours)} here and {there}")
    hashes = {dep["path"]: dep.get("md5") for dep in found.get("deps", [])}
    for dep in wanted.get("deps", []):
        if hashes.get(dep["path"]) != dep.get("md5"):
            reasons.append(f"{dep['path']} is not what the driver has")
    if reasons:
        raise ArtifactError(
            f"{order.name} cannot be made in the clone {Path.cwd()}: {'; '.join(reasons)}. Bring "
            "it to the driver's commit (git pull); captures must be the same files there."
        )


def _pull(repo: Repo, outs: Iterable[Entry]) -> None:
    """Make the workspace have ``outs`` (path and hash, as in an entry)."""
    stage = _of_outs(repo, outs)
    _fetch(repo, stage)
    if missing := [out.def_path for out in stage.outs if out.changed_cache()]:
        raise ArtifactError(
            f"{', '.join(missing)} cannot be fetched from the DVC remote, whole and unaltered. "
            "Where it was made run: dvc push"
        )
    for out in stage.outs:
        out.checkout(force=True)


def _push(repo: Repo, outs: Iterable[Entry]) -> None:
    for objects in _of_outs(repo, outs).get_used_objs(push=True).values():
        if failed := repo.cloud.push(objects).failed:
            raise ArtifactError(f"{len(failed)} files could not be sent to the DVC remote.")


def _fetch(repo: Repo, stage: PipelineStage) -> None:
    if not stage.outs_cached():
        # By force: without it DVC asks a person what to do about what the remote lacks.
        for objects in stage.get_used_objs(force=True).values():
            repo.cloud.pull(objects)


def _of_outs(repo: Repo, outs: Iterable[Entry]) -> PipelineStage:
    return repo.stage_cache._create_stage({"cmd": "-", "outs": list(outs)})


def _pull_run(repo: Repo, entry: Entry) -> None:
    """What the remote's run cache knows about these inputs, and the outputs that it names."""
    odb = repo.cloud.get_remote_odb(hash_name="md5-dos2unix")
    cache = repo.cache.legacy
    folder = _run_folder(entry)
    there = odb.fs.join(odb.path, *folder)
    here = Path(cache.path, *folder)
    if not here.exists() and odb.fs.exists(there):
        here.parent.mkdir(parents=True, exist_ok=True)
        for file in odb.fs.find(there):
            copy(odb.fs, file, cache.fs, str(here / odb.fs.name(file)))
    for path in sorted(here.iterdir()) if here.exists() else []:
        # What the remote has lost is made again.
        _fetch(repo, _of_outs(repo, load_yaml(str(path))["outs"]))


def _push_run(repo: Repo, entry: Entry) -> None:
    odb = repo.cloud.get_remote_odb(hash_name="md5-dos2unix")
    path = (*_run_folder(entry), _get_cache_hash(entry))
    here, there = Path(repo.cache.legacy.path, *path), odb.fs.join(odb.path, *path)
    if here.exists() and not odb.fs.exists(there):
        copy(repo.cache.legacy.fs, str(here), odb.fs, there)


def _run_folder(entry: Entry) -> tuple[str, str, str]:
    key = _get_cache_hash(dict(entry), key=True)
    return "runs", key[:2], key


@contextmanager
def _turn(name: str) -> Iterator[None]:
    folder = Path(".dvc", "tmp", "gha")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors of DVC that a user can cause, in our words."""
    try:
        yield
    except GhaError:
        raise
    except DependencyDoesNotExistError as error:
        path = _path(error)
        if Path(path).parent.name == "captures":
            raise CaptureError(
                f"The capture {path} does not exist. Register it again with: gha add, or for the "
                "demo run: gha demo."
            ) from None
        raise ArtifactError(f"{path} does not exist, but a stage reads it.") from None
    except MissingParamsError as error:
        raise ParameterError(f"{error} Add them, with {{}} if there is nothing to set.") from None
    except YAMLFileCorruptedError as error:
        raise ArtifactError(
            f"{error}. If it is {LOCK_FILE}, delete it: all it said comes back from the run cache."
        ) from None
    except CycleError as error:
        raise ParameterError(f"dvc.yaml: stages wait for each other: {error.args[1]}.") from None
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ArtifactError(f"DVC: {error}{cause}") from error


def _path(error: DependencyDoesNotExistError) -> str:
    return str(error).removeprefix("dependency ").split(" does not")[0].strip("'\"")


__all__ = [
    "Entry",
    "Order",
    "Outcome",
    "Stage",
    "code",
    "collect",
    "commit",
    "execute",
    "fulfil",
    "order",
    "plan",
    "remote",
]
