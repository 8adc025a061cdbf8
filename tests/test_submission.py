"""Submissions to the NeRSemble benchmark, from generated trees: names, frames, encoding."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_captures import SERIALS, number_of, numbered
from tiny_trees import FRAMES, flame_sequence, write_benchmark

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image
from gha_core.artifacts.tables import write_table
from gha_core.cameras import Camera
from gha_core.errors import ArtifactError, GhaError, ParameterError
from gha_core.evaluation.submission import BENCHMARKS, Benchmark, Entrant, pack
from gha_core.pose import HeadPose

HELD_OUT = SERIALS[2]
TASK = Benchmark("tiny", {"018": ("FREE",)}, (HELD_OUT,), 40, 60, 30.0)


class Painter:
    """Draws how far along the first expression is, and remembers from where it was seen."""

    def __init__(self) -> None:
        self.cameras: list[Camera] = []
        self.poses: list[HeadPose] = []

    def render(self, camera: Camera, pose: HeadPose, expression: np.ndarray) -> tuple[Image, Image]:
        self.cameras.append(camera)
        self.poses.append(pose)
        image = numbered(round(10 * float(expression[0])), camera.width, camera.height)
        return image, image[..., 0]


def track(folder: Path, timesteps: dict[str, list[int]]) -> Path:
    """Tracking in which the expression is a tenth of the timestep."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "subject": "ann", "sequence": sequence, "timestep": t, "rotation": [0, 0.1 * t, 0],
            "translation": [0.01 * t, 0, 0], "scale": 0.2, "expression": [0.1 * t, 0.0],
            "landmarks": [0.0] * 3, "residual": 1.0,
        }
        for sequence, known in timesteps.items()
        for t in known
    ]  # fmt: skip
    write_table(folder / "tracking.parquet", schemas.TRACKING, rows)
    return folder


def entrant(root: Path, timesteps: dict[str, list[int]]) -> Entrant:
    capture = write_benchmark(root)
    return Entrant("ann", capture, track(root / "tracking", timesteps), Painter())


