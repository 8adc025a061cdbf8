"""What each part of the avatar is worth: train without it, at the same budget, and score.

    python -m benchmarks.ablations data/subjects/demo --work FOLDER --seeds 3 --json FILE
    python -m benchmarks.ablations data/subjects/demo --work FOLDER --quick

The artifacts of ingest to geometry are taken as they are; only the avatar is trained, with the
project's parameters changed as VARIANTS says, in as many steps for all; the CPU seconds of each are
told. Every training and its scores are kept in the work folder: killed and run again, it goes on.
Scores: head-masked PSNR and SSIM, and mouth and eyes, on the hardest held-out task.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from gha_core.evaluation.catalogue import TASKS  # noqa: E402
from gha_core.splits import Splits  # noqa: E402
from tasks import avatar, evaluation  # noqa: E402
from tasks.parameters import merged, resolve  # noqa: E402
from tasks.stage import Inputs  # noqa: E402

# Name -> changes of the avatar's parameters. That the landmark distance is squared in the published
# configuration is told by its radii. Those of the geometry stage (geometry.t1, t2) stay.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no expression prior": {"expression_prior": False},
    "no geometry, face model's mesh": {"geometry": False},
    "no expression networks": {"expression_networks": False},
    "no attribute networks": {"attribute_networks": False},
    "with super-resolution": {"super_resolution_width": 16},
    "super-resolution alone, as published": {"super_resolution_width": 16, "sharp": False},
    "with perceptual loss": {"weights": {"perceptual": 0.1}},
    "no structural loss": {"weights": {"structure": 0.0}},
    "no pose correction": {"rates": {"pose_correction": 0.0}},
    "expression correction": {"rates": {"expression_correction": 5e-3}},
    "camera colours": {"rates": {"camera_colour": 1e-3}},
    "colours that depend on the view": {"view_dependence": True},
    "no pose shading": {"pose_shading": False},
    "warm-up of 100 steps": {"warm_up": 100},
    "frames of rare expressions more often": {"rare_expressions": 0.5},
    "no relocation": {"relocations": 0},
    "radii of squared distances (0.32, 0.5)": {"reach": [0.316, 0.5]},
}
QUICK = {"steps": 100, "gaussians": 3000}
METRICS = (("head", "psnr"), ("head", "ssim"), ("mouth_eyes", "psnr"), ("full", "akd"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, help="data/subjects/NAME")
    parser.add_argument("--work", type=Path, required=True, help="keeps what is finished")
    parser.add_argument("--project", type=Path, default=Path(), help="where params.yaml is")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="instead of the project's")
    parser.add_argument("--only", action="append", choices=VARIANTS, help="repeatable")
    parser.add_argument("--views", type=int, default=48, help="most views scored per task")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="100 steps of 3000 Gaussians, 1 seed")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    resolved = resolve(given.project, "avatar", given.artifacts.name)
    common: dict[str, Any] = {"steps": given.steps} if given.steps else {}
    common |= QUICK if given.quick else {}
    seeds = range(1 if given.quick else given.seeds)
    names = given.only or list(VARIANTS)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in seeds:  # seed after seed, so that an early stop leaves a whole table
        for name in names:
            values = merged(merged(resolved.params.model_dump(), common), VARIANTS[name])
            params = avatar.Params.model_validate(values)
            scores[name].append(
                score(given.artifacts, given.work, params, resolved.splits, seed, given.views)
            )
            print(f"seed {seed}, {name}: {scores[name][-1]}", flush=True)
    result = {name: summary(found) for name, found in scores.items()}
    print(table(result))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=2) + "\n")


def score(
    artifacts: Path, work: Path, params: avatar.Params, splits: Splits, seed: int, views: int
) -> dict[str, float]:
    """Metric -> value of one training, from the work folder if it is there."""
    key = json.dumps([params.model_dump(mode="json"), splits.model_dump(mode="json"), seed, views])
    folder = work / hashlib.sha256(key.encode()).hexdigest()[:16]
    finished = folder / "scores.json"
    if finished.exists():
        return dict(json.loads(finished.read_text()))
    inputs = Inputs(artifacts.name, artifacts, "auto", folder, folder / "work", splits, seed)
    inputs.work.mkdir(parents=True, exist_ok=True)
    for stage in ("ingest", "matting", "landmarks", "tracking", "geometry"):
        if (artifacts / stage).exists() and not (folder / stage).exists():
            (folder / stage).symlink_to((artifacts / stage).resolve())
    began = time.process_time()
    if not (folder / "avatar").exists():
        new = folder / "avatar.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        avatar.run(inputs, params, new)
        new.rename(folder / "avatar")
    trained = time.process_time() - began
    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    (folder / "evaluation").mkdir()
    wanted = {"max_views": views, "video_frames": 2, "milestone_views": 0}
    evaluation.run(inputs, evaluation.Params(**wanted), folder / "evaluation")  # type: ignore[arg-type]
    tasks = json.loads((folder / "evaluation" / "metrics.json").read_text())
    regions = next(tasks[task] for task in TASKS if task in tasks)
    found = {
        f"{region} {metric}": regions[region][metric]["mean"]
        for region, metric in METRICS
        if metric in regions.get(region, {})
    }
    found["training CPU s"] = round(trained, 1)
    finished.write_text(json.dumps(found))
    shutil.rmtree(inputs.work, ignore_errors=True)
    return found


def summary(found: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Metric -> mean and standard deviation over the seeds."""
    return {
        metric: {
            "mean": round(statistics.fmean(each[metric] for each in found), 4),
            "std": round(statistics.pstdev([each[metric] for each in found]), 4),
        }
        for metric in found[0]
    }


def table(result: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A Markdown table; what differs from "full" is told as a difference."""
    metrics = list(next(iter(result.values())))
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    full = result.get("full")
    for name, row in result.items():
        cells = []
        for metric in metrics:
            cell = f"{row[metric]['mean']:.4g} ± {row[metric]['std']:.2g}"
            if full and name != "full":
                cell += f" ({row[metric]['mean'] - full[metric]['mean']:+.3g})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
