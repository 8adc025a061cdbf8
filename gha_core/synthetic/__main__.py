"""``python -m gha_core.synthetic OUT --seed N``: film a demo person."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

# Timesteps are the parallel unit; more threads inside of each would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2

from gha_core.errors import GhaError
from gha_core.memory import keep_freed_memory
from gha_core.synthetic.capture import SEQUENCES, SIZES, film


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gha_core.synthetic", description=__doc__)
    parser.add_argument("out", type=Path, help="folder for <ID>/ (the capture) and truth/")
    parser.add_argument("--seed", type=int, default=1, help="every seed is another person")
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--id", dest="subject", help="three-digit id of the subject")
    parser.add_argument("--cameras", type=int, help="number of cameras, 2 to 10")
    parser.add_argument(
        "--timesteps", type=int, nargs=len(SEQUENCES), help=f"frames of {', '.join(SEQUENCES)}"
    )
    parser.add_argument("--width", type=int, help="pixels; the height is 4/3 of it")
    parser.add_argument("--fps", type=int)
    parser.add_argument("--noise", type=float, help="sensor noise, 8-bit levels")
    parser.add_argument("--workers", type=int, help="processes; one per processor by default")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    cv2.setNumThreads(1)
    names = ("seed", "subject", "cameras", "timesteps", "width", "fps", "noise")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if "timesteps" in changes:
        changes["timesteps"] = tuple(changes["timesteps"])
    if "width" in changes:
        changes["height"] = round(changes["width"] * 4 / 3 / 2) * 2
    try:
        workers = given.workers or len(os.sched_getaffinity(0))
        with _crew(workers) as crew:
            capture = film(given.out, replace(SIZES[given.size], **changes), crew)
    except GhaError as error:
        print(error, file=sys.stderr)
        return 1
    print(capture)
    return 0


@contextmanager
def _crew(workers: int) -> Iterator[Callable[..., Any]]:
    """A ``map`` that so many processes share, forked when it is called: this process has no other
    threads that a fork would lose. (Threads would wait for each other: much of a picture is made
    by NumPy while it holds Python's lock.)"""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        yield pool.map


if __name__ == "__main__":
    sys.exit(main())
