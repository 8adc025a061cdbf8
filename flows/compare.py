"""``gha compare``: evaluated avatars side by side, of several subjects or of several commits."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from flows import dvc_bridge
from gha_core.artifacts.stage_folder import read_json
from gha_core.avatar import Avatar
from gha_core.errors import ArtifactError, GhaError, ParameterError
from gha_core.evaluation import catalogue
from gha_core.evaluation.comparison import (
    LEVEL,
    RESAMPLES,
    Contender,
    Interval,
    Row,
    compare,
    disagreements,
    moments,
)
from gha_core.evaluation.report import page
from tasks.parameters import find_subject

SUBJECTS = Path("data", "subjects")
OUTPUTS = Path("outputs")
STAGES = ("ingest", "matting", "tracking", "avatar", "evaluation")


@dataclass(frozen=True)
class Comparison:
    """What people see: the console's table, sentences about it, and the page."""

    table: Table
    notes: list[str]
    page: Path


def compare_subjects(items: Sequence[str], driver: str | None, output: Path | None) -> Comparison:
    """Compare ``NAME`` (as it is now) and ``NAME@REVISION`` (as that commit's dvc.lock has it).

    Args:
        driver: SUBJECT or SUBJECT:SEQUENCE that moves all of them for the cross-identity scores.

    Raises:
        GhaError: fewer than two, an unknown subject or revision, one that is not evaluated, or
            whose results are neither in DVC's cache nor on the remote.
    """
    labels = list(dict.fromkeys(items))
    if len(labels) < 2:
        raise ParameterError(
            "Name at least two to compare, for example: gha compare anna bert, or: gha compare "
            "anna anna@HEAD~1"
        )
    if output is not None and output.is_dir():
        raise ParameterError(f"--output {output} is a folder; name the file to write.")
    with tempfile.TemporaryDirectory(prefix="gha-compare-") as scratch:
        contenders = [
            Contender(label, _artifacts(label, Path(scratch) / str(place)))
            for place, label in enumerate(labels)
        ]
        rows = compare(contenders)
        if not rows:
            raise ArtifactError("Nothing was held out of any of these, so there is no score.")
        hardest = rows[0].name[0]
        driven, about = _driven(contenders, driver) if driver else ({}, "")
        shown, problems = moments(contenders, hardest)
        notes = [*disagreements(contenders), *problems]
        by_task: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_task[row.name[0]].append(row)
        text = page(
            "compare.html.j2",
            labels=labels,
            notes=notes,
            tasks=by_task,
            moments=shown,
            widest=max((len(moment.drawn) for moment in shown), default=1),
            facts=_facts(contenders),
            driven=driven,
            about_driven=about,
            protocol={k: v for k, v in contenders[0].protocol.items() if isinstance(v, str | int)},
            catalogue=catalogue,
            level=LEVEL,
            resamples=RESAMPLES,
        )
    path = output or OUTPUTS / f"compare_{'_'.join(_file_name(label) for label in labels)}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text)
    temporary.replace(path)
    table = _table(labels, by_task[hardest], hardest)
    for name, values in driven.items():
        table.add_row(name, *(escape(value) for value in values))
    return Comparison(table, notes, path)


def _driven(contenders: Sequence[Contender], driver: str) -> tuple[dict[str, list[str]], str]:
    """Cross-identity scores, row by row, and how they were taken."""
    from tasks import cross_identity  # loads the tracker with all its libraries

    name, _, sequence = driver.partition(":")
    find_subject(Path(), name)
    tracking = SUBJECTS / name / "tracking"
    if not tracking.is_dir():
        raise ArtifactError(f"The driver {name} is not tracked yet. Run: gha run {name}")
    scores = [
        cross_identity.score(
            each.artifacts, Avatar.load(each.artifacts / "avatar"), tracking, sequence or None
        )
        for each in contenders
    ]
    identity = [
        f"not available: {each.missing}" if each.csim is None else f"{each.csim:.3f}"
        for each in scores
    ]
    about = (
        f"Driven by {driver}: {scores[0].frames} frames, seen by {scores[0].cameras} cameras of "
        "each avatar's own capture; what was drawn went through landmarks and tracking again. "
        "AED: mean difference of the expression coefficients found there from the driver's, APD: "
        "mean angle of the head's rotation from the driver's, CSIM: cosine of ArcFace embeddings "
        "of renderings and of photos of the avatar's own person."
    )
    return {
        "AED, cross-identity ↓": [f"{each.aed:.4f}" for each in scores],
        "APD (°), cross-identity ↓": [f"{each.apd:.2f}" for each in scores],
        "CSIM, cross-identity ↑": identity,
    }, about


