"""One training step of the avatar with all its parts, super-resolution and perceptual distance too.

    python -m benchmarks.train_step --json result.json

The pictures are noise; the work is that of the real thing. The twin splats and evaluates the
networks in PyTorch; a peer does so with the networks alone. Steps with and without the perceptual
distance take turns, and the median is over pairs of them. The floor counts the products of all
networks, and of the pixels that Gaussians reach.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import mlp, splat
from benchmarks.harness import measure_machine, options, report, row
from benchmarks.scenes import avatar_head, moment, pictures, shell
from gha_core import perceptron, splatting
from gha_core.avatar.samples import Batch, Frame
from gha_core.avatar.super_resolution import SCALE, SuperResolution
from gha_core.avatar.training import Rates, TrainingConfig, Weights, train
from gha_core.losses import PerceptualDistance

VIEWS, CHANNELS, WIDTH = 2, 32, 16
WARM_UP = 2  # steps

FULL = [(14_000, 256, 160, 20), (50_000, 512, 320, 6)]  # Gaussians, picture, close-up (px), steps
QUICK = [(4_000, 128, 96, 6)]


class Noise:
    """Stands in for TrainingViews, and notes when each step begins."""

    def __init__(self, size: int, frames: int = 4, views: int = VIEWS, scale: int = SCALE) -> None:
        self.width = self.height = size
        self.cameras = [str(view) for view in range(views)]
        self.frames = [moment(index) for index in range(frames)]
        self._pictures = [pictures(index, views, size, scale) for index in range(frames)]
        self.began: list[float] = []

    def at_step(self, step: int, views: int) -> list[tuple[Frame, list[Batch]]]:
        self.began.append(time.perf_counter())
        index = step % len(self.frames)
        return [(self.frames[index], self._pictures[index])]


def main() -> None:
    chosen = options(__doc__)
    machine = measure_machine()
    rows = []
    for gaussians, size, crop, steps in QUICK if chosen.quick else FULL:
        times: dict[str, list[float]] = {"ours": [], "twin": [], "networks in PyTorch": []}
        for _ in range(2 if chosen.quick else 3):
            times["ours"] += step_times(gaussians, size, crop, steps)
            with mock.patch.object(perceptron.native, "perceptron_forward", None):
                times["networks in PyTorch"] += step_times(gaussians, size, crop, steps)
                with mock.patch.object(splatting.native, "splat_forward", None):
                    times["twin"] += step_times(gaussians, size, crop, 2)
        name = f"training step, {gaussians} Gaussians, {VIEWS} views of {size}x{size}"
        rows.append(row(name, times, machine.floor(operations(gaussians, size, crop), 0)))
    report(rows, machine, chosen)


def step_times(gaussians: int, size: int, crop: int, steps: int) -> list[float]:
    """Seconds per step, each the mean of two that follow one another."""
    head, drawing = avatar_head(gaussians, CHANNELS), SuperResolution(CHANNELS, WIDTH)
    views = Noise(size)
    config = TrainingConfig(
        steps + WARM_UP + 2, VIEWS, Rates(), Weights(), 0.04, crop, True, 0, 0.05, 1e9
    )
    with tempfile.TemporaryDirectory() as work:
        train(head, drawing, views, PerceptualDistance(), config, Path(work), "")  # type: ignore[arg-type]
    began = views.began[WARM_UP:]
    return [(later - early) / 2 for early, later in zip(began, began[2:], strict=False)]


def operations(gaussians: int, size: int, crop: int) -> float:
    """Of a step, half of which take the perceptual distance at one of two sizes."""
    half = size // SCALE
    head = avatar_head(gaussians, CHANNELS)
    with torch.no_grad():
        pairs = splat.drawn_pairs(shell(gaussians, CHANNELS, 1, half), half)
        sharp = splat.drawn_pairs(shell(gaussians, 3, 1, size), size) * (crop / size) ** 2
    per_view = pairs * splat.pair_operations(CHANNELS) + sharp * splat.pair_operations(3)
    network = SuperResolution(CHANNELS, WIDTH)
    inner = crop // SCALE + 2 * network.margin
    per_view += _counted(network, torch.rand(1, CHANNELS, inner, inner, requires_grad=True))
    distance = PerceptualDistance()
    for side in (half, crop):  # each in every fourth step
        target = torch.rand(1, 3, side, side)
        per_view += _counted(distance, torch.rand(1, 3, side, side, requires_grad=True), target) / 4
    return 3 * 2 * mlp.products(head) + VIEWS * per_view


def _counted(network: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Operations of the network's products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        network(*inputs).sum().backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
