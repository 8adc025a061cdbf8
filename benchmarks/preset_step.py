"""A few training steps of the avatar at a preset's size: seconds per step and peak memory.

    python -m benchmarks.preset_step paper [--steps 3] [--quick] [--json FILE]

The pictures are noise, the Gaussians an ellipsoid; sizes, losses and the work of a step are the
preset's. The peak is that of the whole process (CPU): decoded pictures, moments of Adam and the
checkpoint at the end included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.scenes import avatar_head
from benchmarks.train_step import Noise
from gha_core.avatar.super_resolution import SuperResolution
from gha_core.avatar.training import train
from gha_core.losses import PerceptualDistance
from tasks import presets
from tasks.parameters import read_yaml, sections

QUICK = {"gaussians": 4000, "size": 256, "crop": 128}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=presets.names())
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help=f"with {QUICK}")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    result = measure(given.preset, given.steps, given.quick)
    print(json.dumps(result, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(preset: str, steps: int, quick: bool) -> dict[str, Any]:
    values: Any = sections(read_yaml(presets.FOLDER / f"{preset}.yaml"))
    params, size = values["avatar"], values["ingest"].image_size
    if quick:
        params = params.model_copy(update={key: QUICK[key] for key in ("gaussians", "crop")})
        size = QUICK["size"]
    width, scale = params.super_resolution_width, params.super_resolution_scale
    channels = params.channels if width else 3
    head = avatar_head(params.gaussians, channels, params.width, params.features)
    drawing = SuperResolution(channels, width, scale) if width else None
    views = Noise(size, frames=1, views=params.views, scale=scale)
    config = replace(params.training(), steps=steps, relocations=0, checkpoint_seconds=1e9)
    with tempfile.TemporaryDirectory() as work:
        train(head, drawing, views, PerceptualDistance(), config, Path(work), "")  # type: ignore[arg-type]
    ended = time.perf_counter()
    # KiB on Linux, whose kernel has no finer answer.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "preset": preset,
        "gaussians": params.gaussians,
        "picture": size,
        "views": params.views,
        "threads": torch.get_num_threads(),
        "seconds_per_step": round((ended - views.began[0]) / steps, 2),
        "peak_GiB": round(peak, 2),
    }


if __name__ == "__main__":
    main()
