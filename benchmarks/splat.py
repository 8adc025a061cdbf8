"""Splatting of Gaussians, forward and backward: what is chosen here against the twin in PyTorch and
against every other installed backend.

    python -m benchmarks.splat --json result.json
    python -m benchmarks.splat --device cuda --json result.json
    python -m benchmarks.splat --opensplat CHECKOUT --json result.json

The floor is the longer of two times. Arithmetic: of every pixel that a Gaussian adds to, its
quadratic form, exponential, limits and blend, the same again with the gradients in the backward
pass, and 6 operations per channel (2 forward, 4 backward); and the projection of every Gaussian;
all at the rate that a product of large matrices reaches here, which is less than what multiply-adds
in registers alone would. Memory: three passes over parameters and images, at the rate of a large
copy. Not counted, though all must do it: sorting by depth and finding the pixels.

With --opensplat a checkout of github.com/pierotofy/OpenSplat is compiled and composites the same
projected Gaussians, forward and backward, on its one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, fields, replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Case, options, run_cases
from benchmarks.opensplat import arguments, compile_rasteriser
from benchmarks.scenes import Shell, shell
from gha_core.splatting import BACKENDS, Splat, native, rasterize_gaussians, twin
from gha_core.splatting.projection import MIN_ALPHA, MIN_TRANSMITTANCE, Projected, project
from gha_core.splatting.scene import Scene
from gha_core.splatting.twin import Planes

# Of a Gaussian at a pixel: the quadratic form, the exponential (18), the limits and the blend; in
# the backward pass these again and what the gradients of alpha, mean and conic take.
FORWARD_OPERATIONS, BACKWARD_OPERATIONS = 35, 58
PROJECT_OPERATIONS = 600  # of a Gaussian in a view, forward (170) and backward
_BAND = 4  # px, rows that are counted at a time

FULL = [(10_000, 128, 32), (50_000, 256, 32), (50_000, 256, 3)]
QUICK = [(5_000, 64, 3), (10_000, 128, 32)]
COMPOSITE = [(10_000, 128), (50_000, 256)]  # 3 channels
CUDA = [(144_000, 512, 32)]  # the paper's size, too large for the CPU's twin


def main() -> None:
    chosen = options(
        __doc__, ("cpu", "cuda"), opensplat="a checkout of OpenSplat, to be timed beside ours"
    )
    sizes = QUICK if chosen.quick else FULL
    if chosen.device == "cuda" and not chosen.quick:
        sizes = CUDA + FULL
    cases = [case(*size, chosen.device) for size in sizes]
    if checkout := chosen.folders["opensplat"]:
        peer = compile_rasteriser(checkout)
        cases += [
            composite_case(*size, peer) for size in (COMPOSITE[:1] if chosen.quick else COMPOSITE)
        ]
    run_cases(cases, chosen)


def case(count: int, size: int, channels: int, device: str) -> Case:
    scene = shell(count, channels, 1, size)
    with torch.no_grad():
        pairs = drawn_pairs(scene, size)
    operations = pairs * pair_operations(channels) + count * PROJECT_OPERATIONS
    parameters = sum(tensor.numel() for tensor in astuple(scene))
    moved = 4 * (3 * parameters + 3 * size * size * (channels + 2))
    inputs = [tensor.to(device) for tensor in astuple(scene)]
    ours, *others = BACKENDS.usable(device)
    slow = BACKENDS.known[-1]
    return Case(
        f"splat {count} Gaussians, {size}x{size}, {channels} channels, forward + backward, "
        f"{ours.name} on {device}",
        ours=partial(step, inputs, ours.name, size),
        twin=partial(step, inputs, slow.name, size),
        operations=operations,
        moved=moved,
        peers={b.name: partial(step, inputs, b.name, size) for b in others if b is not slow},
    )


def pair_operations(channels: int) -> int:
    """The backward pass has twice as many products of features as the forward one."""
    return FORWARD_OPERATIONS + BACKWARD_OPERATIONS + 6 * channels


def composite_case(count: int, size: int, peer: Callable[..., list[Tensor]]) -> Case:
    """Compositing alone, of what is projected once."""
    *gaussians, K, w2c = astuple(shell(count, 3, 1, size))
    scene = Scene(*gaussians, torch.zeros(3), K, w2c, size, size)
    seen, given = project(scene), arguments(scene, project(scene))
    theirs = peer(*given)[0]
    difference = (theirs - native.composite(seen, scene)[0][0]).abs().mean()
    if difference > 1e-3:
        raise SystemExit(f"OpenSplat draws another picture: mean difference {difference:.1e}.")
    threads = torch.get_num_threads()
    pairs = drawn_pairs(shell(count, 3, 1, size), size)
    return Case(
        f"composite {count} Gaussians, {size}x{size}, 3 channels, forward + backward, native",
        ours=partial(composite_step, native.composite, seen, scene, threads),
        twin=partial(composite_step, twin.composite, seen, scene, threads),
        operations=pairs * pair_operations(3),
        moved=4 * (count * 2 * 11 + 6 * size * size * 5),
        peers={
            "OpenSplat": partial(peer, *given),
            "ours on one core": partial(composite_step, native.composite, seen, scene, 1),
        },
    )


def composite_step(
    composite: Callable[[Projected, Scene], Planes], seen: Projected, scene: Scene, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    leaves = [t.detach().requires_grad_() for t in (seen.means2d, seen.conics)]
    more = [t.detach().requires_grad_() for t in (scene.features, scene.opacities)]
    flat = replace(seen, means2d=leaves[0], conics=leaves[1])
    image, *_ = composite(flat, replace(scene, features=more[0], opacities=more[1]))
    image.backward(torch.ones_like(image))
    torch.set_num_threads(before)


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
