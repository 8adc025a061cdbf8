"""Plain Gaussians that look like the avatar's full render, which no plain 3DGS program can make.

The avatar's picture is its Gaussians' feature image seen through a network. Here the network's part
is given to the Gaussians: their colours, opacities and sizes are refined until their own picture
comes near the network's, over backgrounds of any brightness, from many sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from gha_core.export.splats import Splats
from gha_core.export.targets import Target
from gha_core.progress import track

# Learning rates: colours (sRGB), opacity logits, log scales; they fall to a tenth.
RATES = {"colours": 0.01, "opacities": 0.05, "scales": 0.01}
_EDGE = 1e-4


def fit(start: Splats, targets: Sequence[Target], steps: int, seed: int = 0) -> Splats:
    """``start`` with colours, opacities and scales that fit the targets (all of one moment).

    Minimises the mean absolute and squared error of a random target per step by Adam.
    """
    parameters = {
        "colours": start.colours.clone(),
        "opacities": torch.logit(start.opacities.clamp(_EDGE, 1 - _EDGE)),
        "scales": start.scales.log(),
    }
    for value in parameters.values():
        value.requires_grad_(True)
    optimiser = torch.optim.Adam(
        [{"params": [value], "lr": RATES[name]} for name, value in parameters.items()]
    )
    decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / max(steps, 1)))

    def current() -> Splats:
        return replace(
            start,
            colours=parameters["colours"],
            opacities=torch.sigmoid(parameters["opacities"]),
            scales=parameters["scales"].exp(),
        )

    rng = np.random.default_rng((seed, 7))
    for _ in track(range(steps), "fitting colours", total=steps):
        loss = error(current(), targets[int(rng.integers(len(targets)))], rng)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            parameters["colours"].clamp_(0, 1)
        decay.step()
    for value in parameters.values():
        value.requires_grad_(False)
    return current()


def error(splats: Splats, target: Target, rng: np.random.Generator) -> torch.Tensor:
    """How unlike its target a picture of the Gaussians is, over a grey drawn from ``rng``."""
    height, width = target.alpha.shape[:2]
    background = torch.full((3,), float(rng.integers(3)) / 2)
    picture, _ = splats.render(target.K, target.w2c, width, height, background)
    difference = picture - target.over(background)
    return difference.abs().mean() + 4 * difference.square().mean()
