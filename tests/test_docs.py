"""The docs against the code: examples run, quoted errors exist, links and commands lead on."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from av import open as open_video
from tiny_captures import picture, rig, write_video

from flows.cli import app
from gha_core.capture import detect_format, open_capture

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def example(name: str, *arguments: Path) -> None:
    runpy.run_path(str(ROOT / "docs/examples" / name))["main"](*arguments)


def test_opencv_calibrations_become_a_rig(tmp_path: Path) -> None:
    cameras = rig()
    (tmp_path / "calibration").mkdir()
    for camera in cameras:
        file = tmp_path / "calibration" / f"{camera.name}.yml"
        stored = cv2.FileStorage(str(file), cv2.FILE_STORAGE_WRITE)
        K = camera.K.copy()
        K[:2, 2] -= 0.5
        stored.write("camera_matrix", K)
        stored.write("distortion_coefficients", np.zeros((1, 5)))
        stored.write("rvec", cv2.Rodrigues(camera.w2c[:3, :3])[0])
        stored.write("tvec", camera.w2c[:3, 3])
        stored.write("image_width", camera.width)
        stored.write("image_height", camera.height)
        stored.release()
        frames = [picture(k) for k in range(3)]
        write_video(tmp_path / "videos" / f"{camera.name}.mp4", frames)
    arguments = (tmp_path / "calibration", tmp_path / "videos", tmp_path / "anna")
    example("01_rig_from_opencv.py", *arguments)
    assert detect_format(tmp_path / "anna") == "rig"
    found = open_capture(tmp_path / "anna", "rig").cameras
    assert sorted(each.name for each in found) == sorted(each.name for each in cameras)
    for camera in cameras:
        same = next(each for each in found if each.name == camera.name)
        np.testing.assert_allclose(same.K, camera.K, atol=1e-6)
        np.testing.assert_allclose(same.w2c, camera.w2c, atol=1e-6)


@pytest.mark.slow
def test_examples_of_an_avatar(
    tiny_artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example("02_look_at_an_avatar.py", tiny_artifacts / "avatar", tmp_path / "around.mp4")
    with open_video(str(tmp_path / "around.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 24
    assert np.abs(frames[6].astype(int) - frames[18]).max() > 30, "another side"
    capsys.readouterr()
    example("03_worst_frames.py", tiny_artifacts / "evaluation")
    assert re.match(r"\d+ pictures, \d+\.\d+ dB", capsys.readouterr().out)


def test_example_of_splatting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "photo.png"), picture(3))
    example("04_splat_a_picture.py", tmp_path / "photo.png", tmp_path / "splatted.png")
    first, last = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert last < first / 4
    assert cv2.imread(str(tmp_path / "splatted.png")).shape == (96, 96, 3)


def texts() -> list[str]:
    """All texts of the code; of those that are filled in, the parts between."""
    return [
        node.value
        for folder in ("gha_core", "tasks", "flows")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_quoted_errors_exist() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [line[4:] for line in page.splitlines() if line.startswith("### ") and "…" in line]
    assert len(quoted) > 15
    code = "\n".join(texts())
    for sentence in quoted:
        parts = [part.strip() for part in sentence.split("…")]
        missing = [part for part in parts if part and part not in code]
        assert not missing, f"docs/troubleshooting.md quotes {sentence!r}; no code says {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_commands_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links {target}"
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    code = [*re.findall(r"```sh\n(.*?)```", text, re.DOTALL), *re.findall(r"`(gha [^`]*)`", text)]
    for command in re.findall(r"^gha ([a-z][a-z-]*)", "\n".join(code), re.MULTILINE):
        assert command in known, f"{page.name} names gha {command}"
