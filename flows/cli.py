"""The command line, ``gha``. Commands import what they need when they run: help is quick."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from gha_core.errors import GhaError

if TYPE_CHECKING:
    from flows.dvc_bridge import Stage
    from flows.machines import Runner
    from flows.subject import Result

STAGE_FAILED, USER_ERROR, INTERRUPTED = 1, 2, 130

HELP = """From footage of a person to a photoreal, drivable Gaussian head avatar.

[bold]gha demo[/]                   no footage at hand: films a synthetic person first\n
[bold]gha add anna anna.mp4[/]      registers a capture\n
[bold]gha run anna[/]               makes the avatar; later only what changed\n
[bold]gha status[/]                 what is fresh, what is not, and why\n
[bold]gha report anna[/]            how good it is

The stages are ingest, matting, landmarks, tracking, geometry, avatar, evaluation. What they do \
is set in params.yaml, and for one person in subjects.yaml. Everything also works with plain dvc.
"""

console = Console()


class _Sentences(TyperGroup):
    """Errors meant for people are printed as their sentence, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GhaError as error:
            Console(stderr=True).print(
                f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    cls=_Sentences,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=HELP,
)
assets_app = typer.Typer(cls=_Sentences, help="Model files: what, where from, under which licence.")
app.add_typer(assets_app, name="assets")


def _subject_names(incomplete: str) -> list[str]:
    from flows import project
    from tasks.parameters import read_subjects

    try:
        project.enter()
        return [name for name in read_subjects(Path()) if name.startswith(incomplete)]
    except GhaError:
        return []


Name = Annotated[str, typer.Argument(help="The subject.", autocompletion=_subject_names)]
Names = Annotated[list[str] | None, typer.Argument(help="Subjects.", autocompletion=_subject_names)]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A new name: letters, digits, - and _.")],
    path: Annotated[Path, typer.Argument(help="The capture: a folder or a video file.")],
    format: Annotated[str, typer.Option(help="auto, nersemble or monocular.")] = "auto",
    test_camera: Annotated[
        list[str] | None, typer.Option(help="Hold this camera out for evaluation; repeatable.")
    ] = None,
    test_sequence: Annotated[
        list[str] | None, typer.Option(help="Hold this sequence out; repeatable.")
    ] = None,
    test_last: Annotated[
        float | None, typer.Option(help="Hold out this last fraction of every sequence.")
    ] = None,
) -> None:
    """Register a capture under a name. Nothing is copied: data/captures/NAME links to it.

    Example: gha add anna ~/footage/anna.mp4 --test-last 0.2
    """
    path = path.expanduser().absolute()
    from flows import project
    from gha_core.capture import FORMATS, detect_format
    from gha_core.errors import ParameterError

    project.enter()
    if format == "auto":
        format = detect_format(path)
    elif format not in FORMATS:
        raise ParameterError(f"There is no format {format!r}; known are: {', '.join(FORMATS)}.")
    splits = {
        "test_cameras": test_camera,
        "test_sequences": test_sequence,
        "test_last": test_last,
    }
    chosen = {key: value for key, value in splits.items() if value}
    project.add_subject(name, path, format, chosen)
    console.print(f"{name}: {path} ({FORMATS[format]}). Next: gha run {name}", highlight=False)


@app.command()
def run(
    names: Names = None,
    all: Annotated[
        bool, typer.Option("--all", help="All subjects (also if none is named).")
    ] = False,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "evaluation",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Stages at a time; they share the cores.")
    ] = 1,
    runner: Annotated[str, typer.Option(help="threads, or dask: on Dask workers.")] = "threads",
    scheduler: Annotated[
        str | None, typer.Option(help="The Dask scheduler's address; without, one is started here.")
    ] = None,
) -> None:
    """Make everything of these subjects fresh: run what changed and what follows from it.

    Unchanged stages are cached, earlier results are restored. Kill it whenever you like: run it
    again and it goes on from there.
    """
    from flows import project

    project.enter()
    _run(_chosen(names if not all else None), until, jobs, runner, scheduler)


