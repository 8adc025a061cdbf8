"""All seven stages, from a filmed capture to a scored and driven avatar, at a tiny size."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from gha_core.artifacts import schemas
from gha_core.artifacts.stage_folder import writing
from gha_core.artifacts.tables import read_table
from gha_core.avatar import Avatar
from gha_core.dataset import Dataset
from gha_core.splits import Splits
from gha_core.synthetic.capture import SIZES, film
from tasks.parameters import STAGES
from tasks.stage import Inputs

SPLITS = Splits(test_sequences=("FREE",))
TINY: dict[str, dict[str, Any]] = {
    "ingest": {"image_size": 128},
    "geometry": {"steps": 25, "image_size": 64, "resolution": 16, "output_resolution": 20},
    "avatar": {"steps": 40, "gaussians": 1500, "width": 16, "crop": 64},
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


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("studio"), SIZES["small"])


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory, capture: Path) -> Path:
    return make(tmp_path_factory.mktemp("end_to_end"), capture)


AGAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from test_end_to_end import STAGES, make
make(Path(sys.argv[1]), Path(sys.argv[2]), STAGES[:-1])
"""


@pytest.mark.slow
def test_another_process_in_another_folder_makes_the_same_bytes(
    artifacts: Path, capture: Path, tmp_path: Path
) -> None:
    """Of everything up to the avatar: no clock, path, hash seed, order of files or number of BLAS's
    threads shows."""
    elsewhere = shutil.copytree(capture, tmp_path / "footage" / capture.name)
    again = tmp_path / "a project of another name"
    arguments = [str(again), str(elsewhere), str(torch.get_num_threads())]
    subprocess.run(
        [sys.executable, "-c", AGAIN, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTHONHASHSEED": "7",
            "OPENBLAS_NUM_THREADS": "1",
        },
        check=True,
    )
    first, second = hashes(artifacts), hashes(again / "artifacts")
    first = {path: value for path, value in first.items() if not path.startswith("evaluation")}
    assert {path.split("/")[0] for path in second} == set(STAGES[:-1])
    assert [path for path in first | second if first.get(path) != second.get(path)] == []


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_every_stage_leaves_a_summary_and_a_picture(artifacts: Path) -> None:
    for stage in STAGES:
        assert json.loads((artifacts / stage / "summary.json").read_text())
        assert (artifacts / stage / "preview.jpg").stat().st_size > 1000


@pytest.mark.slow
def test_scores_are_of_held_out_frames_only(artifacts: Path) -> None:
    scores = read_table(artifacts / "evaluation" / "frames.parquet", schemas.SCORES).to_pylist()
    assert {row["sequence"] for row in scores} == {"FREE"}
    head = [r["value"] for r in scores if (r["region"], r["metric"]) == ("head", "psnr")]
    mean = [r["value"] for r in scores if r["metric"] == "psnr_mean_image"]
    assert np.mean(head) > np.mean(mean), "even a tiny avatar beats the mean image"


@pytest.mark.slow
def test_the_report_opens_from_the_file(artifacts: Path) -> None:
    page = (artifacts / "evaluation" / "report.html").read_text()
    assert "tiny" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing is loaded from elsewhere"
    assert (artifacts / "evaluation" / "video.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_the_avatar_answers_to_pose_and_expression(artifacts: Path) -> None:
    avatar = Avatar.load(artifacts / "avatar")
    dataset = Dataset(artifacts / "ingest", None, artifacts / "tracking", SPLITS)
    view = dataset.test[0]
    pose, expression = view.motion
    camera = dataset.cameras[view.camera]
    neutral, alpha = avatar.render(camera, pose, np.zeros_like(expression))
    spoken = np.zeros_like(expression)
    spoken[avatar.expression_names.index("jawOpen")] = 1
    opened, _ = avatar.render(camera, pose, spoken)
    assert neutral.shape == (128, 128, 3)
    assert 0.1 < (alpha > 127).mean() < 0.95
    assert np.abs(opened.astype(int) - neutral).max() > 30
    larger, _ = avatar.render(camera.resized(256, 256), pose, expression)
    assert larger.shape == (256, 256, 3)


@pytest.mark.slow
def test_weights_are_safetensors(artifacts: Path) -> None:
    for path in artifacts.rglob("*"):
        assert path.suffix not in {".pt", ".pth", ".pkl", ".npy", ".npz"}
    with safe_open(artifacts / "avatar" / "avatar.safetensors", "np") as file:
        assert len(list(file.keys())) > 10
