"""What all timings share: the machine's own speed, turns taken, and the report.

A case times `ours`, its `twin` and any peers on the same inputs. They take turns, so that a busy
machine disturbs them alike, and the medians are reported. The floor is what the case's arithmetic
and memory traffic alone would take at the speeds that this machine reached in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gha_core.memory import keep_freed_memory

Run = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """Speeds of all threads together: multiplications and additions per second, bytes per second
    read and written."""

    arithmetic: float
    memory: float

    def floor(self, operations: float, moved: float) -> float:
        """Milliseconds that so many float operations, or bytes if they take longer, must take."""
        return 1e3 * max(operations / self.arithmetic, moved / self.memory)


@dataclass(frozen=True)
class Case:
    """What is timed, and its floor.

    Attributes:
        operations: float multiplications and additions that cannot be avoided.
        moved: bytes that must at least be read or written.
        peers: other implementations, by name.
    """

    name: str
    ours: Run
    twin: Run
    operations: float
    moved: float
    peers: dict[str, Run] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    quick: bool
    json: Path | None
    repeats: int
    device: str = "cpu"
    folders: dict[str, Path | None] = field(default_factory=dict)


def options(
    description: str | None, devices: tuple[str, ...] = ("cpu",), **folders: str
) -> Options:
    """The command line; sets torch's number of threads, and keeps freed memory as every stage does.

    Args:
        devices: that the benchmark can run on.
        folders: optional arguments that name folders, and what they are.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small cases only, under 40 s")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=devices, default=devices[0])
    for name, meaning in folders.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=meaning)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    named = {name: getattr(chosen, name) for name in folders}
    return Options(chosen.quick, chosen.json, 5 if chosen.quick else 15, chosen.device, named)


def measure_machine(device: str = "cpu") -> Machine:
    """The best of some products of large matrices, and of some copies of large arrays."""
    side, length = (1024 if device == "cpu" else 8192), 1 << 25
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    source, target = torch.rand(length, device=device), torch.empty(length, device=device)
    product = min(_seconds(lambda: torch.mm(a, b)) for _ in range(10))
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    return Machine(2 * side**3 / product, 2 * 4 * length / copy)


def run_cases(cases: list[Case], chosen: Options) -> None:
    """Time the cases; each is reported as soon as it is done."""
    machine = measure_machine(chosen.device)
    patience = 6.0 if chosen.quick else 12.0
    rows: list[dict[str, Any]] = []
    for case in cases:
        runs = {"ours": case.ours, "twin": case.twin, **case.peers}
        times = take_turns(runs, chosen.repeats, patience)
        rows.append(row(case.name, times, machine.floor(case.operations, case.moved)))
        report(rows, machine, chosen, shown=len(rows) - 1)


def take_turns(runs: dict[str, Run], repeats: int, patience: float) -> dict[str, list[float]]:
    """Seconds of every run, after one to warm up.

    Args:
        patience: seconds after which a run gets no further turn, however few it had (but one).
    """
    spent = {name: _seconds(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if not times[name] or spent[name] < patience:
                times[name].append(_seconds(run))
                spent[name] += times[name][-1]
    return times


def row(name: str, times: dict[str, list[float]], floor: float) -> dict[str, Any]:
    """A case's entry of the JSON, from the seconds of "ours", "twin" and peers; floor in ms."""
    medians = {who: round(1e3 * statistics.median(values), 3) for who, values in times.items()}
    return {
        "name": name,
        "ours_ms": medians.pop("ours"),
        "twin_ms": medians.pop("twin"),
        "peers": medians,
        "floor_ms": round(floor, 3),
        "quartiles_ms": {who: _quartiles(values) for who, values in times.items()},
    }


def report(rows: list[dict[str, Any]], machine: Machine, chosen: Options, shown: int = 0) -> None:
    """Print the rows, and write them to the JSON file if one is wanted.

    Args:
        shown: how many of the rows were printed before.
    """
    if not shown:
        print(
            f"{device_name(chosen.device)}, {torch.get_num_threads()} threads, "
            f"{machine.arithmetic / 1e9:.0f} Gflop/s, "
            f"{machine.memory / 1e9:.1f} GB/s; milliseconds, median (quartiles)"
        )
    for each in rows[shown:]:
        timings = {"ours": each["ours_ms"], "twin": each["twin_ms"], **each["peers"]}
        print(f"{each['name']}")
        for who, median in timings.items():
            low, high = each["quartiles_ms"][who]
            print(f"    {who:28}{median:12.2f}  ({low:.2f} .. {high:.2f})")
        floor, ours, twin = each["floor_ms"], each["ours_ms"], each["twin_ms"]
        print(f"    {'floor':28}{floor:12.2f}  ours is {twin / ours:.1f} x as fast as the twin, "
              f"{ours / floor:.1f} x the floor", flush=True)  # fmt: skip
    if chosen.json:
        result = {
            "machine": {
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "gflops": round(machine.arithmetic / 1e9, 1),
                "gigabytes_per_second": round(machine.memory / 1e9, 2),
                "torch": torch.__version__,
                "device": device_name(chosen.device),
            },
            "cases": rows,
        }
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


def device_name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name()


def _quartiles(values: list[float]) -> list[float]:
    if len(values) == 1:
        return [round(1e3 * values[0], 3)] * 2
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return [round(1e3 * low, 3), round(1e3 * high, 3)]


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
