"""The command line, ``gha``. Commands import what they need when they run: help is quick."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
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
Stage_ = Annotated[str, typer.Argument(metavar="STAGE", help="One of the stages.")]
Names = Annotated[list[str] | None, typer.Argument(help="Subjects.", autocompletion=_subject_names)]


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="A new name: letters, digits, - and _.")],
    path: Annotated[Path, typer.Argument(help="The capture: a folder or a video file.")],
    format: Annotated[str, typer.Option(help="auto, or a format's name.")] = "auto",
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
    """Register a capture under a name, and say what is in it. All files are opened and checked.

    Nothing is copied: data/captures/NAME links to it.

    Example: gha add anna ~/footage/anna.mp4 --test-last 0.2
    """
    path = path.expanduser().absolute()
    from flows import project
    from gha_core.capture import adapters, detect_format, open_capture
    from gha_core.capture.describe import describe
    from gha_core.errors import ParameterError
    from tasks.parameters import check_subject_name

    project.enter()
    if format == "auto":
        format = detect_format(path)
    known = adapters()
    if format not in known:
        raise ParameterError(f"There is no format {format!r}; known are: {', '.join(known)}.")
    check_subject_name(name)
    with console.status(f"Opening {path} …"):
        lines = describe(open_capture(path, format))
    splits = {
        "test_cameras": test_camera,
        "test_sequences": test_sequence,
        "test_last": test_last,
    }
    chosen = {key: value for key, value in splits.items() if value}
    project.add_subject(name, path, format, chosen)
    said = [f"{name}: {path}", f"format: {format}, {known[format].WHAT}", *lines]
    for line in said:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Next: gha run {name}", highlight=False)


@app.command()
def preset(name: Annotated[str, typer.Argument(help="cpu, gpu or paper.")]) -> None:
    """Put a preset's values into params.yaml; what it does not name stays as it is."""
    from flows import project
    from tasks import presets

    project.enter()
    presets.use(Path(), name)
    console.print(f"params.yaml now has the values of presets/{name}.yaml.", highlight=False)


@app.command()
def run(
    names: Names = None,
    all: Annotated[
        bool, typer.Option("--all", help="All subjects (also if none is named).")
    ] = False,
    until: Annotated[str, typer.Option(help="Stop after this stage.")] = "evaluation",
    since: Annotated[
        str,
        typer.Option(
            "--from",
            help="Run this stage and later ones only; a mistake if what they read is not fresh.",
        ),
    ] = "ingest",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Stages at a time; they share the cores.")
    ] = 1,
    keep_going: Annotated[
        bool, typer.Option(help="After a failure, go on with what does not need it.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, and why.")
    ] = False,
    runner: Annotated[str, typer.Option(help="threads, or dask: on Dask workers.")] = "threads",
    scheduler: Annotated[
        str | None, typer.Option(help="The Dask scheduler's address; without, one is started here.")
    ] = None,
) -> None:
    """Make everything of these subjects fresh: run what changed and what follows from it.

    Unchanged stages are cached, earlier results are restored. Kill it whenever you like: run it
    again and it goes on from there. Ctrl-C ends it in good order, a second one at once.
    """
    from flows import project

    project.enter()
    chosen = _chosen(names if not all else None)
    _run(chosen, since, until, jobs, keep_going, dry_run, runner, scheduler)