def _artifacts(label: str, scratch: Path) -> Path:
    name, at, revision = label.partition("@")
    find_subject(Path(), name)
    folder = SUBJECTS / name if not at else _checked_out(name, revision, scratch)
    if not (folder / "evaluation" / "frames.parquet").exists():
        raise ArtifactError(f"{label} is not evaluated yet. Run: gha run {name}")
    return folder


def _checked_out(name: str, revision: str, scratch: Path) -> Path:
    """A folder of links into DVC's cache: the subject's artifacts as a commit has them."""
    lock = locked(revision)
    for stage in STAGES:
        entry = lock.get(f"{stage}@{name}")
        if entry is None:
            raise ArtifactError(
                f"dvc.lock of {revision} has no {stage} of {name}: it was not made by then."
            )
        for out in entry.get("outs", []):
            _link(out["md5"], scratch / Path(out["path"]).relative_to(SUBJECTS / name))
    return scratch


def locked(revision: str) -> dict[str, Any]:
    """The stages of dvc.lock as a commit has it, by name.

    Raises:
        GhaError: there is no such commit, or it has no lock file.
    """
    command = ["git", "show", f"{revision}:./dvc.lock"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["git failed"])[-1].removeprefix("fatal: ")
        why = why.rstrip(".")
        raise ParameterError(f"There is no dvc.lock at the revision {revision!r}: {why}.")
    try:
        return YAML(typ="safe").load(done.stdout).get("stages") or {}
    except (YAMLError, AttributeError):
        raise ArtifactError(f"dvc.lock of {revision} is not a lock file of DVC.") from None


def _link(md5: str, to: Path) -> None:
    """A file, or a folder of files, of DVC's cache; what is absent comes from the remote."""
    to.parent.mkdir(parents=True, exist_ok=True)
    content = dvc_bridge.object_path(md5)
    if not content.is_file():
        content = to.with_name(f".{to.name}.object")
        try:
            dvc_bridge.fetch_object(md5, content)
        except (GhaError, OSError) as error:
            why = " ".join(str(error).split()).rstrip(".")
            raise ArtifactError(
                f"{to.name} of that revision is neither in DVC's cache nor to be had from the "
                f"remote ({why}). Check the commit out and run: gha run"
            ) from None
    if not md5.endswith(".dir"):
        to.symlink_to(content.resolve())
        return
    for file in json.loads(content.read_text()):
        _link(file["md5"], to / file["relpath"])


def _facts(contenders: Sequence[Contender]) -> dict[str, list[str]]:
    summaries = [
        {**read_json(c.artifacts / "avatar/summary.json"), **read_json(
            c.artifacts / "evaluation/summary.json")}
        for c in contenders
    ]  # fmt: skip

    def column(form: str, *names: str) -> list[str]:
        return [
            form.format(*(each[name] for name in names))
            if all(name in each for name in names)
            else "not known"
            for each in summaries
        ]

    size = [
        f"{(c.artifacts / 'avatar/avatar.safetensors').stat().st_size / 1e6:.1f} MB"
        for c in contenders
    ]
    return {
        "Gaussians": column("{:,}", "gaussians"),
        "training steps": column("{:,}", "steps"),
        "size": size,
        "frames per second, as measured": column(
            "{} ({})", "frames_per_second", "frames_per_second_at"
        ),
    }


def _table(labels: Sequence[str], rows: Sequence[Row], task: str) -> Table:
    title = f"{catalogue.TASKS[task]}: {catalogue.TASK_PROTOCOLS[task]}"
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    table.add_column("score")
    for label in labels:
        table.add_column(escape(label), justify="right")
    for row in rows:
        _, region, metric = row.name
        kind = catalogue.METRICS[metric]
        cells = [
            _cell(value, change, metric)
            for value, change in zip(row.values, row.differences, strict=True)
        ]
        table.add_row(f"{kind.title}, {catalogue.REGIONS[region]}", *cells)
    return table


def _cell(value: Interval | None, change: Interval | None, metric: str) -> str:
    kind = catalogue.METRICS[metric]
    if value is None:
        return "[dim]not scored[/]"
    text = f"{value.mean:.{kind.digits}f} ±{(value.high - value.low) / 2:.{kind.digits}f}"
    if change is None:
        return text
    said = f"{change.mean:+z.{kind.digits}f} ±{(change.high - change.low) / 2:.{kind.digits}f}"
    if change.excludes_zero and kind.better:
        good = (change.mean > 0) == (kind.better == "higher")
        said = f"[{'green' if good else 'red'}]{said}[/]"
    return f"{text} ({said})"


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in label)
