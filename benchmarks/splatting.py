"""How long Gaussian splatting takes: every backend on the same inputs in one run.

    python benchmarks/splatting.py                      # the avatar's training step on the CPU
    python benchmarks/splatting.py --gaussians 50000 --size 256 --json result.json

The scene is a head-sized shell of Gaussians as large as their spacing, seen by cameras in front of
it. `project` is the torch part that all backends share; `forward` and `backward` are what the
backend itself does. The backends take turns, so that a busy machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gha_core.splatting import BACKENDS, native
from gha_core.splatting.projection import Projected, project


def head(count: int, channels: int, views: int, size: int) -> dict[str, Tensor]:
    """Gaussians on an ellipsoid that fills most of the image of each of `views` cameras."""
    random = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=random), dim=-1)
    axes = torch.tensor([0.08, 0.12, 0.10])
    area = 4 * math.pi * 0.1**2
    spacing = math.sqrt(area / count)
    w2c = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        turn = 0.5 * (view - (views - 1) / 2)
        w2c[view, 0, 0] = w2c[view, 2, 2] = math.cos(turn)
        w2c[view, 0, 2], w2c[view, 2, 0] = math.sin(turn), -math.sin(turn)
        w2c[view, 2, 3] = 1.0
    focal = 3.6 * size
    K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1.0]])
    return {
        "means": direction * axes,
        "quaternions": torch.randn(count, 4, generator=random),
        "scales": spacing * (0.4 + 0.6 * torch.rand(count, 3, generator=random)),
        "opacities": 0.3 + 0.65 * torch.rand(count, generator=random),
        "features": torch.randn(count, channels, generator=random),
        "K": K.repeat(views, 1, 1),
        "w2c": w2c,
    }


def time_step(
    scene: dict[str, Tensor], backend: str, size: int, gradients: list[Tensor]
) -> dict[str, float]:
    """Milliseconds of the parts of one forward and backward pass."""
    clock = time.perf_counter
    leaves = {name: value.clone().requires_grad_() for name, value in scene.items()}
    start = clock()
    projected = project(
        *(leaves[n] for n in ("means", "quaternions", "scales", "opacities", "features")),
        leaves["K"].detach(), leaves["w2c"].detach(), size, size,
    )  # fmt: skip
    projection = clock() - start
    planes = ("means2d", "conics", "depths")
    cut = {n: getattr(projected, n).detach().requires_grad_() for n in planes}
    background = torch.zeros(scene["features"].shape[1])
    start = clock()
    images = BACKENDS[backend](
        Projected(**cut, visible=projected.visible),
        leaves["opacities"], leaves["features"], background, size, size,
    )  # fmt: skip
    forward = clock() - start
    start = clock()
    torch.autograd.backward(images, gradients)
    backward = clock() - start
    start = clock()
    torch.autograd.backward([getattr(projected, n) for n in planes], [cut[n].grad for n in planes])
    return {
        "project": 1e3 * projection,
        "project_backward": 1e3 * (clock() - start),
        "forward": 1e3 * forward,
        "backward": 1e3 * backward,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option: Callable[..., object] = parser.add_argument
    option("--gaussians", type=int, default=10_000)
    option("--channels", type=int, default=32)
    option("--size", type=int, default=128, help="image width and height, px")
    option("--views", type=int, default=2)
    option("--repeats", type=int, default=7)
    option("--threads", type=int, default=os.cpu_count())
    option(
        "--backends",
        nargs="+",
        default=[b for b in BACKENDS if b != "native" or native.available()],
    )
    option("--json", type=Path, help="also write the result to this file")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    scene = head(chosen.gaussians, chosen.channels, chosen.views, chosen.size)
    random = torch.Generator().manual_seed(1)
    plane = (chosen.views, chosen.size, chosen.size)
    gradients = [
        torch.randn(*shape, generator=random) for shape in ((*plane, chosen.channels), plane, plane)
    ]

    runs: dict[str, list[dict[str, float]]] = {backend: [] for backend in chosen.backends}
    for repeat in range(chosen.repeats + 1):
        for backend in chosen.backends:
            result = time_step(scene, backend, chosen.size, gradients)
            if repeat:  # the first is for warming up
                runs[backend].append(result)

    report = {
        "settings": {k: v for k, v in vars(chosen).items() if k != "json"},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
        },
        "milliseconds": {
            backend: {part: _summary([r[part] for r in results]) for part in results[0]}
            for backend, results in runs.items()
        },
    }  # fmt: skip
    print(f"{chosen.gaussians} Gaussians, {chosen.channels} channels, {chosen.views} views of "
          f"{chosen.size}², {chosen.threads} threads; milliseconds for all views")  # fmt: skip
    print(f"{'backend':10}{'part':18}{'median':>10}{'min':>10}{'max':>10}")
    for backend, parts in report["milliseconds"].items():
        for part, s in parts.items():
            print(f"{backend:10}{part:18}{s['median']:10.2f}{s['min']:10.2f}{s['max']:10.2f}")
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "quartile_distance": round(
            statistics.quantiles(values, n=4)[2] - statistics.quantiles(values, n=4)[0], 3
        ) if len(values) > 1 else 0.0,
    }  # fmt: skip


if __name__ == "__main__":
    main()
