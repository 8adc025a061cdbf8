"""A project of three quick stages per subject, for tests and benchmarks of the orchestration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from flows import dvc_bridge, stage_process

ROOT = Path(__file__).parents[1]

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


def write(folder: Path, subjects: Sequence[str] = ("ann", "bob")) -> None:
    """Fill ``folder``, a project under git and DVC, with code, parameters and captures."""
    (folder / "code").mkdir()
    for name, body in CODE.items():
        script = (STAGE + body + END).replace("NAME", name)
        (folder / "code" / f"{name}.py").write_text(script)
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text('{"read": {"times": 1}, "shout": {"mark": "!"}}')
    lines = [f"  {subject}: {{read: {{}}}}\n" for subject in subjects]
    (folder / "subjects.yaml").write_text("subjects:\n" + "".join(lines))
    for subject in subjects:
        capture = folder / "data" / "captures" / subject
        capture.mkdir(parents=True)
        (capture / "text").write_text(f"hello {subject} ")


def under_dvc(folder: Path) -> None:
    """Put ``folder`` under git and DVC, with this repository's settings."""
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    (folder / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvc/plots.html", ".dvcignore", ".gitignore"):
        (folder / name).write_bytes((ROOT / name).read_bytes())


def make_one(name: str) -> dvc_bridge.Outcome:
    """Make one stage of the current project fresh."""
    return dvc_bridge.execute(name, lambda command: stage_process.run(name, command, threads=1))


def make(names: Iterable[str] | None = None) -> list[str]:
    """Make all stages fresh, as the driver does; returns which ones ran, in order."""
    Path("runs").unlink(missing_ok=True)
    entries = {}
    for stage in dvc_bridge.plan(names):
        if stage.reasons:
            outcome = make_one(stage.name)
            if outcome.entry:
                entries[stage.name] = outcome.entry
    dvc_bridge.commit(entries)
    return ran()


def drive(jobs: int) -> None:
    """A driver without Prefect: makes all stages of the current project fresh, ``jobs`` at a time;
    one that is killed is tried again."""
    waiting = {stage.name: stage for stage in dvc_bridge.plan() if stage.reasons}
    running: dict[Future[dvc_bridge.Outcome], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for name, stage in list(waiting.items()):
                if len(running) < jobs and not {*waiting, *running.values()} & {*stage.upstream}:
                    del waiting[name]
                    running[pool.submit(make_one, name)] = name
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(done)
                try:
                    entry = done.result().entry
                except stage_process.StageFailed as failure:
                    if not failure.worth_retrying:
                        raise
                    running[pool.submit(make_one, name)] = name
                    continue
                dvc_bridge.commit({name: entry} if entry else {})


def add_remote(folder: Path) -> None:
    """Give the current project ``folder`` as its default remote, which is not trusted."""
    Path(".dvc/config.local").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {folder}\n    verify = true\n"
    )


def ran() -> list[str]:
    """Which stages have really run since ``make``, in order."""
    return Path("runs").read_text().split() if Path("runs").exists() else []


def dvc(*arguments: str, fails: bool = False) -> str:
    """What stock DVC says."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=False,
    )
    assert bool(done.returncode) == fails, done.stderr
    return done.stderr if fails else done.stdout
