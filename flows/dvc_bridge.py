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
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from graphlib import CycleError, TopologicalSorter
from operator import getitem
from pathlib import Path, PurePath
from typing import Any, Literal

import psutil
from dvc.dependency import ParamsDependency
from dvc.dependency.base import DependencyDoesNotExistError
from dvc.dependency.param import MissingParamsError
from dvc.dvcfile import ProjectFile
from dvc.exceptions import DvcException
from dvc.fs import localfs
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import (
    RWLockFileCorruptedError,
    RWLockFileFormatError,
    _edit_rwlock,
    rwlock,
)
from dvc.stage import PipelineStage
from dvc.stage.cache import _can_hash, _get_cache_hash
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_single_stage_lockfile
from dvc.utils.serialize import YAMLFileCorruptedError, load_path, load_yaml
from dvc_data.hashfile import check, load
from dvc_data.hashfile.build import build
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.obj import HashFile
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from dvc_objects.fs.generic import copy

from flows import lock_file
from flows.lock_file import Entry
from gha_core.errors import ArtifactError, CaptureError, GhaError, ParameterError

logging.getLogger("dvc").setLevel(logging.ERROR)  # also silences its progress bars

NEVER_RUN = "never run"
OURS = "gha"  # begins what DVC's lock file says about our stages
_OUTPUTS = ("outs", "metrics", "plots")
_UNSET = object()


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

    They come subject by subject, so that a batch finishes some before it has begun all.

    A stage that follows one that must run has that as its reason: whether it really runs is decided
    when its inputs are there, and an unchanged input ends the wave.

    Raises:
        GhaError: dvc.yaml, params.yaml, subjects.yaml or dvc.lock cannot be read.
    """
    wanted = None if subjects is None else set(subjects)
    with _sentences(), _repo(anew=True) as repo:
        entries = lock_file.read()
        found = {
            name: definition
            for name, definition in _definitions(_edition()).items()
            if wanted is None or name.partition("@")[2] in wanted
        }
        upstream = _upstream(found)
        workspace = _Workspace(repo)
        planned: dict[str, Stage] = {}
        for name in TopologicalSorter(upstream).static_order():
            reasons = _reasons(name, entries.get(name), workspace)
            follows = [up for up in sorted(upstream[name]) if planned[up].reasons]
            reasons += [f"follows {up}" for up in follows] if not reasons else []
            planned[name] = Stage(
                name,
                tuple(sorted(upstream[name])),
                tuple(reasons),
                all(Path(path).exists() for path in _paths(found[name], *_OUTPUTS)),
            )
        order = {subject: n for n, subject in enumerate(s.subject for s in planned.values())}
        return sorted(planned.values(), key=lambda stage: order[stage.subject])


def ancestors(stages: Mapping[str, Stage], name: str) -> list[str]:
    """All stages that ``name`` depends on, near ones first."""
    found = dict.fromkeys(stages[name].upstream)
    for up in stages[name].upstream:
        found |= dict.fromkeys(ancestors(stages, up))
    return list(found)


def execute(name: str, run: Callable[[str], None]) -> Outcome:
    """Make one stage fresh: nothing if it is, else restore it from the run cache, else run it.

    Its upstream must be fresh. Any number may execute side by side, in threads or processes; two
    callers of the same stage take turns, and the second finds it done.

    Args:
        run: runs the stage's command to its end in the project's folder; raises if it failed.

    Raises:
        GhaError: an input is missing, or a parameter that dvc.yaml lists is.
    """
    with _sentences(), turn(name), _repo() as repo, _as_dvc_does(repo, name):
        return _make(repo, name, run)


def commit(entries: Mapping[str, Entry]) -> None:
    """Merge ``entries`` (by stage name) into ``dvc.lock`` under DVC's lock."""
    if entries:
        with _sentences(), _repo() as repo, _alone(repo):
            lock_file.update(entries)


