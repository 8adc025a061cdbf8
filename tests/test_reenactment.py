"""Driving an avatar: what is carried over, files of coefficients, videos, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_avatar import NAME, NAMES
from typer.testing import CliRunner, Result

from benchmarks.reenactment import correlation, flicker, openings
from flows.cli import app
from gha_core.artifacts.videos import write_video
from gha_core.cameras import Camera, look_at
from gha_core.errors import ParameterError
from gha_core.faces import head_model
from gha_core.faces.portrait import Painter, portrait_camera
from gha_core.landmarks import FaceMeshDetector
from gha_core.pose import HeadPose
from gha_core.reenactment.cameras import around, at_size, seen_as
from gha_core.reenactment.coefficients import ARKIT, read_coefficients, write_coefficients
from gha_core.reenactment.motion import Motion, in_terms_of
from gha_core.reenactment.retargeting import (
    Habit,
    farthest,
    in_the_habit_of,
    mean_pose,
    retarget,
    smoothed,
)

HERE = HeadPose(np.zeros(3), np.zeros(3), 0.2)


def motions(expressions: NDArray[np.floating], sequence: str = "talk") -> list[Motion]:
    return [
        Motion(sequence, index, HERE, row.astype(np.float32))
        for index, row in enumerate(np.atleast_2d(expressions))
    ]


def camera(eye: tuple[float, float, float]) -> Camera:
    K = np.array([[90.0, 0, 32], [0, 90.0, 24], [0, 0, 1]])
    return Camera("one", K, look_at(np.array(eye), np.zeros(3), np.array([0.0, 1, 0])), 64, 48)


# What is carried over ----------------------------------------------------------------------------


def habit(rest: list[float], full: list[float]) -> Habit:
    return Habit(np.float32(rest), np.float32(full))


def test_a_drivers_features_stay_with_the_driver() -> None:
    """Whoever is tracked with a frown of .3 in every frame does not make others frown."""
    names = ("mouthFrownLeft", "jawOpen")
    speech = np.stack([np.full(21, 0.3), np.abs(np.linspace(-1, 1, 21))], 1)
    driver = motions(speech)
    found = np.array(
        [
            motion.expression
            for motion in in_the_habit_of(
                driver, Habit.of(driver, names), habit([0.05, 0], [1, 1]), names
            )
        ]
    )
    np.testing.assert_allclose(found[:, 0], 0.05, atol=1e-6)
    assert found[10, 1] == 0
    assert found[-1, 1] == pytest.approx(1)
    assert (np.diff(found[13:, 1]) > 0).all()


def test_less_than_rest_is_the_opposite_movement() -> None:
    names = ("eyeLookUpLeft", "eyeLookDownLeft")
    driver = motions(np.array([[0.0, 0.4], [0.0, 0.1], [0.0, 0.7]]))
    seen = Habit.of(driver, names)
    np.testing.assert_allclose(seen.rest, [0, 0.4])
    moved = in_the_habit_of(driver, seen, habit([0, 0], [1, 1]), names)
    np.testing.assert_allclose(moved[1].expression, [0.5, 0], atol=1e-6)
    np.testing.assert_allclose(moved[2].expression, [0, 0.5], atol=1e-6)


def test_eyes_close_when_the_drivers_do() -> None:
    """Although the tracking sees lids of .3 in one person and of .6 in the other."""
    names = ("eyeBlinkLeft", "eyeBlinkRight")
    driver = motions(np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.05]]))
    theirs, ours = habit([0.1, 0.0], [0.3, 0.05]), habit([0.05, 0.0], [0.6, 0.6])
    left, right = np.transpose([m.expression for m in in_the_habit_of(driver, theirs, ours, names)])
    np.testing.assert_allclose(left, [0.05, 0.325, 0.6], atol=1e-6)
    assert right[2] == pytest.approx(0.05), "who never blinked: as it is, without magnified noise"


def test_only_blinks_end_where_the_own_lids_are_closed() -> None:
    names = ("eyeBlinkLeft", "eyeBlinkRight", "jawOpen")
    reach = farthest(np.array([0.7, 0.1, 0.2], np.float32), names)
    np.testing.assert_allclose(reach, [0.7, 0.5, 1], rtol=1e-6)


def test_the_drivers_camera_sees_the_avatar_where_it_saw_the_driver() -> None:
    driver = [
        Motion(
            "d", t, HeadPose(np.array([np.pi, 0.2 * t, 0.1]), np.array([0.1 * t, 0.3, 2.0]), 0.3), e
        )
        for t, e in enumerate(np.zeros((3, 1), np.float32))
    ]
    target = [
        Motion(
            "t",
            0,
            HeadPose(np.array([0, 0.5, 0]), np.array([1.0, 2, 3]), 0.2),
            driver[0].expression,
        )
    ]
    filmed = Camera("film", np.array([[90.0, 0, 32], [0, 90, 24], [0, 0, 1]]), np.eye(4), 64, 48)
    moved = seen_as(filmed, mean_pose(driver), mean_pose(target))
    points = np.random.default_rng(0).normal(size=(5, 3)) * 0.3
    for theirs, ours in zip(driver, retarget(driver, target), strict=True):
        np.testing.assert_allclose(
            moved.project(ours.pose.to_world(points)),
            filmed.project(theirs.pose.to_world(points)),
            atol=1e-9,
        )


def test_a_camera_goes_around_the_head() -> None:
    front = camera((0, 0, 1))
    left = around(front, HERE, np.pi / 2)
    np.testing.assert_allclose(left.centre, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(around(front, HERE, 0, np.pi / 2).centre, [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(left.project(np.zeros(3)), front.project(np.zeros(3)))
    wide = at_size(front, 96, 256)
    assert (wide.width, wide.height) == (256, 96)
    np.testing.assert_allclose(wide.project(np.zeros(3)), [128, 48])


def test_smoothing_takes_jitter_and_leaves_the_mean() -> None:
    values = np.random.default_rng(0).random((60, 2))
    smooth = np.array([m.expression for m in smoothed(motions(values), 30.0, 0.1)])
    assert np.abs(np.diff(smooth, axis=0)).mean() < 0.2 * np.abs(np.diff(values, axis=0)).mean()
    np.testing.assert_allclose(smooth.mean(0), values.mean(0), atol=0.05)


def test_coefficients_are_matched_by_name() -> None:
    (moved,) = in_terms_of(("b", "c", "a"), motions(np.array([[1.0, 2.0]])), ("a", "b"))
    assert moved.expression.tolist() == [2, 0, 1]
    with pytest.raises(ParameterError, match="different face models"):
        in_terms_of(("x",), motions(np.array([[1.0]])), ("a",))


# Files of coefficients ---------------------------------------------------------------------------


def test_our_own_csv_gives_back_every_bit(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    poses = [
        HeadPose(random.normal(size=3), random.normal(size=3), 0.2 + random.random())
        for _ in range(3)
    ]
    names = tuple(reversed(ARKIT))
    written = [
        Motion("FREE", 7 + i, pose, random.random(len(ARKIT)).astype(np.float32))
        for i, pose in enumerate(poses)
    ]
    write_coefficients(tmp_path / "a.csv", "anna", written, names, 24.0)
    recording = read_coefficients(tmp_path / "a.csv")
    assert recording.subject == "anna"
    assert recording.rate == pytest.approx(24)
    for before, after in zip(written, in_terms_of(names, recording.motions, ARKIT), strict=True):
        assert (before.sequence, before.timestep) == (after.sequence, after.timestep)
        np.testing.assert_array_equal(before.expression, after.expression)
        np.testing.assert_array_equal(before.pose.rotation, after.pose.rotation)
        np.testing.assert_array_equal(before.pose.translation, after.pose.translation)
        assert before.pose.scale == after.pose.scale
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def live_link(path: Path) -> None:
    header = ["Timecode", "BlendshapeCount", "EyeBlinkLeft", "JawOpen", "HeadYaw", "HeadPitch"]
    codes = [f"10:00:{second:02}:{frame:02}.100" for second in range(3) for frame in range(30)]
    rows = [[code, 61, 0.5, i / 90, 0.1, 0] for i, code in enumerate(codes)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def media_pipe(path: Path) -> None:
    frames = [
        [
            {"categoryName": "_neutral", "score": 0},
            {"categoryName": "jawOpen", "score": i / 90},
            {"categoryName": "eyeBlinkLeft", "score": 0.5},
        ]
        for i in range(90)
    ]
    path.write_text(
        json.dumps({"frames": [{"time": i / 30, "blendshapes": f} for i, f in enumerate(frames)]})
    )


def face_cap(path: Path) -> None:
    path.write_text(
        "time,eyeBlink_L,jawOpen\n" + "".join(f"{i / 30},0.5,{i / 90}\n" for i in range(90))
    )


@pytest.mark.parametrize(
    ("write", "name"), [(live_link, "a.csv"), (media_pipe, "a.json"), (face_cap, "a.csv")]
)
def test_what_apps_write_is_read(write, name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    recording = read_coefficients(tmp_path / name)
    assert recording.subject is None
    assert recording.rate == pytest.approx(30)
    found = np.array([motion.expression for motion in recording.motions])
    np.testing.assert_allclose(found[:, ARKIT.index("jawOpen")], np.arange(90) / 90, atol=1e-6)
    assert (found[:, ARKIT.index("eyeBlinkLeft")] == 0.5).all()
    assert found.any(0).sum() == 2
    assert recording.motions[0].pose.rotation[1] == pytest.approx(0.1 * (write is live_link))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("jawOpen,smile\n0,0\n", "no ARKit coefficients: smile.*Rename"),
        ("jawOpem\n0\n", "Did you mean jawOpen"),
        ("jawOpen,eyeBlinkLeft\n0,0\n0.2,nan\n", "timestep 2, eyeBlinkLeft: 'nan' is not a number"),
        ("jawOpen\n\n0\nhello\n", "timestep 2, jawOpen: 'hello' is not a number"),
        ("jawOpen\n87\n", "jawOpen: 87; coefficients go from 0 to 1"),
        ("jawOpen,JawOpen\n0,0\n", "jawOpen and JawOpen mean the same"),
        ("jawOpen,tongueOut\n0\n", "1 values, but the header names 2 columns. Is the file cut off"),
        ("time\n0\n", "has none of ARKit's coefficients"),
        ("jawOpen\n", "has no timestep"),
        ("", "has no timestep"),
        ("time,jawOpen\n1,0\n1,0\n", "growing seconds"),
    ],
)
def test_a_file_that_cannot_drive_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "take.csv"
    path.write_text(text)
    with pytest.raises(ParameterError, match=sentence):
        read_coefficients(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ("3", 'neither a list of timesteps nor has one under "frames"'),
        ("[3]", "timestep 1: neither an object"),
        ('[{"jawOpen": NaN}]', "timestep 1, jawOpen: nan is not a number"),
        ('[{"jawOpen": null}]', "timestep 1, jawOpen: None is not a number"),
    ],
)
def test_a_json_that_cannot_drive_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "take.json"
    path.write_text(text)
    with pytest.raises(ParameterError, match=sentence):
        read_coefficients(path)


# The command -------------------------------------------------------------------------------------


@pytest.fixture
def project(tiny_project: Path) -> Iterator[Path]:
    with chdir(tiny_project):
        yield tiny_project
        for folder in ("outputs", "data/drivers"):
            shutil.rmtree(folder, ignore_errors=True)


def reenact(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["reenact", NAME, *arguments], env={"COLUMNS": "300"})


def frames(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


def made(*arguments: str) -> Path:
    done = reenact(*arguments)
    assert done.exit_code == 0, done.output
    return Path(done.output.split("video: ")[1].splitlines()[0])


def refused(*arguments: str) -> str:
    done = reenact(*arguments)
    assert done.exit_code == 2, done.output
    left = [path for path in Path().rglob("*") if path.parent.name in ("outputs", "drivers")]
    assert left == [], "nothing half-written is left"
    return done.output


def test_driving_with_the_csv_gives_the_frames_of_the_tracked_drive(project: Path) -> None:
    tracked = made("--driver", "talk", "--write-csv", "talk.csv")
    again = made("--driver", "talk.csv")
    assert len(frames(tracked)) == 4
    for before, after in zip(frames(tracked), frames(again), strict=True):
        np.testing.assert_array_equal(before, after)
    assert frames(tracked)[0].shape[1] == 2 * frames(tracked)[0].shape[0], "driver beside avatar"


def test_cameras_sizes_and_a_still_head(project: Path) -> None:
    orbit = frames(
        made(
            "--driver",
            "talk",
            "--camera",
            "orbit",
            "--no-beside",
            "--height",
            "64",
            "--width",
            "96",
        )
    )
    assert orbit[0].shape == (64, 96, 3)
    left = frames(made("--driver", "talk", "--camera", "left", "--no-beside"))
    still = frames(made("--driver", "talk", "--camera", "left", "--no-beside", "--no-head-pose"))
    assert np.abs(left[1].astype(int) - still[1]).mean() > 0.5


def test_what_cannot_drive_is_a_sentence(project: Path) -> None:
    for text, sentence in {
        "nobody": "neither a sequence of ball",
        "gone.mp4": "does not exist",
        "gone.csv": "does not exist",
        "webcam:gone.mp4": "cannot be opened",
    }.items():
        assert sentence in refused("--driver", text)
    assert "has no camera 'top'" in refused("--driver", "talk", "--camera", "top")
    assert "auto or keep" in refused("--driver", "talk", "--rest", "maybe")
    live_link(project / "take.csv")
    assert "comes without a camera" in refused("--driver", "take.csv", "--camera", "driver")
    (project / "cut.mp4").write_bytes(b"\0" * 400)
    assert "cut.mp4" in refused("--driver", "cut.mp4")


def test_a_video_without_a_face_is_a_sentence(project: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (4, 96, 128, 3), dtype=np.uint8)
    write_video(project / "wall.mp4", list(noise), 10.0)
    assert "wall.mp4 cannot drive an avatar" in refused("--driver", "wall.mp4")


def test_anyone_in_a_video_drives_the_avatar(project: Path) -> None:
    """A painted head opens its mouth; so does the ball, whose names of coefficients differ in part.
    The webcam's stand-in is the same film."""
    model = head_model()
    jaw = model.expression_names.index("jawOpen")
    painter, light = Painter(model), np.array([0.3, 0.5, 1.0])
    view = portrait_camera(0, 0, 256, np.array([0.0, -0.08, 0.2]))
    film, detector, opened = [], FaceMeshDetector(), []
    for step in range(5):
        expression = torch.zeros(len(model.expression_names))
        expression[jaw] = step / 5
        vertices = model.vertices(torch.zeros(model.identity_basis.shape[0]), expression)
        film.append(painter.portrait(vertices.double().numpy(), view, light).image)
        opened.append(openings(detector.detect(film[-1]).points)["mouth_opening"])
    assert correlation(opened, list(range(5))) > 0.9
    write_video(project / "talker.mp4", film, 10.0)
    video = made("--driver", "talker.mp4", "--write-csv", "moved.csv")
    moved = read_coefficients(Path("moved.csv"), NAMES).motions
    jaws = [motion.expression[ARKIT.index("jawOpen")] for motion in moved]
    assert correlation(opened, jaws) > 0.9
    assert len(frames(video)) == 5
    kept = list((project / "data" / "drivers").iterdir())
    assert len(kept) == 1
    filmed = made("--driver", "webcam:talker.mp4", "--seconds", "0.3", "--camera", "driver")
    assert len(frames(filmed)) == 3


def test_flicker_is_none_in_steady_motion() -> None:
    ramp = [np.full((2, 2, 3), 10 * i, np.uint8) for i in range(6)]
    blink = [np.full((2, 2, 3), 10 * (i % 2), np.uint8) for i in range(6)]
    assert flicker(ramp) == 0
    assert flicker(blink) == 10
