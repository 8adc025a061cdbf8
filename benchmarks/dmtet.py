"""One extraction of the head's surface and its gradients: coarse to fine against the whole lattice.

    python -m benchmarks.dmtet --json result.json

The twin gives the geometry network every node, with gradient. Peak memory is what a step adds to
that of a fresh process; both kinds of process take turns. The floor counts the products of the
network at the ends of the crossed edges, forward and backward. The twin at 128 cells takes about
13 GB (computed).
"""

from __future__ import annotations

import multiprocessing
import statistics
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.harness import Options, Run, measure_machine, options, report, row, take_turns
from gha_core.geometry.extraction import Extractor, fit_sphere
from gha_core.geometry.marching import blend, cross, interpolate
from gha_core.geometry.networks import HeadNetworks
from gha_core.geometry.tetrahedra import Lattice, fill_box
from gha_core.tracked_face import TrackedFace

WIDTH, SIDE = 64, 1.6  # of the networks, of the box in head lengths
FULL = [32, 64, 128]  # cells along each side
QUICK = [24, 40]


def main() -> None:
    chosen = options(__doc__)
    machine = measure_machine()
    rows = []
    for resolution in QUICK if chosen.quick else FULL:
        runs, network, ends = prepare(resolution)
        times = take_turns(runs, chosen.repeats, 4.0 if chosen.quick else 60.0)
        operations = 3 * 2 * products(network) * ends
        name = f"surface of {resolution}^3 cells, width {WIDTH}, forward + backward"
        timed = row(name, times, machine.floor(operations, 0))
        rows.append(timed | {"peak_mb": peaks(resolution, chosen)})
    report(rows, machine, chosen)
    for each in rows:
        ours, twin = each["peak_mb"]["ours"], each["peak_mb"]["twin"]
        ratio = twin / max(ours, 1)  # coarse: nothing that was not there
        print(f"{each['name']}: peak memory {ours} MB, twin {twin} MB, {ratio:.1f} times")


def prepare(resolution: int) -> tuple[dict[str, Run], HeadNetworks, int]:
    """Both ways on the same network, which was fitted to a sphere; and the number of crossed ends.
    They are checked against each other on a small lattice."""
    lattice = cube(resolution)
    networks = HeadNetworks(2, WIDTH)
    fit_sphere(networks, cube(16), 0.5, 100, 0)
    face = TrackedFace(
        torch.eye(3), torch.tensor([[0, 1, 2]]), torch.zeros(2, 3, 3), torch.eye(3), {}
    )
    extractor = Extractor(lattice, lattice.spacing / 2, face)

    def ours(extractor: Extractor = extractor) -> list[Tensor]:
        surface = extractor.surface(networks, "the benchmark")
        return gradients(networks, surface.vertices, surface.features)

    small = Extractor(cube(20), 0.01, face, coarsest=8)
    torch.testing.assert_close(
        ours(small), everywhere(networks, small.lattice, 0.01), atol=1e-4, rtol=1e-3
    )
    with torch.no_grad():
        ends = len(extractor.surface(networks, "the benchmark").offsets)
    twin = partial(everywhere, networks, lattice, lattice.spacing / 2)
    return {"ours": ours, "twin": twin}, networks, ends


def cube(resolution: int) -> Lattice:
    return fill_box([-SIDE / 2] * 3, [SIDE / 2] * 3, resolution)


def everywhere(networks: HeadNetworks, lattice: Lattice, offset_scale: float) -> list[Tensor]:
    nodes = lattice.positions(torch.arange(len(lattice)))
    values = networks.neutral(nodes)
    sdf = values.sdf.detach()
    crossing = cross(lattice.crossed_tets(sdf), sdf)
    positions = nodes + values.offset * offset_scale
    vertices, weights = interpolate(
        positions[crossing.nodes], values.sdf[crossing.nodes], crossing.pairs
    )
    features = blend(values.features[crossing.nodes], weights, crossing.pairs)
    return gradients(networks, vertices, features)


def gradients(networks: HeadNetworks, vertices: Tensor, features: Tensor) -> list[Tensor]:
    loss = vertices.square().mean() + features.square().mean()
    return list(torch.autograd.grad(loss, list(networks.geometry.parameters())))


def products(networks: HeadNetworks) -> int:
    """Multiplications of the geometry network for one point."""
    return sum(layer.weight.numel() for layer in cast(list[nn.Linear], [*networks.geometry.layers]))


def peaks(resolution: int, chosen: Options) -> dict[str, int]:
    """Megabytes that a step of each way takes, medians over fresh processes."""
    found: dict[str, list[int]] = {"ours": [], "twin": []}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(1 if chosen.quick else 3):
        for way, values in found.items():
            with spawn.Pool(1) as pool:
                values.append(pool.apply(peak, (way, resolution, torch.get_num_threads())))
    return {way: round(statistics.median(values)) for way, values in found.items()}


def peak(way: str, resolution: int, threads: int) -> int:
    """Megabytes (10^6 bytes) of the largest memory during one step, over that before it. Linux."""
    torch.set_num_threads(threads)
    prepare(12)[0][way]()  # what is loaded and set up once
    step = prepare(resolution)[0][way]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to the present
    before = _kilobytes("VmRSS")
    step()
    return (_kilobytes("VmHWM") - before) * 1024 // 10**6


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
