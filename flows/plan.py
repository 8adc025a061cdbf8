"""``gha plan``: how long a subject will take here and how much memory and disk, before it starts.

Every stage is rehearsed on a few timesteps of the very capture, with the very parameters but few
training steps, in a process of its own whose time and memory are measured. What depends on the
number of timesteps is measured at two numbers and drawn on as a straight line; training goes on at
the pace of its last steps.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from ruamel.yaml import YAML

from flows.display import duration
from flows.resources import needs_of, this_machine
from gha_core.artifacts.stage_folder import read_json
from gha_core.avatar.milestones import SHARES
from gha_core.avatar.samples import CACHE_BYTES
from gha_core.capture import open_capture
from gha_core.errors import ParameterError, StageError
from gha_core.progress import REPORT_VARIABLE
from gha_core.splits import Splits
from tasks import evaluation, geometry, ingest
from tasks.parameters import PARAMS_FILE, STAGES, SUBJECTS_FILE, find_subject, read_yaml, resolve
from tasks.rehearsal import Rehearsal

CAPTURES = Path("data", "captures")
PRESETS = Path("presets")
PER_TIMESTEP = ("ingest", "matting", "landmarks", "tracking")
TRAINED = {"geometry": "geometry", "avatar": "training avatar"}
# Views of the smaller and of the larger rehearsal, roughly; and training steps.
_VIEWS = 24, 100
_STEPS = 6
_FEW_SCORES = {"max_views": 4, "video_frames": 4, "milestone_views": 1}
_BUSY = 0.7  # processes per core
_GIB = 2**30


@dataclass(frozen=True)
class Measured:
    """One rehearsal: wall time, s; peak memory and artifact, bytes; seconds per item of each
    progress bar."""

    seconds: float
    memory: float
    size: float
    paces: Mapping[str, float]


@dataclass(frozen=True)
class Forecast:
    """What a stage will take: seconds, and bytes of memory at its peak and on disk."""

    stage: str
    seconds: float
    memory: float
    size: float


@dataclass(frozen=True)
class Plan:
    """Forecasts of all stages, and what does not fit.

    Attributes:
        work: the capture in words; memory, disk: bytes that this machine has, and has free.
        load: of this machine before the rehearsals, processes per core.
    """

    subject: str
    work: str
    forecasts: list[Forecast]
    memory: float
    disk: float
    load: float = 0.0

    @property
    def warnings(self) -> list[str]:
        said = [
            f"{each.stage} will want {each.memory / _GIB:.1f} GiB of memory and this machine has "
            f"{self.memory / _GIB:.1f}: it will be killed or swap. {_REMEDIES[each.stage]}"
            for each in self.forecasts
            if each.memory > 0.9 * self.memory
        ]
        needed = sum(each.size for each in self.forecasts)
        if needed > 0.9 * self.disk:
            said.append(
                f"All stages will write {needed / 1e9:.1f} GB and {self.disk / 1e9:.1f} GB are "
                "free here. Make room, or store smaller or fewer frames (ingest.image_size, "
                "ingest.fps)."
            )
        return said

    @property
    def notes(self) -> list[str]:
        busy = [
            f"This machine is busy ({self.load:.1f} processes per core), so the times are rough, "
            "and too long for one at rest; memory and disk are as they will be."
        ]
        return busy * (self.load > _BUSY) + [
            f"gha run --jobs reckons with {needs_of(each.stage).memory:.1f} GiB for {each.stage}, "
            f"which will want {each.memory / _GIB:.1f}: choose --jobs so that they fit."
            for each in self.forecasts
            if each.memory > 1.5 * needs_of(each.stage).memory * _GIB
        ]


_REMEDIES = {
    "ingest": "Choose fewer cameras (ingest.cameras).",
    "matting": "Store smaller frames (ingest.image_size).",
    "landmarks": "Store smaller frames (ingest.image_size).",
    "tracking": "Use fewer timesteps (ingest.fps, ingest.max_frames).",
    "geometry": "Lower geometry.resolution, geometry.frames or geometry.width.",
    "avatar": "Lower avatar.gaussians, avatar.views, avatar.crop or ingest.image_size.",
    "evaluation": "Store smaller frames (ingest.image_size).",
}


def plan_subject(name: str, preset: str | None, say: Callable[[str], None]) -> Plan:
    """Rehearse all stages of a subject and forecast them.

    Args:
        preset: a file like params.yaml, or the name of one in presets/, on top of params.yaml.
        say: told what is being rehearsed.

    Raises:
        GhaError: unknown subject, preset or parameter, or a stage that fails on a few timesteps, as
            it would on all.
    """
    subject = find_subject(Path(), name)
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="gha-plan-") as folder:
        scratch = Path(folder)
        _write_project(scratch, preset)
        params = {stage: resolve(scratch, stage, name) for stage in STAGES}
        capture = (CAPTURES / name).resolve()
        frames = params["ingest"].params
        assert isinstance(frames, ingest.Params)
        opened = open_capture(
            capture,
            subject.format,
            sequences=frames.sequences,
            cameras=frames.cameras,
            unequal_length=frames.unequal_length,
            focal_length=frames.focal_length,
        )
        splits = params["ingest"].splits
        counts = {each.name: len(ingest.stored_windows(each, frames)) for each in opened.sequences}
        cameras = len(opened.cameras)
        timesteps = sum(counts.values())
        training = [n for n in counts if n not in splits.test_sequences] or list(counts)
        most = counts[max(training, key=lambda each: counts[each])]
        few, more = (min(most, max(3, -(-views // cameras))) for views in _VIEWS)
        slices = [few, more] if few < more else [more]
        chosen = max(training, key=lambda each: counts[each])

        def rehearse(stage: str, count: int, values: Mapping[str, Any]) -> Measured:
            say(f"{stage}, {count} of {timesteps} timesteps")
            return _measure(
                Rehearsal(
                    stage,
                    str(capture),
                    subject.format,
                    str(scratch / str(count)),
                    {**params[stage].params.model_dump(mode="json"), **values},
                    _splits(splits, stage),
                    params[stage].seed,
                ),
                scratch,
            )

        measured: dict[str, list[Measured]] = {stage: [] for stage in STAGES}
        for count in slices:
            for stage in PER_TIMESTEP:
                part = {"sequences": [chosen], "max_frames": count} if stage == "ingest" else {}
                measured[stage].append(rehearse(stage, count, part))
        for stage in ("geometry", "avatar", "evaluation"):
            little = {"steps": _STEPS} if stage in TRAINED else _FEW_SCORES
            measured[stage].append(rehearse(stage, slices[-1], little))
        summary = read_json(scratch / str(slices[-1]) / "ingest" / "summary.json")
    stored = max(c["stored"][0] * c["stored"][1] for c in summary["cameras"].values())
    held_out = _held_out(splits)
    forecasts = [
        _line(stage, slices, measured[stage], timesteps) for stage in PER_TIMESTEP
    ] + [
        _training(
            "geometry", measured["geometry"][0], params["geometry"].params,
            _kept_by_geometry(params["geometry"].params, timesteps - slices[-1], cameras),
        ),
        _training(
            "avatar", measured["avatar"][0], params["avatar"].params,
            _kept_by_avatar(stored, timesteps * cameras, slices[-1] * cameras),
        ),
        _evaluation(
            measured["evaluation"][0], params["evaluation"].params, held_out, timesteps * cameras,
        ),
    ]  # fmt: skip
    side = summary["cameras"]
    sizes = sorted({"x".join(map(str, each["stored"])) for each in side.values()})
    work = (
        f"{timesteps} timesteps of {cameras} cameras, {timesteps * cameras} frames of "
        f"{', '.join(sizes)}; {getattr(params['avatar'].params, 'steps', 0)} training steps"
    )
    machine = this_machine(1)
    return Plan(name, work, forecasts, machine.memory * _GIB, shutil.disk_usage(".").free, load)


def plan_table(plan: Plan) -> Table:
    """Stage by stage, and in all."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stage", "time", "peak memory", "disk"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for each in plan.forecasts:
        table.add_row(
            each.stage,
            duration(each.seconds),
            f"{each.memory / _GIB:.2f} GiB",
            f"{each.size / 1e6:.0f} MB",
        )
    table.add_row(
        "all",
        duration(sum(each.seconds for each in plan.forecasts)),
        f"{max(each.memory for each in plan.forecasts) / _GIB:.2f} GiB",
        f"{sum(each.size for each in plan.forecasts) / 1e6:.0f} MB",
        style="bold",
    )
    here = f"{os.cpu_count()} cores"
    table.add_row("here", here, f"{plan.memory / _GIB:.2f} GiB", f"{plan.disk / 1e6:.0f} MB free")
    return table


