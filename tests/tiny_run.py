"""A run of all seven stages at a tiny size, made once per session: see conftest.py."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gha_core.artifacts.stage_folder import writing
from gha_core.splits import Splits
from tasks.parameters import STAGES
from tasks.stage import Inputs

SPLITS = Splits(test_sequences=("FREE",))
TINY: dict[str, dict[str, Any]] = {
    "ingest": {"image_size": 128},
    "geometry": {"steps": 25, "image_size": 64, "resolution": 16, "output_resolution": 20},
    # With all parts that the default leaves out, so that viewer and export meet them, too.
    "avatar": {
        "steps": 40,
        "gaussians": 1500,
        "width": 16,
        "crop": 64,
        "super_resolution_width": 8,
        "view_dependence": True,
    },
    "evaluation": {"max_views": 4, "video_frames": 4},
}


def make(root: Path, capture: Path, stages: Sequence[str] = STAGES) -> Path:
    """Run ``stages`` on ``capture``; returns the folder of their artifacts."""
    for stage in stages:
        module = importlib.import_module(f"tasks.{stage}")
        work = root / "work" / stage
        work.mkdir(parents=True)
        inputs = Inputs("tiny", capture, "auto", root / "artifacts", work, SPLITS)
        with writing(root / "artifacts" / stage) as out:
            module.run(inputs, module.Params(**TINY.get(stage, {})), out)
    return root / "artifacts"
