"""Splatting of Gaussians, forward and backward: what is chosen here against the twin in PyTorch and
against every other installed backend.

    python -m benchmarks.splat --json result.json
    python -m benchmarks.splat --device cuda --json result.json

The floor counts, of every pixel that a Gaussian does reach, its exponential, its features and their
gradients; and for memory one reading of the parameters and images and one writing of the gradients.
"""

from __future__ import annotations

from dataclasses import astuple, fields
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, options, run_cases
from benchmarks.scenes import Shell, shell
from gha_core.splatting import BACKENDS, Splat, rasterize_gaussians
from gha_core.splatting.projection import MIN_ALPHA, MIN_TRANSMITTANCE, project
from gha_core.splatting.scene import Scene

ALPHA_OPERATIONS = 30  # of a Gaussian at a pixel: the quadratic form, the exponential, the blend
_BAND = 4  # px, rows that are counted at a time

FULL = [(10_000, 128, 32), (50_000, 256, 32), (200_000, 256, 32), (50_000, 1024, 32)]
FULL += [(10_000, 256, 3), (50_000, 256, 3)]
QUICK = [(5_000, 64, 3), (10_000, 128, 32)]
CUDA = [(144_000, 512, 32)]  # the paper's size, too large for the CPU's twin


def main() -> None:
    chosen = options(__doc__, ("cpu", "cuda"))
    sizes = QUICK if chosen.quick else FULL
    if chosen.device == "cuda" and not chosen.quick:
        sizes = CUDA + FULL
    run_cases([case(*size, chosen.device) for size in sizes], chosen)


def case(count: int, size: int, channels: int, device: str) -> Case:
    scene = shell(count, channels, 1, size)
    with torch.no_grad():
        pairs = drawn_pairs(scene, size)
    # The backward pass computes alpha again, then twice as many products as the forward one.
    operations = pairs * (2 * ALPHA_OPERATIONS + 6 * channels)
    parameters = sum(tensor.numel() for tensor in astuple(scene))
    moved = 4 * (3 * parameters + 3 * size * size * (channels + 2))
    inputs = [tensor.to(device) for tensor in astuple(scene)]
    ours, *others = BACKENDS.usable(device)
    twin = BACKENDS.known[-1]
    return Case(
        f"splat {count} Gaussians, {size}x{size}, {channels} channels, forward + backward, "
        f"{ours.name} on {device}",
        ours=partial(step, inputs, ours.name, size),
        twin=partial(step, inputs, twin.name, size),
        operations=operations,
        moved=moved,
        peers={b.name: partial(step, inputs, b.name, size) for b in others if b is not twin},
    )


def step(inputs: list[Tensor], backend: str, size: int) -> None:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    splat = rasterize_gaussians(*leaves, width=size, height=size, backend=backend)
    planes = [getattr(splat, plane.name) for plane in fields(Splat)]
    torch.autograd.backward(planes, [torch.ones_like(plane) for plane in planes])


def drawn_pairs(scene: Shell, size: int) -> int:
    """How many times a Gaussian adds to a pixel."""
    background = scene.features.new_zeros(scene.features.shape[1])
    *gaussians, K, w2c = astuple(scene)
    seen = project(Scene(*gaussians, background, K, w2c, size, size))
    order = seen.depths[0].argsort()
    order = order[seen.visible[0, order]]
    centre, conic, opacity = seen.means2d[0, order], seen.conics[0, order], scene.opacities[order]
    a, b, c = conic.unbind(-1)
    limit = 2 * torch.log(opacity / MIN_ALPHA)
    reach = (limit / (a * c - b * b).clamp_min(1e-12))[:, None].mul(torch.stack([c, a], -1)).sqrt()
    pairs = 0
    for top in range(0, size, _BAND):
        for left in range(0, size, 4 * _BAND):
            corner = torch.tensor([left, top], dtype=torch.float32)
            extent = torch.tensor([4.0 * _BAND, _BAND])
            near = ((centre + reach > corner) & (centre - reach < corner + extent)).all(-1)
            ys, xs = torch.meshgrid(
                torch.arange(top, min(top + _BAND, size)) + 0.5,
                torch.arange(left, min(left + 4 * _BAND, size)) + 0.5,
                indexing="ij",
            )
            dx = xs.reshape(-1, 1) - centre[near, 0]
            dy = ys.reshape(-1, 1) - centre[near, 1]
            power = a[near] * dx * dx + 2 * b[near] * dx * dy + c[near] * dy * dy
            alpha = (opacity[near] * torch.exp(-0.5 * power)).clamp_max(0.999)
            alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0.0)
            open_still = torch.cumprod(1 - alpha, -1) >= MIN_TRANSMITTANCE
            pairs += int(((alpha > 0) & open_still).sum())
    return pairs


if __name__ == "__main__":
    main()
