"""A bad capture stops at once, with a sentence that names the culprit and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_captures import (
    SERIALS,
    calibration,
    numbered,
    picture,
    write_calibration,
    write_nersemble,
    write_picture,
    write_video,
)

from gha_core.artifacts import schemas
from gha_core.artifacts.stage_folder import read_json, writing
from gha_core.artifacts.tables import read_table
from gha_core.errors import CaptureError
from gha_core.splits import Splits
from tasks import ingest
from tasks.stage import Inputs

A, B, C = SERIALS


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    return write_nersemble(tmp_path / "raw", frames=3)


def run(capture: Path, tmp_path: Path, format: str = "auto", **params: Any) -> Path:
    """As the runner does it: the folder appears complete or not at all."""
    out = tmp_path / "artifacts" / "ingest"
    inputs = Inputs("018", capture, format, out.parent, tmp_path / "work", Splits())
    with writing(out) as folder:
        ingest.run(inputs, ingest.Params(image_size=64, **params), folder)
    return out


def spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        content = calibration(root)
        change(content)
        write_calibration(root, content)

    return apply


def video(root: Path, sequence: str, serial: str) -> Path:
    return root / "sequences" / sequence / "images" / f"cam_{serial}.mp4"


def truncate(root: Path) -> None:
    path = video(root, "FREE", B)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncate_streamable(root: Path) -> None:
    """The header comes first and is whole; the frames end too early."""
    path = video(root, "FREE", B)
    frames = [picture(k) for k in range(3)]
    write_video(path, frames, options={"g": "1"}, container={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.7)])


def text_instead_of_video(root: Path) -> None:
    video(root, "FREE", B).write_text("404 not found")


def rotate(content: dict[str, Any]) -> None:
    content["world_2_cam"][B][0][0] += 0.5


def scale(content: dict[str, Any]) -> None:
    matrix = np.array(content["world_2_cam"][B])
    matrix[:3, :3] *= 1000
    content["world_2_cam"][B] = matrix.tolist()


def mirror(content: dict[str, Any]) -> None:
    matrix = np.array(content["world_2_cam"][B])
    matrix[0] *= -1
    content["world_2_cam"][B] = matrix.tolist()


def set_focal_length(value: float) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["intrinsics"][0][0] = value

    return change


BROKEN: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no calibration": (
        lambda root: (root / "calibration/camera_params.json").unlink(),
        ["calibration", "camera_params.json is missing"],
    ),
    "calibration is not JSON": (
        lambda root: (root / "calibration/camera_params.json").write_text("{"),
        ["camera_params.json is not valid JSON"],
    ),
    "calibration without poses": (
        spoil(lambda content: content.pop("world_2_cam")),
        ["'world_2_cam'", "it has: intrinsics, height, width"],
    ),
    "pose of the wrong shape": (
        spoil(lambda content: content["world_2_cam"].update({B: [[1, 0], [0, 1]]})),
        [f"Camera {B}", "2x2", "expected 4x4"],
    ),
    "rotation not orthonormal": (
        spoil(rotate),
        [f"Camera {B} in ", "camera_params.json", "not orthonormal"],
    ),
    "rotation with scale": (spoil(scale), [f"Camera {B}", "not orthonormal", "without scale"]),
    "rotation mirrors": (spoil(mirror), [f"Camera {B}", "mirrors"]),
    "focal length is NaN": (spoil(set_focal_length(float("nan"))), [f"Camera {A}", "NaN"]),
    "focal length is negative": (spoil(set_focal_length(-50.0)), [f"Camera {A}", "-50"]),
    "camera without video": (
        lambda root: video(root, "FREE", C).unlink(),
        [f"Camera {C}", "sequence FREE", f"cam_{C}.mp4 does not exist", "ingest.cameras"],
    ),
    "video without camera": (
        spoil(lambda content: content["world_2_cam"].pop(C)),
        [f"cam_{C}.mp4", "does not calibrate"],
    ),
    "videos of unequal length": (
        lambda root: write_video(video(root, "FREE", B), [numbered(k) for k in range(2)]),
        ["sequence FREE", f"cam_{A}.mp4 has 3 frames", f"cam_{B}.mp4 has 2", "shortest"],
    ),
    "video cut short": (truncate, ["FREE", f"cam_{B}.mp4", "truncated"]),
    "streamable video cut short": (
        truncate_streamable,
        ["FREE", f"cam_{B}.mp4", "truncated", "announces 3 frames"],
    ),
    "video is something else": (text_instead_of_video, ["FREE", f"cam_{B}.mp4", "cannot be read"]),
    "video is empty": (
        lambda root: video(root, "FREE", B).write_bytes(b""),
        ["FREE", f"cam_{B}.mp4", "cannot be read"],
    ),
    "videos of two sizes": (
        lambda root: write_video(video(root, "FREE", B), [picture(0, 24, 32)] * 3),
        [f"cam_{B}.mp4", "24x32", "48x64", "one size"],
    ),
    "video in landscape": (
        lambda root: [write_video(path, [picture(0, 64, 48)] * 3) for path in root.rglob("*.mp4")],
        [f"Camera {A}", "64x48", "48x64"],
    ),
    "background of another shape": (
        lambda root: write_picture(
            root / f"sequences/BACKGROUND/image_{B}.png", picture(0, 64, 64)
        ),
        [f"Camera {B}", f"image_{B}.png", "64x64"],
    ),
    "unreadable background": (
        lambda root: (root / f"sequences/BACKGROUND/image_{B}.png").write_bytes(b"PNG?"),
        [f"image_{B}.png cannot be read"],
    ),
    "colour calibration lacks a camera": (
        lambda root: (root / "calibration/color_calibration.json").write_text(
            json.dumps({A: np.eye(3).tolist()})
        ),
        ["color_calibration.json", f"camera {B}", "ingest.colour_correction: false"],
    ),
    "colour matrix of an unknown size": (
        lambda root: (root / "calibration/color_calibration.json").write_text(
            json.dumps({serial: np.eye(3, 6).tolist() for serial in SERIALS})
        ),
        ["6 columns", "3, 4, 5, 7"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_capture_stops_with_a_sentence(capture: Path, tmp_path: Path, name: str) -> None:
    breaks, parts = BROKEN[name]
    run(capture, tmp_path)
    before = (tmp_path / "artifacts/ingest/frames.parquet").read_bytes()
    breaks(capture)
    with pytest.raises(CaptureError) as caught:
        run(capture, tmp_path)
    sentence = str(caught.value)
    for part in parts:
        assert part in sentence
    assert sentence.endswith(".")
    # What an earlier run made is untouched, and nothing half-made is left.
    assert (tmp_path / "artifacts/ingest/frames.parquet").read_bytes() == before
    assert [each.name for each in (tmp_path / "artifacts").iterdir()] == ["ingest"]


def test_nothing_is_decoded_before_a_broken_sequence_is_found(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last video of the last sequence is broken; hours could have passed until it is its
    turn."""

    def decode(*_: object) -> None:
        raise AssertionError("frames were read")

    monkeypatch.setattr("gha_core.capture.streams.read_frames", decode)
    video(capture, "FREE", C).write_bytes(b"")
    with pytest.raises(CaptureError, match=f"cam_{C}"):
        run(capture, tmp_path)