def accept(name: str) -> tuple[str, ...]:
    """Declare that the outputs of a stage are what its edited code would make: renew its entry.

    Returns:
        what was accepted, in the words of ``Stage.reasons``; nothing if the stage is fresh.

    Raises:
        GhaError: more than code changed, or its outputs or what it reads are not fresh.
    """
    subject = name.partition("@")[2]
    with _sentences(), turn(name), _repo() as repo:
        planned = {stage.name: stage for stage in plan([subject])}
        reasons = planned[name].reasons
        definition = _definitions(_edition())[name]
        edited = tuple(f"{path} changed" for path in _code(definition))
        others = [reason for reason in reasons if not reason.startswith(edited)]
        others += [f"{up} is not fresh" for up in ancestors(planned, name) if planned[up].reasons]
        if others:
            raise ArtifactError(
                f"{name} cannot be accepted: {'; '.join(others)}. Only an edit of code can, that "
                f"changes no output; run it instead: gha run {subject}"
            )
        if not reasons:
            return ()
        stage = _load(repo, name, lock_file.read_one(name))
        _read_inputs(stage)
        for out in stage.outs:
            out.save()
        repo.stage_cache.save(stage)
        with _alone(repo):
            lock_file.update({name: dict(to_single_stage_lockfile(stage))})
        return reasons


def forget(names: Collection[str]) -> None:
    """Take the entries of these stages out of ``dvc.lock``."""
    if names:
        with _sentences(), _repo() as repo, _alone(repo):
            lock_file.update({}, gone=names)


def declared() -> list[str]:
    """The names of all stages that dvc.yaml declares."""
    with _sentences():
        return list(_definitions(_edition()))


def object_path(md5: str) -> Path:
    """Where DVC's cache keeps the object of this hash, present or not."""
    with _repo() as repo:
        return Path(repo.cache.local.oid_to_path(md5))


def fetch_object(md5: str, to: Path) -> None:
    """Copy the object of this hash from the default remote to ``to``; its content is not checked.

    Raises:
        GhaError: there is no remote, it cannot be reached, or it has no such object.
    """
    with _sentences(), _repo() as repo:
        remote = repo.cloud.get_remote_odb(hash_name="md5")
        remote.fs.get_file(remote.oid_to_path(md5), str(to))


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


def unverified() -> list[str]:
    """The names of the remotes from which DVC takes what it fetches for good, unhashed."""
    with _repo() as repo:
        remotes = repo.config["remote"].items()
        return [name for name, settings in remotes if not settings.get("verify")]


def code() -> dict[str, str]:
    """Path -> hash of all code that any stage depends on, as it is in this clone; "" if missing."""
    with _sentences(), _repo() as repo:
        definitions = _definitions(_edition()).values()
        paths = {path for each in definitions for path in _code(each)}
        workspace = _Workspace(repo)
        return {path: workspace.hash_of(path) for path in sorted(paths)}


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
            entry = made.get(up) or lock_file.read_one(up) or {"outs": []}
            if up not in made:
                _push(repo, entry["outs"])
            outs |= {out["path"]: out for out in entry["outs"]}
        read = [
            outs[path] for path in _paths(_definitions(_edition())[name], "deps") if path in outs
        ]
        return Order(name, _inputs(repo, name, read), tuple(read))


def fulfil(order: Order, run: Callable[[str], None]) -> Outcome:
    """Make one stage in a clone that is not the driver's; like ``execute``.

    What it reads of earlier stages is pulled. What was made before, here or elsewhere, is restored.
    The outputs and the run cache's record of them are pushed, and the outcome always has an entry.

    Raises:
        ArtifactError: this clone is not at the driver's state.
        GhaError: the remote cannot be reached, or as ``execute``.
    """
    name = order.name
    with _sentences(), turn(name), _repo() as repo:
        _bring(repo, order.made)
        with _as_dvc_does(repo, name):
            _same(order, _inputs(repo, name, order.made))
            _pull_run(repo, order.entry)
            outcome = _make(repo, name, run)
            entry = outcome.entry or lock_file.read_one(name) or {}
            _same(order, entry)
            _push(repo, entry["outs"])
            _push_run(repo, entry)
    return Outcome(outcome.how, entry)