def frames_of(archive: Path, name: str, to: Path) -> list[Image]:
    with zipfile.ZipFile(archive) as file, av.open(file.extract(name, to)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_the_zip_is_as_the_benchmark_wants_it(tmp_path: Path) -> None:
    ann = entrant(tmp_path, {"FREE": list(range(FRAMES))})
    path = tmp_path / "out" / "sub.zip"
    packed = pack(TASK, [ann], path, partial=False)
    name = f"018/FREE/cam_{HELD_OUT}.mp4"
    assert packed.videos == {name: FRAMES}
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [name]
        data = archive.read(name)
    assert b"crf=14.0" in data, "x264 writes its settings into the stream"
    images = frames_of(path, name, tmp_path)
    assert [image.shape for image in images] == [(60, 40, 3)] * FRAMES
    assert [number_of(image) for image in images] == list(range(FRAMES))
    assert {camera.name for camera in ann.avatar.cameras} == {HELD_OUT}
    assert ann.avatar.cameras[0].K[0, 0] == pytest.approx(60 * 40 / 48), "at the task's size"
    assert [each.name for each in path.parent.iterdir()] == ["sub.zip"]


def test_gaps_of_the_tracking_are_filled_and_said(tmp_path: Path) -> None:
    ann = entrant(tmp_path, {})
    count = 6
    ann = replace(ann, tracking=track(tmp_path / "gappy", {"TEST": [0, 1, 2, 4, 5]}))
    flame_sequence(tmp_path / "018/sequences/TEST/tracking/flame2023_tracking_v2.npz", count)
    path = tmp_path / "sub.zip"
    packed = pack(replace(TASK, sequences={"018": ("TEST",)}), [ann], path, partial=False)
    images = frames_of(path, f"018/TEST/cam_{HELD_OUT}.mp4", tmp_path)
    assert [number_of(image) for image in images] == list(range(count))
    assert any("1 of 6 frames were not tracked" in note for note in packed.notes)


def test_a_withheld_sequence_is_driven_by_the_benchmarks_tracking(tmp_path: Path) -> None:
    """Its first FLAME coefficient is ten times ours, its head turned and shifted against ours."""
    root = write_benchmark(tmp_path)
    random = np.random.default_rng(1)
    known, count = 12, 5
    steps = {"TRAIN": np.arange(known), "TEST": random.permutation(known)[:count]}
    turn = 0.1 * random.normal(size=(known, 3))
    move = 0.05 * random.normal(size=(known, 3))
    for sequence, order in steps.items():
        expression = np.zeros((len(order), 4))
        expression[:, 0] = order
        flame_sequence(
            root / f"sequences/{sequence}/tracking/flame2023_tracking_v2.npz",
            len(order),
            expression=expression,
            rotation=turn[order],
            translation=move[order],
            neck=np.zeros((len(order), 3)),
        )
    tracking = tmp_path / "tracking"
    tracking.mkdir()
    rows = [
        {
            "subject": "ann", "sequence": "TRAIN", "timestep": t, "rotation": turn[t].tolist(),
            "translation": (move[t] + [0.3, 0, 0]).tolist(), "scale": 0.2,
            "expression": [t / 20, 0.5], "landmarks": [0.0] * 3, "residual": 1.0,
        }
        for t in range(known)
    ]  # fmt: skip
    write_table(tracking / "tracking.parquet", schemas.TRACKING, rows)
    painter = Painter()
    ann = Entrant("ann", root, tracking, painter)
    path = tmp_path / "sub.zip"
    packed = pack(replace(TASK, sequences={"018": ("TEST",)}), [ann], path, partial=False)
    assert packed.videos == {f"018/TEST/cam_{HELD_OUT}.mp4": count}
    images = frames_of(path, f"018/TEST/cam_{HELD_OUT}.mp4", tmp_path)
    wanted = [round(t / 2) for t in steps["TEST"]]
    assert np.abs(np.array([number_of(image) for image in images]) - wanted).max() <= 1
    found = np.array(sorted(pose.translation[0] for pose in painter.poses))
    np.testing.assert_allclose(found, np.sort(move[steps["TEST"], 0]) + 0.3, atol=1e-3)


@pytest.mark.parametrize(
    ("timesteps", "task", "partial", "sentence"),
    [
        ({"FREE": [0]}, replace(TASK, sequences={"018": ("FREE",), "019": ("FREE",)}), False,
         "019 is missing"),
        ({"FREE": [0]}, BENCHMARKS["nvs"], True, "participant 018 .* not in the task nvs"),
        ({"FREE": [0]}, replace(TASK, cameras=("999",)), False, "has no camera 999"),
        ({"FREE": [0]}, replace(TASK, sequences={"018": ("HAIR",)}), False, "neither videos nor"),
        ({"HAIR": [0]}, TASK, False, "no frame is in both|wants all of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_submitted_gets_a_sentence_and_leaves_nothing(
    tmp_path: Path, timesteps: dict[str, list[int]], task: Benchmark, partial: bool, sentence: str
) -> None:
    path = tmp_path / "out" / "sub.zip"
    with pytest.raises((ParameterError, ArtifactError), match=sentence) as caught:
        pack(task, [entrant(tmp_path, timesteps)], path, partial)
    assert isinstance(caught.value, GhaError)
    assert not path.parent.exists() or not any(path.parent.iterdir())


def test_the_official_tasks_are_those_of_the_benchmark() -> None:
    nvs, mono = BENCHMARKS["nvs"], BENCHMARKS["mono"]
    assert (nvs.height, nvs.width, len(nvs.sequences), len(nvs.cameras)) == (1604, 1100, 5, 3)
    assert (mono.height, mono.width, len(mono.sequences), len(mono.cameras)) == (512, 512, 5, 4)
    assert all(len(sequences) == 4 for sequences in mono.sequences.values())
