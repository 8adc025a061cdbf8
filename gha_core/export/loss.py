"""What an export loses: its pictures against the avatar's, and against photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gha_core.dataset import Dataset, View
from gha_core.evaluation.metrics import psnr
from gha_core.evaluation.regions import TrackedFace, region_masks
from gha_core.evaluation.scoring import Drivable
from gha_core.export.splats import Splats
from gha_core.export.targets import Target
from gha_core.progress import track


@torch.no_grad()
def likeness(splats: Splats, targets: Sequence[Target]) -> float:
    """Mean PSNR (dB) of the Gaussians' pictures over white, where the avatar is."""
    white = torch.ones(3)
    values = []
    for target in targets:
        height, width = target.alpha.shape[:2]
        picture, _ = splats.render(target.K, target.w2c, width, height, white)
        wanted, shown = (
            (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            for image in (target.over(white), picture)
        )
        values.append(psnr(wanted, shown, target.alpha[..., 0].numpy() > 0))
    return float(np.mean(values))


def against_truth(
    full: Drivable, less: Drivable, dataset: Dataset, face: TrackedFace, views: Sequence[View]
) -> tuple[float, float, float]:
    """Mean PSNR (dB) of the head: of ``full`` and of ``less`` against the photos, and of ``less``
    against ``full``; the regions and rules are those of the evaluation."""
    rows = []
    for view in track(views, "measuring the loss", total=len(views)):
        camera, (pose, expression) = dataset.cameras[view.camera], view.motion
        masks = region_masks(face, camera, pose, expression, dataset.alpha(view))
        head = masks["head"] & dataset.inside(view)
        truth = dataset.over_white(view)
        first, _ = full.render(camera, pose, expression)
        second, _ = less.render(camera, pose, expression)
        pairs = (truth, first), (truth, second), (first, second)
        rows.append([psnr(*pair, head) for pair in pairs])
    full_value, less_value, between = np.nanmean(rows, axis=0).tolist()
    return full_value, less_value, between