def collect(entries: Iterable[Entry]) -> None:
    """Bring the outputs of ``entries``, made in other clones, into this one."""
    with _sentences(), _repo() as repo:
        _bring(repo, [out for entry in entries for out in entry["outs"]])


@contextmanager
def turn(name: str, wait: bool = True) -> Iterator[None]:
    """Hold a stage for oneself; it is let go however the process ends.

    Raises:
        BlockingIOError: another process has it, and ``wait`` is false.
    """
    with _flock(name, wait):
        yield


@contextmanager
def _alone(repo: Repo) -> Iterator[None]:
    """Be the only one who adds to the cache or writes ``dvc.lock``, among ours and DVC's.

    Where files cannot be cloned, two that add the same content at the same time destroy it: DVC
    opens the object anew to try whether they can, and the other's artifact may be a link to it.
    """
    # Ours first, because DVC's looks only twice a second whether it is its turn.
    with _flock("cache"), repo.lock:
        yield


@contextmanager
def _flock(name: str, wait: bool = True) -> Iterator[None]:
    folder = Path(".dvc", "tmp", "gha")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def _as_dvc_does(repo: Repo, name: str) -> Iterator[None]:
    """Hold what a stage reads and writes."""
    stage = _load(repo, name, None)
    reads, writes = ([each.fs_path for each in some] for some in (stage.deps, stage.outs))
    with _held(repo, f"{OURS} {name}", reads, writes):
        yield


@contextmanager
def _held(repo: Repo, who: str, reads: Sequence[str], writes: Sequence[str]) -> Iterator[None]:
    """Hold paths against a person's ``dvc repro`` and against each other, in DVC's own way, and
    wait while somebody else has them.

    Theirs stops with "busy" where ours is at work; ours goes on when theirs has ended.
    """
    with ExitStack() as held:
        while True:
            lock = rwlock(repo.tmp_dir, repo.fs, who, reads, writes, hardlink=False)
            try:
                held.enter_context(lock)
                break
            except LockError:
                if not _forget_the_dead(repo, who):
                    time.sleep(0.2)
            except (RWLockFileCorruptedError, RWLockFileFormatError):
                # DVC writes it in place, and somebody was killed meanwhile.
                Path(repo.tmp_dir, "rwlock").unlink(missing_ok=True)
        yield


