"""All seven stages, from a filmed capture to a scored and driven avatar, at a tiny size."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_run import SPLITS

from gha_core.artifacts import schemas
from gha_core.artifacts.tables import read_table
from gha_core.avatar import Avatar
from gha_core.dataset import Dataset
from tasks.parameters import STAGES

AGAIN = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[3]))
from tiny_run import STAGES, make
make(Path(sys.argv[1]), Path(sys.argv[2]), STAGES[:-1])
"""


@pytest.mark.slow
def test_another_process_in_another_folder_makes_the_same_bytes(
    tiny_artifacts: Path, tiny_capture: Path, tmp_path: Path
) -> None:
    """Of everything up to the avatar: no clock, path, hash seed, order of files or number of BLAS's
    threads shows."""
    elsewhere = shutil.copytree(tiny_capture, tmp_path / "footage" / tiny_capture.name)
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
    first, second = hashes(tiny_artifacts), hashes(again / "artifacts")
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
def test_every_stage_leaves_a_summary_and_a_picture(tiny_artifacts: Path) -> None:
    for stage in STAGES:
        assert json.loads((tiny_artifacts / stage / "summary.json").read_text())
        assert (tiny_artifacts / stage / "preview.jpg").stat().st_size > 1000


@pytest.mark.slow
def test_scores_are_of_held_out_frames_only(tiny_artifacts: Path) -> None:
    table = read_table(tiny_artifacts / "evaluation" / "frames.parquet", schemas.SCORES)
    scores = table.to_pylist()
    assert {row["sequence"] for row in scores} == {"FREE"}
    head = [r["value"] for r in scores if (r["region"], r["metric"]) == ("head", "psnr")]
    mean = [r["value"] for r in scores if r["metric"] == "psnr_mean_image"]
    assert np.mean(head) > np.mean(mean), "even a tiny avatar beats the mean image"


@pytest.mark.slow
def test_the_report_opens_from_the_file(tiny_artifacts: Path) -> None:
    page = (tiny_artifacts / "evaluation" / "report.html").read_text()
    assert "tiny" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing is loaded from elsewhere"
    assert (tiny_artifacts / "evaluation" / "video.mp4").stat().st_size > 1000


@pytest.mark.slow
def test_the_avatar_answers_to_pose_and_expression(tiny_artifacts: Path) -> None:
    avatar = Avatar.load(tiny_artifacts / "avatar")
    dataset = Dataset(tiny_artifacts / "ingest", None, tiny_artifacts / "tracking", SPLITS)
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
def test_weights_are_safetensors(tiny_artifacts: Path) -> None:
    for path in tiny_artifacts.rglob("*"):
        assert path.suffix not in {".pt", ".pth", ".pkl", ".npy", ".npz"}
    with safe_open(tiny_artifacts / "avatar" / "avatar.safetensors", "np") as file:
        assert len(list(file.keys())) > 10