def test_unequal_videos_can_be_cut_to_the_shortest(capture: Path, tmp_path: Path) -> None:
    write_video(video(capture, "FREE", B), [numbered(k) for k in range(2)])
    out = run(capture, tmp_path, unequal_length="shortest")
    table = read_table(out / "frames.parquet", schemas.FRAMES, ["sequence", "timestep"]).to_pylist()
    assert {row["timestep"] for row in table if row["sequence"] == "FREE"} == {0, 1}
    assert {row["timestep"] for row in table if row["sequence"] != "FREE"} == {0, 1, 2}
    assert any("differ in length" in note for note in read_json(out / "summary.json")["warnings"])


@pytest.mark.parametrize(
    ("params", "parts"),
    [
        ({"sequences": ["FREI"]}, ["No sequence", "'FREI'", "EMO-1-shout+laugh, FREE"]),
        ({"cameras": ["9*"]}, ["No camera", "'9*'", A]),
        ({"focal_length": 500.0}, ["ingest.focal_length", "has a calibration"]),
    ],
)
def test_a_choice_that_the_capture_does_not_have(
    capture: Path, tmp_path: Path, params: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        run(capture, tmp_path, **params)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), -3.0, 0.0, float("inf")])
def test_a_focal_length_that_cannot_be(tmp_path: Path, value: float) -> None:
    path = write_video(tmp_path / "me.mp4", [picture(0)])
    with pytest.raises(CaptureError, match=r"ingest\.focal_length"):
        run(path, tmp_path, focal_length=value, crop="none")


@pytest.mark.parametrize(
    "params",
    [{"siez": 64}, {"stride": 0}, {"crop": "face"}, {"jpeg_quality": 101}, {"sequences": []}],
)
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ingest.Params(**params)


def test_a_missing_capture(tmp_path: Path) -> None:
    for format in ("auto", "nersemble", "monocular"):
        with pytest.raises(CaptureError, match="does not exist"):
            run(tmp_path / "gone", tmp_path, format)


def test_a_video_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "me.mp4"
    path.write_bytes(b"\0" * 5000)
    with pytest.raises(CaptureError, match=r"me\.mp4 cannot be read"):
        run(path, tmp_path)
    with pytest.raises(CaptureError, match="is a folder; a monocular capture is one video"):
        run(tmp_path, tmp_path, "monocular")


def test_several_participants_are_not_one(tmp_path: Path) -> None:
    first = write_nersemble(tmp_path / "raw", frames=1, sequences=["FREE"], backgrounds=False)
    first.rename(first.with_name("017"))
    write_nersemble(tmp_path / "raw", frames=1, sequences=["FREE"], backgrounds=False)
    with pytest.raises(CaptureError, match=r"holds 2 participants \(017, 018\)"):
        run(tmp_path / "raw", tmp_path)


def test_audio_is_no_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "voice.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)
    with pytest.raises(CaptureError, match=r"voice\.mkv contains no video stream"):
        run(path, tmp_path)