def _forget_the_dead(repo: Repo, who: str) -> bool:
    """Take out of DVC's lock file who is gone; whether there was one.

    DVC knows processes by their id, which a killed one still has until its parent asks, and which
    another has after a restart. A stage of ours holds its turn as long as it is at work.
    """

    def gone(info: dict[str, Any]) -> bool:
        owner, _, name = str(info["cmd"]).partition(" ")
        if info["cmd"] == who:
            return bool(info["pid"] != os.getpid())  # it is our turn, so it is not theirs
        if owner == OURS:
            with suppress(BlockingIOError), turn(name, wait=False):
                return True
            return False
        try:
            return bool(psutil.Process(info["pid"]).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    with _edit_rwlock(repo.tmp_dir, repo.fs, hardlink=False) as lock:
        before = sum(map(len, lock["read"].values())) + len(lock["write"])
        for path, readers in list(lock["read"].items()):
            if left := [info for info in readers if not gone(info)]:
                lock["read"][path] = left
            else:
                del lock["read"][path]
        for path, info in list(lock["write"].items()):
            if gone(info):
                del lock["write"][path]
        return before > sum(map(len, lock["read"].values())) + len(lock["write"])


class _Workspace:
    """What lies in the workspace while a plan is made. Each path is read once: seven hundred stages
    share a handful of code folders."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self._objects: dict[tuple[str, str], HashFile | None] = {}

    def present(self, path: str, algorithm: str) -> HashFile | None:
        """The hashed content of a file or folder of the project; None if it is not there."""
        key = path, algorithm
        if key not in self._objects:
            self._objects[key] = self._hashed(path, algorithm) if Path(path).exists() else None
        return self._objects[key]

    def changes(self, path: str, was: HashInfo) -> str | None:
        """How a path differs from what it ``was``, in words; None: not at all."""
        now = self.present(path, was.name or "md5")
        if now is None:
            return "is missing"
        if now.hash_info == was:
            return None
        return f"changed{self._members(was, now)}"

    def hash_of(self, path: str) -> str:
        """Of a file or folder of the project, as DVC hashes what stages read; "" without it."""
        now = self.present(path, "md5")
        return now.hash_info.value or "" if now else ""

    def cached(self, content: HashInfo) -> bool:
        """Whether all of ``content`` is in DVC's cache."""
        try:
            check(self.repo.cache.local, load(self.repo.cache.local, content))
        except (FileNotFoundError, ObjectFormatError):
            return False
        return True

    def _hashed(self, path: str, algorithm: str) -> HashFile:
        odb, ignore = self.repo.cache.local, self.repo.dvcignore
        return build(
            odb, str(Path(path).absolute()), localfs, algorithm, ignore=ignore, dry_run=True
        )[2]

    def _members(self, was: HashInfo, now: HashFile) -> str:
        """Which files of a folder changed, if the cache still knows the old ones."""
        if not (isinstance(now, Tree) and was.isdir):
            return ""
        try:
            old = Tree.load(self.repo.cache.local, was)
        except (FileNotFoundError, ObjectFormatError):
            return ""
        before, after = ({"/".join(key): info for key, _, info in tree} for tree in (old, now))
        names = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
        words = [
            f"{'' if n in before else 'new '}{n}{'' if n in after else ' is gone'}" for n in names
        ]
        more = [f"{len(words) - 3} more"] if len(words) > 3 else []
        return f" ({', '.join([*words[:3], *more])})"


_open = threading.local()


@contextmanager
def _repo(anew: bool = False) -> Iterator[Repo]:
    """The project, for this thread. It stays open: opening it takes longer than most checks."""
    settings = [Path(name) for name in (".dvcignore", ".dvc/config", ".dvc/config.local")]
    key = Path.cwd(), *(path.stat().st_mtime_ns for path in settings if path.exists())
    if anew or getattr(_open, "key", None) != key:
        # Waits for its lock: a person's `dvc repro` holds it only between stages.
        _open.key, _open.repo = key, Repo(_wait_for_lock=True)
    yield _open.repo


Edition = tuple[tuple[str, int, int], ...]


def _edition() -> Edition:
    """Which state of the files that declare the stages (and their variables) this is."""
    stats = ((path.name, path.stat()) for path in sorted(Path.cwd().glob("*.yaml")))
    return ((str(Path.cwd()), 0, 0), *((n, s.st_mtime_ns, s.st_size) for n, s in stats))


@lru_cache(maxsize=1)
def _definitions(_edition: Edition) -> dict[str, dict[str, Any]]:
    """Stage name -> its declaration, without variables. Kept: a batch asks once per stage."""
    with _repo() as repo:
        resolver = _project_file(repo).resolver
        return {name: resolver.resolve_one(name)[name] for name in resolver.get_keys()}


def _project_file(repo: Repo) -> ProjectFile:
    return ProjectFile(repo, str(Path(repo.root_dir) / "dvc.yaml"))


def _load(repo: Repo, name: str, entry: Entry | None, without: str | None = None) -> PipelineStage:
    definition = deepcopy(_definitions(_edition())[name])
    if without:
        definition.pop(without, None)
    return StageLoader.load_stage(_project_file(repo), name, definition, entry or {})


def _paths(definition: Mapping[str, Any], *sections: str) -> list[str]:
    listed = [each for section in sections for each in definition.get(section) or []]
    return [next(iter(each)) if isinstance(each, dict) else each for each in listed]


def _code(definition: Mapping[str, Any]) -> list[str]:
    """What a stage reads that is neither a capture nor made by a stage."""
    return [path for path in _paths(definition, "deps") if PurePath(path).parts[0] != "data"]


def _upstream(definitions: Mapping[str, Mapping[str, Any]]) -> dict[str, set[str]]:
    """Stage name -> names of the stages that write what it reads."""
    writers = {
        PurePath(path): name
        for name, definition in definitions.items()
        for path in _paths(definition, *_OUTPUTS)
    }
    parents = {parent: name for path, name in writers.items() for parent in path.parents}
    upstream: dict[str, set[str]] = {}
    for name, definition in definitions.items():
        upstream[name] = set()
        for path in map(PurePath, _paths(definition, "deps")):
            writer = next((writers[p] for p in (path, *path.parents) if p in writers), None)
            upstream[name] |= {found for found in (writer, parents.get(path)) if found}
    return upstream


def _reasons(name: str, entry: Entry | None, workspace: _Workspace) -> list[str]:
    if not entry or not any(_recorded(entry, "outs").values()):
        return [NEVER_RUN]
    definition = _definitions(_edition())[name]
    # Its code and inputs are compared by path: DVC's objects for them cost more than all the rest.
    stage = _load(workspace.repo, name, entry, without="deps")
    reasons = ["its command changed"] if stage.changed_stage() else []
    read = _recorded(entry, "deps")
    for path in _paths(definition, "deps"):
        if change := workspace.changes(path, read.get(path, HashInfo("md5"))):
            reasons.append(f"{path} {change}")
    for dependency in stage.deps:
        reasons += _changed_parameters(dependency)
    for out in stage.outs:
        change = workspace.changes(out.def_path, out.hash_info)
        cached = not out.use_cache or workspace.cached(out.hash_info)
        if change == "is missing":
            reasons.append(f"output {out} is missing" + ("" if cached else ", in the cache too"))
        elif change:
            reasons.append(f"output {out} was altered{change.removeprefix('changed')}")
        elif not cached:
            reasons.append(f"output {out} is not in the cache")
    return reasons


def _recorded(entry: Entry, section: str) -> dict[str, HashInfo]:
    """Path -> what ``dvc.lock`` says it was."""
    found = {}
    for item in entry.get(section) or []:
        algorithm = item.get("hash", "md5-dos2unix")  # DVC 2 wrote none
        found[item["path"]] = HashInfo(algorithm, item.get("md5"))
    return found


def _changed_parameters(dependency: ParamsDependency) -> list[str]:
    old, new = dependency.hash_info.value or {}, _parameters(dependency)
    reasons = []
    for name in dependency.params:
        for path, before, after in _differences(name, old.get(name, _UNSET), new.get(name, _UNSET)):
            reasons.append(f"{path}: {_short(before)} → {_short(after)}")
    return reasons


def _parameters(dependency: ParamsDependency) -> dict[str, Any]:
    """The parameters that a stage reads, as they are now; without those that are not there."""
    if not dependency.exists:
        return {}
    stat = Path(dependency.fs_path).stat()
    content = _parameter_file(dependency.fs_path, stat.st_mtime_ns, stat.st_size)
    found = {}
    for name in dependency.params:
        with suppress(KeyError, TypeError):
            found[name] = reduce(getitem, name.split("."), content)
    return found


@lru_cache(maxsize=4)
def _parameter_file(path: str, _changed: int, _size: int) -> Any:
    return load_path(path, localfs)


def _differences(path: str, old: object, new: object) -> Iterator[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}, key=str):
            yield from _differences(f"{path}.{key}", old.get(key, _UNSET), new.get(key, _UNSET))
    elif old != new:
        yield path, old, new