@app.command()
def status(names: Names = None) -> None:
    """Show subject by stage: fresh, stale and why, failed, missing, running."""
    from flows import project

    project.enter()
    subjects = _chosen(names)
    from flows import display, dvc_bridge
    from flows.stage_process import log_path, read_record

    stages = dvc_bridge.plan(subjects)
    states: dict[str, dict[str, str]] = {subject: {} for subject in subjects}
    notes = []
    for stage in stages:
        record = read_record(stage.name)
        state = "fresh"
        if record and record.state == "running":
            state = "running"
        elif stage.reasons:
            state = "stale" if stage.exists else "missing"
            if record and record.state == "failed":
                state = "failed"
                notes.append(f"{stage.name} failed: {record.error} Log: {log_path(stage.name)}")
            elif not stage.reasons[0].startswith("follows") and stage.reasons != ("never run",):
                notes.append(f"{stage.name}: {'; '.join(stage.reasons)}")
        states[stage.subject][stage.stage] = state
    console.print(display.status_table(states))
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)


@app.command()
def report(
    name: Name,
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Print the scores of a subject and the path of its report."""
    from flows import project

    project.enter()
    _chosen([name])
    from flows import display
    from gha_core.errors import ArtifactError

    path = display.report_path(name).resolve()
    if not path.exists():
        raise ArtifactError(f"{name} is not evaluated yet. Run: gha run {name}")
    if table := display.score_table([name]):
        console.print(table)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    if open:
        typer.launch(path.as_uri())


@app.command()
def reenact(
    name: Name,
    driver: Annotated[
        str, typer.Option(help="A sequence of NAME, another SUBJECT, or SUBJECT:SEQUENCE.")
    ],
    output: Annotated[Path | None, typer.Option(help="The video; default: in outputs/.")] = None,
    camera: Annotated[
        str | None, typer.Option(help="A camera of NAME; default: the most frontal one.")
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=16, help="Height of the avatar's picture, pixels.")
    ] = None,
) -> None:
    """Write a video of the avatar driven by another sequence or another subject.

    Example: gha reenact anna --driver bert:FREE
    """
    output = output and output.expanduser().absolute()
    from flows import project

    project.enter()
    _chosen([name])
    from flows.reenact import parse_driver, reenact

    path = reenact(name, parse_driver(driver, name), camera, height, output)
    console.print(f"video: {path.resolve()}", highlight=False, soft_wrap=True)


@app.command()
def doctor() -> None:
    """Say what this machine can run, and what to do where something is missing."""
    from flows.doctor import examine

    marks = {"ok": "[green]✓[/]", "no": "[dim]–[/]", "bad": "[bold red]✗[/]"}
    table = Table(box=None, show_header=False, pad_edge=False)
    bad = False
    for finding in examine():
        table.add_row(marks[finding.state], escape(finding.what), escape(finding.detail))
        bad |= finding.state == "bad"
    console.print(table)
    if bad:
        raise typer.Exit(STAGE_FAILED)


@assets_app.callback(invoke_without_command=True)
def assets(ctx: typer.Context) -> None:
    """List the model files: purpose, source, licence, and whether they are here."""
    if ctx.invoked_subcommand:
        return
    from gha_core.assets import ASSETS, asset_folder, is_present

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("model", "here", "for", "licence", "source"):
        table.add_column(column)
    for name, asset in ASSETS.items():
        here = "yes" if asset.source and is_present(name) else "no"
        table.add_row(name, here, asset.purpose, asset.licence, str(asset.source or asset.note))
    console.print(table)
    console.print(f"folder: {asset_folder()}", highlight=False, soft_wrap=True)


@assets_app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all needed.")] = None,
) -> None:
    """Fetch model files now, and build the head model, so that later nothing needs the network."""
    from gha_core.assets import fetch_all
    from gha_core.faces import head_model

    fetch_all(names or None)
    if not names:
        head_model()
    console.print("All model files are here.")


@app.command()
def demo(
    people: Annotated[int, typer.Option(min=1, help="How many different people.")] = 1,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Stages at a time.")] = 1,
) -> None:
    """Film a synthetic person, make their avatar, and show the scores. Needs no footage."""
    from flows import demo, project

    project.enter()
    names = demo.names(people)
    for name in names:
        if not (demo.STUDIO / name).exists():
            console.print(f"Filming the synthetic person {name} …")
        demo.register(name)
    _run(_chosen(names), "evaluation", jobs)


def _chosen(names: Sequence[str] | None) -> list[str]:
    """These subjects, or all; the project's files are put in order on the way."""
    from flows import project
    from gha_core.errors import ParameterError
    from tasks.parameters import find_subject

    subjects = project.tidy()
    if not subjects:
        raise ParameterError("There are no subjects yet. Add one: gha add NAME PATH, or: gha demo")
    return [find_subject(Path(), name).name for name in dict.fromkeys(names or subjects)]


def _run(
    subjects: list[str],
    until: str,
    jobs: int,
    runner: str = "threads",
    scheduler: str | None = None,
) -> None:
    from gha_core.errors import ParameterError
    from tasks.parameters import STAGES

    if until not in STAGES:
        raise ParameterError(f"There is no stage {until!r}; the stages are: {', '.join(STAGES)}.")
    from flows import display, dvc_bridge

    stages = dvc_bridge.plan(subjects)
    if until != STAGES[-1]:
        stages = [s for s in stages if STAGES.index(s.stage) <= STAGES.index(until)]
    dirty = [stage for stage in stages if stage.reasons]
    outcomes = {stage.name: "cached" for stage in stages}
    failed: list[Result] = []
    if dirty:
        _announce(dirty)
        from flows.machines import check_runner

        checked = check_runner(runner, scheduler)
        _check_parameters(sorted({stage.subject for stage in dirty}))
        results = _make(dirty, subjects, until, jobs, checked, scheduler)
        words = {"ran": "done", "fresh": "unchanged"}
        outcomes |= {result.name: words.get(result.how, result.how) for result in results}
        failed = [result for result in results if result.how == "failed"]
    console.print(display.outcome_table([stage.name for stage in stages], outcomes))
    if scores := display.score_table(subjects):
        console.print()
        console.print(scores)
    for subject in subjects:
        if display.report_path(subject).exists():
            path = display.report_path(subject).resolve()
            console.print(f"report: {path}", highlight=False, soft_wrap=True)
    if failed:
        _explain(failed)
        raise typer.Exit(STAGE_FAILED)


def _announce(dirty: Sequence[Stage]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("to run", no_wrap=True)
    table.add_column("because")
    for stage in dirty:
        table.add_row(stage.name, "; ".join(stage.reasons))
    console.print(table)


def _check_parameters(subjects: Sequence[str]) -> None:
    """All parameters of all stages, now: a typing error in the last stage must not cost hours.

    In a process of its own, because it loads every stage with all its libraries.
    """
    from gha_core.errors import ParameterError

    arguments = [sys.executable, "-m", "tasks.parameters", *subjects]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ParameterError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))


def _make(
    dirty: Sequence[Stage],
    subjects: list[str],
    until: str,
    jobs: int,
    runner: Runner,
    scheduler: str | None,
) -> list[Result]:
    from flows import display, stage_process

    def interrupted(*_: object) -> None:
        stage_process.stop_all()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    console.print("Starting the scheduler …", style="dim")
    from flows.batch import batch_flow
    from flows.subject import subject_flow

    try:
        with display.watching([stage.name for stage in dirty], console):
            if len(subjects) == 1:
                return subject_flow(subjects[0], until, jobs, runner, scheduler)
            return batch_flow(subjects, until, jobs, runner, scheduler)
    except KeyboardInterrupt:
        console.print("Interrupted. What is finished is kept; run again to go on.")
        raise typer.Exit(INTERRUPTED) from None


def _explain(failed: Sequence[Result]) -> None:
    from flows.stage_process import log_path

    for result in failed:
        line = f"[bold red]{result.name} failed:[/] {escape(result.error)}"
        console.print(f"{line}\n  log: {log_path(result.name)}", highlight=False, soft_wrap=True)
