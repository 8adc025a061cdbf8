"""Does splatting grow linearly with Gaussians, and with pixels?

    python -m benchmarks.scaling --json result.json

More Gaussians: in a picture of 512x512, all of the same size in pixels and so transparent that none
hides another. More pixels: from 128x128 to 1024x1024, with as many Gaussians per pixel everywhere.
What counts is by how much any size exceeds what a smaller one promises, in proportion: bar 20 %.
(Small ones pay more per piece, for what every call and every picture costs.)
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import astuple, replace
from functools import partial

import torch

from benchmarks.harness import options, take_turns
from benchmarks.scenes import shell
from benchmarks.splat import step

GAUSSIANS, PIXELS = (10_000, 50_000, 200_000), (128, 256, 512, 1024)
PER_PIXEL = 0.19  # Gaussians: 50k in 512x512, 200k in 1024x1024
CHANNELS = 32


def main() -> None:
    chosen = options(__doc__)
    shrink = 4 if chosen.quick else 1
    with_gaussians = {n // shrink: transparent(n // shrink, 512 // shrink) for n in GAUSSIANS}
    pixels = [size // shrink for size in PIXELS]
    with_pixels = {n**2: dense(n) for n in pixels}
    result = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "Gaussians": growth(with_gaussians, chosen.repeats),
        "pixels": growth(with_pixels, chosen.repeats),
    }
    print(json.dumps(result, indent=2))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=2) + "\n")


def growth(runs: dict[int, partial[None]], repeats: int) -> dict[str, object]:
    """Milliseconds by amount; the excess over linear growth from any smaller amount."""
    times = take_turns({str(n): run for n, run in runs.items()}, repeats, 60.0)
    medians = {n: 1e3 * statistics.median(times[str(n)]) for n in runs}
    each = [ms / n for n, ms in sorted(medians.items())]
    excess = [each[i] / min(each[:i]) - 1 for i in range(1, len(each))]
    return {
        "milliseconds": {str(n): round(ms, 2) for n, ms in medians.items()},
        "excess": round(max(*excess, 0.0), 3),
    }


def transparent(count: int, size: int) -> partial[None]:
    scene = shell(count, CHANNELS, 1, size)
    metres = 1.0 / (3.6 * size)  # of a pixel, at 1 m
    scene = replace(
        scene,
        scales=metres * (0.5 + torch.rand(count, 3, generator=torch.Generator().manual_seed(1))),
        opacities=torch.full((count,), 0.02),
    )
    return partial(step, list(astuple(scene)), "native", size)


def dense(size: int) -> partial[None]:
    scene = shell(int(PER_PIXEL * size**2), CHANNELS, 1, size)
    return partial(step, list(astuple(scene)), "native", size)


if __name__ == "__main__":
    main()