def _short(value: object) -> str:
    text = "unset" if value is _UNSET else "null" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _make(repo: Repo, name: str, run: Callable[[str], None]) -> Outcome:
    """The body of ``execute``; hold the stage meanwhile."""
    entry = lock_file.read_one(name)
    if not _reasons(name, entry, _Workspace(repo)):
        return Outcome("fresh")
    stage = _load(repo, name, entry)
    _read_inputs(stage)
    if _restored(stage):
        how: Literal["restored", "ran"] = "restored"
    else:
        how = "ran"
        run(stage.cmd)
    for out in stage.outs:
        out.save()
    if how == "ran":
        with _alone(repo):
            for out in stage.outs:
                out.commit()
            repo.stage_cache.save(stage)
    return Outcome(how, dict(to_single_stage_lockfile(stage)))


def _read_inputs(stage: PipelineStage, known: Collection[str] = ()) -> None:
    """Hash what the stage reads, except those paths whose hash is ``known``; once and before it
    runs: what is edited meanwhile is not what it has read, and must leave it stale."""
    for dependency in stage.deps:
        if dependency.def_path in known:
            continue
        if isinstance(dependency, ParamsDependency):
            dependency.read_params = partial(_parameters, dependency)
        dependency.save()
        # DVC's run cache would hash it again, four times.
        dependency.get_hash = partial(getattr, dependency, "hash_info")
        if isinstance(tree := dependency.obj, Tree):
            # Not DVC's habit: the names and hashes of its files, so that a later plan can name
            # those that changed.
            dependency.local_cache.add(tree.path, tree.fs, tree.oid)


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