@app.command()
def status(
    names: Names = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show subject by stage: fresh, stale and why, failed, missing, running."""
    from flows import project

    project.enter()
    subjects = _chosen(names)
    from flows import display, dvc_bridge

    states = [display.state(stage) for stage in dvc_bridge.plan(subjects)]
    if as_json:
        print(json.dumps([asdict(state) for state in states], indent=1))
        return
    console.print(display.status_table({(s.subject, s.stage): s.state for s in states}))
    for failed in (state for state in states if state.state == "failed"):
        line = f"{failed.stage}@{failed.subject} failed: {failed.error} Log: {failed.log}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    stale = [s for s in states if s.state == "stale" and not s.reasons[0].startswith("follows")]
    for stages, who, why in display.grouped((s.stage, s.subject, s.reasons) for s in stale):
        console.print(f"{stages} of {who}: {why}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def why(name: Name, stage: Stage_) -> None:
    """Say why a stage would run: what it reads that changed, and so back to the first cause."""
    stages = _planned(name, stage)
    from flows import dvc_bridge

    wanted = f"{stage}@{name}"
    if not stages[wanted].reasons:
        console.print(f"{wanted} is fresh: nothing that it reads has changed.", highlight=False)
    for each in [wanted, *dvc_bridge.ancestors(stages, wanted)]:
        for reason in stages[each].reasons:
            console.print(f"{each}: {reason}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def accept(name: Name, stage: Stage_) -> None:
    """Keep the outputs of a stage although its code was edited, because the edit changes nothing.

    Refuses if anything but code changed, or if its outputs or what it reads are not fresh.
    """
    _planned(name, stage)
    from flows import dvc_bridge

    accepted = dvc_bridge.accept(f"{stage}@{name}")
    if not accepted:
        console.print(f"{stage}@{name} is fresh: there is nothing to accept.", highlight=False)
    for reason in accepted:
        console.print(f"{stage}@{name}: accepted that {reason}", highlight=False, markup=False)


@app.command()
def logs(
    name: Name,
    stage: Stage_,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the stage ends.")
    ] = False,
) -> None:
    """Print what the latest run of a stage printed."""
    from flows import project
    from flows.stage_process import follow_log, log_path
    from gha_core.errors import ArtifactError
    from tasks.parameters import STAGES

    project.enter()
    _chosen([name])
    _check_stage(stage, STAGES)
    if not log_path(f"{stage}@{name}").exists():
        raise ArtifactError(f"{stage}@{name} has not run yet on this machine.")
    for text in follow_log(f"{stage}@{name}", follow):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command()
def fsck() -> None:
    """Read every artifact again and mend what is damaged, from the workspace or the remote."""
    from flows import project, upkeep

    project.enter()
    remaining = mended = 0
    with console.status("Reading all artifacts …"):
        for found in upkeep.check():
            mended, remaining = mended + bool(found.mended), remaining + (not found.mended)
            end = found.mended or f"[bold red]{escape(found.todo)}[/]"
            console.print(
                f"{found.stage}: {escape(str(found.file))} {found.wrong}: {end}",
                highlight=False,
                soft_wrap=True,
            )
    if not remaining:
        console.print(
            f"Everything is sound. Mended: {mended}." if mended else "Everything is sound."
        )
        return
    console.print(f"Mended: {mended}; left: {remaining}.")
    raise typer.Exit(STAGE_FAILED)


@app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only say what would go.")] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache",
            help="Also all cached results but those of dvc.lock as it is now and in any commit "
            "(dvc gc --all-commits): going back to other parameters will run again.",
        ),
    ] = False,
) -> None:
    """Remove what subjects left behind that are no longer in subjects.yaml."""
    from flows import project, upkeep

    project.enter()
    left = upkeep.leftovers()
    for entry in left.entries:
        console.print(f"dvc.lock: {entry}", highlight=False)
    for path in left.folders:
        console.print(f"{path}{' (the link)' if path.is_symlink() else ''}", highlight=False)
    found = bool(left.entries or left.folders)
    if yes:
        upkeep.remove(left)
    if cache:
        console.print("Cached results:" if yes else "Cached results that would go, says DVC:")
        arguments = ["gc", "--workspace", "--all-commits", "--force"]
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments, *([] if yes else ["--dry"])], check=False
        )
    if yes and (found or cache):
        console.print("Removed.")
    elif found or cache:
        console.print("Nothing was removed yet. To do it, add --yes.")
    else:
        console.print("Nothing is left of removed subjects.")


@app.command(hidden=True)
def merge_lock(base: Path, ours: Path, theirs: Path) -> None:
    """Git's merge driver for dvc.lock; ``make install`` tells git about it."""
    from flows import lock_file

    merged = lock_file.merge(base.read_text(), ours.read_text(), theirs.read_text())
    lock_file.replace(ours, merged)


@app.command()
def report(
    name: Annotated[
        str | None, typer.Argument(help="The subject.", autocompletion=_subject_names)
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="One page about all subjects.")] = False,
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Print the scores of a subject and the path of its report; or of all subjects."""
    from flows import project
    from gha_core.errors import ArtifactError, ParameterError

    project.enter()
    if all == (name is not None):
        raise ParameterError("Name one subject, or give --all.")
    subjects = _chosen([name] if name else None)
    from flows import display

    if name:
        path = display.report_path(name).resolve()
        if not path.exists():
            raise ArtifactError(f"{name} is not evaluated yet. Run: gha run {name}")
    else:
        from flows.batch_report import write_batch_report

        path = write_batch_report(subjects, None).resolve()
    if table := display.score_table(subjects):
        console.print(table)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    if open:
        typer.launch(path.as_uri())


@app.command()
def view(
    name: Name,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the web page.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Listen at this address; any but the default lets others in.")
    ] = "127.0.0.1",
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Look at the avatar in the browser: turn it, move its face, play its sequences.

    Example: gha view anna --open
    """
    from flows import project

    project.enter()
    _chosen([name])
    from flows.view import view

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    view(name, host, port, say, typer.launch if open else None)


@app.command()
def reenact(
    name: Name,
    driver: Annotated[
        str,
        typer.Option(
            help="A sequence of NAME, another SUBJECT, SUBJECT:SEQUENCE, a video of anyone, a CSV "
            "or JSON of ARKit coefficients, or webcam (webcam:1 for the second)."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="The video; default: in outputs/.")] = None,
    camera: Annotated[
        str,
        typer.Option(help="front, orbit, driver (as the driver was filmed), or a camera of NAME."),
    ] = "front",
    swing: Annotated[
        float, typer.Option(min=0, max=180, help="Of the orbit to each side, degrees.")
    ] = 30.0,
    height: Annotated[
        int | None, typer.Option(min=16, max=4320, help="Of the avatar's picture, pixels.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=16, max=7680, help="Of the avatar's picture, pixels.")
    ] = None,
    head_pose: Annotated[bool, typer.Option(help="Move the head, too.")] = True,
    rest: Annotated[
        str,
        typer.Option(
            help="auto: expressions relative to the driver's face at rest; keep: as they are."
        ),
    ] = "auto",
    smooth: Annotated[
        float, typer.Option(min=0, max=5, help="Smooth the motion over so many seconds.")
    ] = 0.0,
    beside: Annotated[bool, typer.Option(help="Show the driver beside the avatar.")] = True,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="How long the webcam is filmed.")
    ] = 10.0,
    write_csv: Annotated[
        Path | None,
        typer.Option(help="Also write what the avatar does as a CSV of ARKit coefficients."),
    ] = None,
) -> None:
    """Write a video of the avatar driven by another sequence, another person, or a file.

    Example: gha reenact anna --driver bert:FREE --camera orbit
    """
    from flows import project

    here = Path.cwd()
    project.enter()
    _chosen([name])
    from flows.drivers import find_driver
    from flows.reenact import Options, reenact

    options = Options(camera, swing, height, width, head_pose, rest, smooth, beside)
    found = find_driver(driver, name, seconds, here)
    output, write_csv = (file and here / file.expanduser() for file in (output, write_csv))
    path = reenact(name, found, options, output, write_csv)
    console.print(f"video: {path.resolve()}", highlight=False, soft_wrap=True)
    if write_csv:
        console.print(f"coefficients: {write_csv}", highlight=False, soft_wrap=True)


