"""The demo capture: the tree is a NeRSemble one, pictures, calibration and truth agree, and a face
detector takes the person for one."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from gha_core.cameras import Camera, check_camera, convergence
from gha_core.errors import ParameterError
from gha_core.faces import head_model
from gha_core.synthetic import studio
from gha_core.synthetic.capture import SEQUENCES, Settings, film
from gha_core.synthetic.performance import perform
from gha_core.synthetic.truth import Truth, load_truth

TINY = Settings(seed=2, cameras=3, timesteps=(3, 1, 1), width=96, height=128)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def calibration(capture: Path) -> dict[str, Camera]:
    data = json.loads((capture / "calibration/camera_params.json").read_text())
    return {
        name: Camera(
            name, np.array(data["intrinsics"][name]), np.array(w2c), data["width"], data["height"]
        )
        for name, w2c in data["world_2_cam"].items()
    }


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    out = tmp_path_factory.mktemp("demo")
    capture = film(out, TINY)
    return capture, load_truth(out / "truth")


def test_tree_is_a_nersemble_capture_and_says_nothing_more(tiny: tuple[Path, Truth]) -> None:
    capture, _ = tiny
    cameras = calibration(capture)
    expected = {"calibration/camera_params.json"}
    expected |= {f"sequences/BACKGROUND/image_{name}.jpg" for name in cameras}
    expected |= {f"sequences/{s}/images/cam_{name}.mp4" for s in SEQUENCES for name in cameras}
    assert set(digests(capture)) == expected
    assert len(cameras) == TINY.cameras
    for name, camera in cameras.items():
        check_camera(camera, "camera_params.json")
        for sequence, count in zip(SEQUENCES, TINY.timesteps, strict=True):
            shape = frames_of(capture / f"sequences/{sequence}/images/cam_{name}.mp4").shape
            assert shape == (count, TINY.height, TINY.width, 3)
    assert np.linalg.norm(convergence(list(cameras.values())) - studio.HEAD_CENTRE) < 0.02


def test_videos_open_in_opencv_too(tiny: tuple[Path, Truth]) -> None:
    path = next(tiny[0].glob("sequences/*/images/*.mp4"))
    reader = cv2.VideoCapture(str(path))
    ok, image = reader.read()
    assert ok
    ours = frames_of(path)[0].astype(int)
    assert np.abs(image[..., ::-1].astype(int) - ours).mean() < 3


def test_same_seed_same_bytes_and_another_seed_another_person(
    tiny: tuple[Path, Truth], tmp_path: Path
) -> None:
    one = replace(TINY, timesteps=(1, 1, 1), cameras=2)
    first, second = film(tmp_path / "a", one), tmp_path / "b" / one.subject
    options = ["--seed", one.seed, "--cameras", 2, "--timesteps", 1, 1, 1, "--width", one.width]
    command = [sys.executable, "-m", "gha_core.synthetic", second.parent, "--workers", 2, *options]
    subprocess.run([str(part) for part in command], check=True)
    other = film(tmp_path / "c", replace(one, seed=3))
    assert digests(first.parent) == digests(second.parent)
    people = [load_truth(path.parent / "truth") for path in (first, other)]
    assert np.abs(people[0].neutral_vertices - people[1].neutral_vertices).max() > 0.01
    assert people[0].person != people[1].person
    name = sorted(calibration(other))[0]
    images = [
        frames_of(path / f"sequences/{SEQUENCES[0]}/images/cam_{name}.mp4")[0].astype(int)
        for path in (first, other)
    ]
    assert np.abs(images[0] - images[1]).mean() > 5


def test_truth_is_what_the_face_model_says(tiny: tuple[Path, Truth]) -> None:
    import torch

    model, (_, truth) = head_model(), tiny
    face = model.regions["face"].numpy() & (model.mean.numpy()[:, 1] > -0.3)
    sequence = truth.sequences[SEQUENCES[0]]
    assert truth.expression_names == model.expression_names
    assert sequence.expression.min() >= 0
    assert sequence.expression.max() <= 1
    for t, pose in enumerate(sequence.poses):
        shape = model.vertices(
            torch.from_numpy(truth.identity), torch.from_numpy(sequence.expression[t])
        ).numpy()
        assert np.abs(pose.to_world(shape)[face] - sequence.vertices[t][face]).max() < 1e-4


def test_truth_projects_onto_the_pictures(tiny: tuple[Path, Truth]) -> None:
    """Calibration on disk, true vertices, mattes and videos belong together."""
    capture, truth = tiny
    model, mattes = head_model(), truth.mattes()
    face = model.regions["face"].numpy()
    for name, camera in calibration(capture).items():
        plate = cv2.imread(str(capture / f"sequences/BACKGROUND/image_{name}.jpg"))[..., ::-1]
        for sequence, facts in truth.sequences.items():
            video = frames_of(capture / f"sequences/{sequence}/images/cam_{name}.mp4")
            for t, image in enumerate(video):
                alpha = mattes[sequence, t, name]
                pixels = camera.project(facts.vertices[t].astype(float))
                column, row = np.floor(pixels[face]).astype(int).T
                near = cv2.dilate(alpha, np.ones((3, 3)))  # outlines may fall on the next pixel
                assert near[row, column].min() > 128
                # where nothing is, the frame is the plate; where the face is, it is not
                apart = np.abs(image.astype(int) - plate.astype(int)).mean(-1)
                assert np.median(apart[alpha == 0]) < 3
                assert apart[row, column].mean() > 15
                # nothing of the head is cut off, as ingest's central square keeps it
                head = model.regions["face"].numpy() | model.regions["scalp"].numpy()
                x, y = pixels[head].T
                assert x.min() > 0
                assert x.max() < camera.width
                assert np.abs(y - camera.height / 2).max() < camera.width / 2


def test_detector_finds_the_person_from_the_front_and_from_45_degrees(tmp_path: Path) -> None:
    from gha_core.landmarks import FaceMeshDetector

    model, detector = head_model(), FaceMeshDetector()
    eyes = model.regions["eyes"].numpy()
    sides = [eyes & (model.mean.numpy()[:, 0] * sign > 0) for sign in (-1, 1)]
    settings = Settings(seed=2, timesteps=(1, 1, 1))
    capture = film(tmp_path, settings)
    truth = load_truth(tmp_path / "truth")
    vertices = truth.sequences[SEQUENCES[0]].vertices[0].astype(float)
    wanted = {serial for serial, azimuth, _ in studio.RIG if abs(azimuth) < 48}
    assert len(wanted) == 8
    for name in sorted(wanted):
        camera = truth.cameras[name]
        image = frames_of(capture / f"sequences/{SEQUENCES[0]}/images/cam_{name}.mp4")[0]
        square = (camera.height - camera.width) // 2
        image = np.ascontiguousarray(image[square : square + camera.width])
        found = detector.detect(image)
        assert found is not None, name
        # irises (centres 468 right, 473 left) sit on the eyeballs: at most a ball's radius away
        for iris, side in zip((468, 473), sides, strict=True):
            ball = camera.project(vertices[side].mean(0)) - [0, square]
            assert np.linalg.norm(found.points[iris] - ball) < 12, name


def test_performances_are_smooth_bounded_and_move_the_face() -> None:
    names = head_model().expression_names
    for sequence in SEQUENCES:
        acted = perform(sequence, names, 120, 25.0, np.random.default_rng(0))
        assert acted.expression.shape == (120, len(names))
        assert acted.expression.min() >= 0
        assert acted.expression.max() <= 1
        assert np.abs(np.diff(acted.expression, axis=0)).max() < 0.75  # a blink is the fastest
        assert (np.ptp(acted.expression, axis=0) > 0.3).sum() >= 10
        blinks = acted.expression[:, names.index("eyeBlinkRight")]
        assert blinks.max() > 0.9
        assert np.degrees(np.abs(acted.rotation)).max() < 20
        assert np.abs(np.diff(np.degrees(acted.rotation), axis=0)).max() < 5


def test_performances_hold_every_pose_of_a_library_before_they_repeat() -> None:
    names = head_model().expression_names
    acted = perform("EMO-1-x", names, 400, 25.0, np.random.default_rng(1)).expression
    for action in ("mouthSmileLeft", "jawOpen", "browDownLeft", "mouthFrownLeft", "browInnerUp"):
        assert acted[:, names.index(action)].max() > 0.3, action


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"cameras": 1}, "cameras"),
        ({"cameras": 99}, "cameras"),
        ({"timesteps": (1, 2)}, "timesteps"),
        ({"width": 97}, "even"),
    ],
)
def test_impossible_settings_are_refused_with_a_sentence(
    wrong: dict[str, object], word: str
) -> None:
    with pytest.raises(ParameterError, match=word):
        replace(TINY, **wrong)  # type: ignore[arg-type]


def test_an_existing_capture_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / TINY.subject).mkdir()
    with pytest.raises(ParameterError, match="exists already"):
        film(tmp_path, TINY)