def _inputs(repo: Repo, name: str, made: Sequence[Entry]) -> Entry:
    """The part of the stage's entry that says what it reads; ``made`` is believed, not hashed."""
    stage = _load(repo, name, {"deps": list(made)})
    _read_inputs(stage, {out["path"] for out in made})
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


def _bring(repo: Repo, outs: Iterable[Entry]) -> None:
    """Make the workspace have ``outs`` (path and hash, as in an entry), from the remote.

    Those that it has are not touched: another stage may be reading them.
    """
    workspace = _Workspace(repo)
    recorded = {out["path"]: out for out in outs}
    wanted = _recorded({"outs": list(recorded.values())}, "outs")
    if not (paths := [path for path, was in wanted.items() if workspace.changes(path, was)]):
        return
    stage = _of_outs(repo, [recorded[path] for path in paths])
    with _held(repo, f"gha: {paths[0]}", [], [out.fs_path for out in stage.outs]):
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
        with _alone(repo):
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
            if not odb.fs.name(file).startswith("."):  # that is what a kill left half-written
                copy(odb.fs, file, cache.fs, str(here / odb.fs.name(file)))
    for path in sorted(here.glob("[!.]*")):
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
        raise ArtifactError(f"{error}. Correct it, or take it from git.") from None
    except CycleError as error:
        raise ParameterError(f"dvc.yaml: stages wait for each other: {error.args[1]}.") from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise ArtifactError(
            f"{error.strerror or error}{where}. When that is mended, run again: what other stages "
            "made is kept."
        ) from error
    except DvcException as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise ArtifactError(f"DVC: {error}{cause}") from error


def _path(error: DependencyDoesNotExistError) -> str:
    return str(error).removeprefix("dependency ").split(" does not")[0].strip("'\"")


__all__ = [
    "NEVER_RUN",
    "Entry",
    "Order",
    "Outcome",
    "Stage",
    "accept",
    "ancestors",
    "code",
    "collect",
    "commit",
    "declared",
    "execute",
    "fetch_object",
    "forget",
    "fulfil",
    "object_path",
    "order",
    "plan",
    "remote",
    "turn",
    "unverified",
]
