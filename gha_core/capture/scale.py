"""Reconstructions whose scale is arbitrary, brought near to metres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from gha_core.cameras import Camera, convergence
from gha_core.errors import CaptureError


def at_one_metre(cameras: Mapping[str, Camera]) -> tuple[dict[str, Camera], str]:
    """The cameras with their world scaled so that their median distance from what they look at is
    1 m, and a note that says so. Tracking finds the head's own size from there.

    Cameras that look at nothing in common, or just one, keep their scale.
    """
    everyone = list(cameras.values())
    try:
        target = convergence(everyone)
    except (CaptureError, np.linalg.LinAlgError):
        return dict(cameras), "The scale is unknown and was left as it is."
    distance = float(np.median([np.linalg.norm(each.centre - target) for each in everyone]))
    if not np.isfinite(distance) or distance <= 0:
        return dict(cameras), "The scale is unknown and was left as it is."

    def scaled(camera: Camera) -> Camera:
        w2c = camera.w2c.copy()
        w2c[:3, 3] /= distance
        return replace(camera, w2c=w2c)

    return {name: scaled(each) for name, each in cameras.items()}, (
        "The scale is arbitrary: the world was made "
        f"{1 / distance:.6g} times as large, so that the cameras are 1 m from what they look at."
    )