@app.command()
def export(
    name: Name,
    format: Annotated[
        list[str] | None, typer.Option(help="ply, spz, glb or html; repeatable; default: all.")
    ] = None,
    frame: Annotated[
        str, typer.Option(help="Of ply and spz: neutral, or SEQUENCE:TIMESTEP as tracked.")
    ] = "neutral",
    output: Annotated[Path | None, typer.Option(help="A folder; default: outputs/.")] = None,
) -> None:
    """Write the avatar for other programs: plain 3DGS, a face with morph targets, a web page.

    Example: gha export anna --format html
    """
    output = output and output.expanduser().absolute()
    from flows import project

    project.enter()
    _chosen([name])
    from flows.export import FORMATS, export

    for written in export(name, format or FORMATS, frame, output):
        console.print(
            f"{written.path.resolve()}: {written.note}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


@app.command()
def compare(
    items: Annotated[list[str], typer.Argument(metavar="NAME[@REVISION]...", help="Two or more.")],
    driver: Annotated[
        str | None,
        typer.Option(help="SUBJECT[:SEQUENCE] that moves all, for the cross-identity scores."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The page; default: in outputs/.")] = None,
    open: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Compare evaluated avatars: scores with confidence intervals, the same moments in pictures.

    NAME is a subject as it is now, NAME@REVISION as a commit has it. To compare parameters, add the
    same capture under two names, and override them for one.

    Example: gha compare anna anna@HEAD~1
    """
    output = output and output.expanduser().absolute()
    from flows import project

    project.enter()
    from flows.compare import compare_subjects

    compared = compare_subjects(items, driver, output)
    console.print(compared.table)
    for note in compared.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {compared.page.resolve()}", highlight=False, soft_wrap=True)
    if open:
        typer.launch(compared.page.resolve().as_uri())


@app.command()
def plan(
    name: Name,
    preset: Annotated[
        str | None, typer.Option(help="A file like params.yaml, or a name in presets/, on top.")
    ] = None,
) -> None:
    """Say how many hours and gigabytes a subject will take here, before it starts.

    Rehearses every stage on a few timesteps of the capture and a few training steps, and writes
    nothing. Exit status 1 if it does not fit this machine.

    Example: gha plan anna --preset paper
    """
    from flows import project

    project.enter()
    _chosen([name])
    from flows.plan import plan_subject, plan_table

    with console.status("Rehearsing …") as status:
        made = plan_subject(name, preset, lambda what: status.update(f"Rehearsing {what} …"))
    console.print(f"{name}: {made.work}", highlight=False, soft_wrap=True)
    console.print(plan_table(made))
    for sentence in [*made.notes, *made.warnings]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    if made.warnings:
        raise typer.Exit(STAGE_FAILED)


@app.command()
def submit(
    benchmark: Annotated[str, typer.Argument(help="nersemble.")],
    names: Annotated[list[str], typer.Argument(help="One subject per participant of the task.")],
    task: Annotated[str, typer.Option(help="nvs (new views) or mono (one camera).")] = "nvs",
    output: Annotated[Path | None, typer.Option(help="The zip; default: in outputs/.")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Although participants of the task are missing.")
    ] = False,
) -> None:
    """Render a benchmark's hold-out cameras and pack them as it wants them.

    Example: gha submit nersemble p388 p422 p443 p445 p475 --task nvs
    """
    output = output and output.expanduser().absolute()
    from flows import project
    from gha_core.errors import ParameterError

    project.enter()
    if benchmark != "nersemble":
        raise ParameterError(f"There is no benchmark {benchmark!r}; there is: nersemble.")
    from flows.submit import submit_nersemble

    path, packed = submit_nersemble(task, names, output, partial)
    for note in packed.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    for video, frames in packed.videos.items():
        console.print(f"{video}: {frames} frames", highlight=False, markup=False)
    console.print(f"zip: {path.resolve()}", highlight=False, soft_wrap=True)


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
    _run(_chosen(names), jobs=jobs)


def _chosen(names: Sequence[str] | None) -> list[str]:
    """These subjects, or all; the project's files are put in order on the way."""
    from flows import project
    from gha_core.errors import ParameterError
    from tasks.parameters import find_subject

    subjects = project.tidy()
    if not subjects:
        raise ParameterError("There are no subjects yet. Add one: gha add NAME PATH, or: gha demo")
    for name in names or ():
        find_subject(Path(), name)
    return list(dict.fromkeys(names or subjects))


def _check_stage(stage: str, known: Sequence[str]) -> None:
    from gha_core.errors import ParameterError

    if stage not in known:
        raise ParameterError(f"There is no stage {stage!r}; the stages are: {', '.join(known)}.")


def _planned(name: str, stage: str) -> dict[str, Stage]:
    """All stages of a subject as they are now, by name."""
    from flows import project
    from tasks.parameters import STAGES

    project.enter()
    _chosen([name])
    _check_stage(stage, STAGES)
    from flows import dvc_bridge

    return {planned.name: planned for planned in dvc_bridge.plan([name])}


def _run(
    subjects: list[str],
    since: str = "ingest",
    until: str = "evaluation",
    jobs: int = 1,
    keep_going: bool = True,
    dry_run: bool = False,
    runner: str = "threads",
    scheduler: str | None = None,
) -> None:
    from tasks.parameters import STAGES

    _check_stage(since, STAGES)
    _check_stage(until, STAGES)
    from flows import display, dvc_bridge

    stages = _between(dvc_bridge.plan(subjects), since, until, STAGES)
    dirty = [stage for stage in stages if stage.reasons]
    if dirty:
        console.print(display.reason_table(dirty))
    if dry_run:
        console.print(f"{len(dirty)} of {len(stages)} stages would run.", highlight=False)
        return
    outcomes = {stage.name: "cached" for stage in stages}
    failed: list[Result] = []
    if dirty:
        from flows.machines import check_runner

        checked = check_runner(runner, scheduler)
        _check_parameters(sorted({stage.subject for stage in dirty}))
        results = _make(dirty, subjects, until, jobs, keep_going, checked, scheduler)
        words = {"ran": "done", "fresh": "unchanged"}
        outcomes |= {result.name: words.get(result.how, result.how) for result in results}
        failed = [result for result in results if result.how == "failed"]
    console.print(display.outcome_table([stage.name for stage in stages], outcomes))
    if scores := display.score_table(subjects):
        console.print()
        console.print(scores)
    for line in display.report_lines(subjects):
        console.print(line, highlight=False, soft_wrap=True)
    if failed:
        _explain(failed)
    if _interrupted():
        console.print("Interrupted. What is finished is kept; run again to go on.")
        raise typer.Exit(INTERRUPTED)
    if failed:
        raise typer.Exit(STAGE_FAILED)


def _between(stages: Sequence[Stage], since: str, until: str, order: Sequence[str]) -> list[Stage]:
    """The stages from ``since`` to ``until``.

    Raises:
        ParameterError: an earlier one is not fresh, and they would read it.
    """
    from gha_core.errors import ParameterError

    first, last = order.index(since), order.index(until)
    if last < first:
        raise ParameterError(f"--until {until} comes before --from {since}.")
    early = [s.name for s in stages if s.reasons and order.index(s.stage) < first]
    if early:
        more = f" and {len(early) - 3} more" if len(early) > 3 else ""
        raise ParameterError(
            f"--from {since}: {', '.join(early[:3])}{more} must run first. Leave --from out; what "
            "would run and why says: gha run --dry-run"
        )
    return [s for s in stages if first <= order.index(s.stage) <= last]


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
    keep_going: bool,
    runner: Runner,
    scheduler: str | None,
) -> list[Result]:
    from flows import display, server, sweeper

    console.print("Starting the scheduler …", style="dim")
    sweeper.start()
    with _ending_on_interrupt(), display.watching([stage.name for stage in dirty], jobs, console):
        server.reach()  # here, so that Ctrl-C does not reach it
        from flows.batch import batch_flow
        from flows.subject import subject_flow

        if len(subjects) == 1:
            return subject_flow(subjects[0], until, jobs, keep_going, runner, scheduler)
        return batch_flow(subjects, until, jobs, keep_going, runner, scheduler)


@contextmanager
def _ending_on_interrupt() -> Iterator[None]:
    """First Ctrl-C: no stage starts any more, those that run end, what is finished is kept. Second:
    out, now.

    A thread waits for it. All others have it blocked, and so has Prefect's server, which would end
    at the first and leave the flow hanging.
    """

    def wait() -> None:
        from flows import stage_process

        signal.sigwait({signal.SIGINT})
        console.print("Ending … (Ctrl-C again: at once)", style="dim")
        stage_process.stop()
        signal.sigwait({signal.SIGINT})
        stage_process.stop(at_once=True)
        console.show_cursor(True)
        os._exit(INTERRUPTED)

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interrupted() -> bool:
    stages = sys.modules.get("flows.stage_process")
    return stages is not None and stages.stopped()


def _explain(failed: Sequence[Result]) -> None:
    from flows.stage_process import log_path

    for result in failed:
        first = result.error.splitlines()[0]
        line = f"[bold red]{result.name} failed:[/] {escape(first)}"
        console.print(f"{line}\n  log: {log_path(result.name)}", highlight=False, soft_wrap=True)
