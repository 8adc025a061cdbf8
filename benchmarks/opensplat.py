"""OpenSplat's CPU rasteriser (AGPL-3.0) as a peer; compiled from a user's checkout for measurements
only, and no part of gha."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import load

from gha_core.splatting.projection import Projected
from gha_core.splatting.scene import Scene

_BINDING = """
#include <torch/extension.h>
#include "bindings.h"
using torch::Tensor;
std::vector<Tensor> step(int width, int height, Tensor xys, Tensor conics, Tensor colors,
                         Tensor opacities, Tensor background, Tensor covariances, Tensor depths,
                         Tensor by_image, Tensor by_alpha) {
    auto [image, through, lists] = rasterize_forward_tensor_cpu(
        width, height, xys, conics, colors, opacities, background, covariances, depths);
    auto [by_xys, by_conics, by_colors, by_opacities] = rasterize_backward_tensor_cpu(
        height, width, xys, conics, colors, opacities, background, covariances, depths, through,
        lists, by_image, by_alpha);
    delete[] lists;
    return {image, by_xys, by_conics, by_colors, by_opacities};
}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("step", &step); }
"""


def compile_rasteriser(checkout: Path) -> Callable[..., list[Tensor]]:
    """Image, then gradients of means, conics, colours and opacities, of what :func:`arguments`
    gives."""
    folder = (checkout / "rasterizer" / "gsplat-cpu").resolve()
    if not (folder / "gsplat_cpu.cpp").is_file():
        raise SystemExit(f"{folder} has no gsplat_cpu.cpp; --opensplat names OpenSplat's checkout.")
    binding = folder / "binding.cpp"
    binding.write_text(_BINDING)
    module = load(
        "opensplat_cpu",
        [str(folder / "gsplat_cpu.cpp"), str(binding)],
        extra_cflags=["-O3", "-march=native"],
    )
    step: Callable[..., list[Tensor]] = module.step
    return step


def arguments(scene: Scene, seen: Projected) -> list[object]:
    """The first view: its pixels' centres are whole numbers, and it draws all that it is given."""
    shown = seen.visible[0]
    scene = replace(scene, features=scene.features[shown], opacities=scene.opacities[shown])
    conics = seen.conics[0, shown]
    a, b, c = conics.unbind(-1)
    covariances = torch.stack([c, -b, -b, a], -1) / (a * c - b * b)[:, None]
    return [
        scene.width, scene.height, (seen.means2d[0, shown] - 0.5).contiguous(), conics,
        scene.features, scene.opacities[:, None], scene.background,
        covariances.reshape(-1, 2, 2), seen.depths[0, shown],
        torch.ones(scene.height, scene.width, 3), torch.zeros(scene.height, scene.width),
    ]  # fmt: skip