def _write_project(folder: Path, preset: str | None) -> None:
    """params.yaml with the preset, and subjects.yaml, as :func:`resolve` wants them."""
    values = read_yaml(Path(PARAMS_FILE))
    if preset is not None:
        path = next((p for p in (Path(preset), PRESETS / f"{preset}.yaml") if p.is_file()), None)
        if path is None:
            known = sorted(each.stem for each in PRESETS.glob("*.yaml"))
            raise ParameterError(
                f"--preset {preset}: there is no such file, and no preset of that name; known are: "
                f"{', '.join(known) or 'none'}."
            )
        values = _merged(values, read_yaml(path))
    with (folder / PARAMS_FILE).open("w") as file:
        YAML(typ="safe").dump(values, file)
    shutil.copy(SUBJECTS_FILE, folder / SUBJECTS_FILE)


def _merged(base: Any, over: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return base | {key: _merged(base.get(key), value) for key, value in over.items()}


def _splits(splits: Splits, stage: str) -> dict[str, Any]:
    """A few timesteps of one sequence all train; and every second one is there to be scored."""
    cameras = list(splits.test_cameras) if stage != "evaluation" else []
    return {"test_cameras": cameras, "test_every": 2 if stage == "evaluation" else 0}


def _measure(rehearsal: Rehearsal, scratch: Path) -> Measured:
    order, progress = scratch / "order.json", scratch / "progress"
    order.write_text(json.dumps(asdict(rehearsal)))
    progress.unlink(missing_ok=True)
    log = scratch / "log"
    environment = {
        **os.environ,
        REPORT_VARIABLE: str(progress),
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    }
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.rehearsal", str(order)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            preexec_fn=_within_memory,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise StageError(_failure(rehearsal.stage, log.read_text(errors="replace")))
    folder = Path(rehearsal.artifacts) / rehearsal.stage
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(seconds, peak, size, dict(_paces(progress)))


def _within_memory() -> None:
    """A rehearsal that does not fit ends with a word, before the machine swaps."""
    with suppress(ValueError, OSError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_DATA, (total, total))


def _failure(stage: str, log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else "it left no word"
    if "MemoryError" in last or "allocate" in last or "out of memory" in last.lower():
        return (
            f"{stage} does not fit in this machine's memory even for a few timesteps and steps "
            f"({last}). {_REMEDIES[stage]}"
        )
    return f"{stage} failed in its rehearsal, as it would in earnest: {last}"


def _paces(progress: Path) -> Iterator[tuple[str, float]]:
    """Seconds per item of every progress bar, over its second half: the first ones warm up."""
    bars: dict[str, list[tuple[int, float]]] = {}
    with suppress(OSError):
        for line in progress.read_text().splitlines():
            said = json.loads(line)
            bars.setdefault(said["description"], []).append((said["done"], said["seconds"]))
    for name, points in bars.items():
        last = points[-1]
        first = next((p for p in points if p[0] >= last[0] / 2), points[0])
        first = first if first[0] < last[0] else points[0]
        if last[0] > first[0]:
            yield name, (last[1] - first[1]) / (last[0] - first[0])


def _line(stage: str, slices: list[int], found: list[Measured], timesteps: int) -> Forecast:
    """The straight line through one or two rehearsals, at all timesteps."""

    def at(value: Callable[[Measured], float]) -> float:
        if len(found) == 1:
            return value(found[0]) * timesteps / slices[0]
        low, high = value(found[0]), value(found[1])
        slope = max(0.0, (high - low) / (slices[1] - slices[0]))
        return max(low, high) + slope * (timesteps - slices[1])

    def peak(value: Measured) -> float:
        return value.memory

    # A stage that streams shows no slope beyond its noise; a table that grows does.
    memory = at(peak) if stage == "tracking" else max(each.memory for each in found)
    return Forecast(stage, at(lambda m: m.seconds), memory, at(lambda m: m.size))


def _training(stage: str, found: Measured, params: Any, kept: float) -> Forecast:
    pace = found.paces.get(TRAINED[stage], 0.0)
    seconds = found.seconds + pace * max(0, params.steps - _STEPS)
    return Forecast(stage, seconds, found.memory + kept, found.size)


def _kept_by_geometry(params: Any, timesteps: int, cameras: int) -> float:
    """Bytes of the pictures, mattes and masks that more timesteps keep in memory."""
    assert isinstance(params, geometry.Params)
    return 5.0 * params.image_size**2 * cameras * max(0, min(params.frames, timesteps))


def _kept_by_avatar(pixels: int, views: int, rehearsed: int) -> float:
    """Bytes of decoded pictures that more views keep in memory, up to the cache's limit."""
    return float(min(CACHE_BYTES, 7 * pixels * views) - min(CACHE_BYTES, 7 * pixels * rehearsed))


def _held_out(splits: Splits) -> int:
    """Of how many tasks there will be scores."""
    later = bool(splits.test_sequences or splits.test_every or splits.test_last)
    return later + bool(splits.test_cameras) * (1 + later)


def _evaluation(found: Measured, params: Any, tasks: int, views: int) -> Forecast:
    assert isinstance(params, evaluation.Params)
    full = {
        "scoring held-out views": min((params.max_views or views) * tasks, views),
        "video": params.video_frames,
        "scoring milestones": params.milestone_views * (len(SHARES) + 1),
    }
    done = {
        "scoring held-out views": _FEW_SCORES["max_views"],
        "video": _FEW_SCORES["video_frames"],
        "scoring milestones": _FEW_SCORES["milestone_views"] * (len(SHARES) + 1),
    }
    more = sum(found.paces.get(bar, 0.0) * max(0, full[bar] - done[bar]) for bar in full)
    return Forecast("evaluation", found.seconds + more, found.memory, found.size)
