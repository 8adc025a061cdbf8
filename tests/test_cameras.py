"""Cameras, poses and splits: conventions that everything else relies on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gha_core.cameras import Camera, check_camera, convergence, look_at
from gha_core.errors import CaptureError, ParameterError
from gha_core.pose import HeadPose
from gha_core.splits import Splits, positions

K = np.array([[500.0, 0, 160], [0, 500.0, 120], [0, 0, 1]])
numbers = st.floats(-2, 2, allow_nan=False)
triples = st.tuples(numbers, numbers, numbers).map(np.array)


def camera(eye: tuple[float, float, float] = (0, 0, 1)) -> Camera:
    w2c = look_at(np.array(eye, float), np.zeros(3), np.array([0, 1.0, 0]))
    return Camera("c", K, w2c, 320, 240)


def test_look_at_follows_opencv() -> None:
    view = camera()
    np.testing.assert_allclose(view.project(np.zeros(3)), [160, 120])
    # World up is image up (smaller y); seen from +z, world +x is to the right.
    assert view.project(np.array([0, 0.1, 0]))[1] < 120
    assert view.project(np.array([0.1, 0, 0]))[0] > 160
    assert np.isnan(view.project(np.array([0, 0, 2.0]))).all()
    np.testing.assert_allclose(view.centre, [0, 0, 1])
    np.testing.assert_allclose(view.forward, [0, 0, -1])
    check_camera(view, "test")


@given(point=triples, scale=st.floats(0.1, 4), shift=st.tuples(numbers, numbers))
def test_a_transformed_camera_sees_transformed_pixels(
    point: np.ndarray, scale: float, shift: tuple[float, float]
) -> None:
    view = camera((0, 0, 5))
    transform = np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])
    moved = view.transformed(transform, 100, 100)
    pixel = np.append(view.project(point), 1) @ transform.T
    np.testing.assert_allclose(moved.project(point), pixel[:2], atol=1e-8)


def test_a_camera_survives_its_table_row() -> None:
    view = camera((1, 2, 3))
    back = Camera.from_row(view.row("s"))
    np.testing.assert_array_equal(back.w2c, view.w2c)
    np.testing.assert_array_equal(back.K, view.K)


def test_a_rig_converges_where_its_cameras_look() -> None:
    rig = [camera((0, 0, 1)), camera((1, 0, 0.2)), camera((0.3, 0.8, 0.4))]
    np.testing.assert_allclose(convergence(rig), np.zeros(3), atol=1e-9)
    with pytest.raises(CaptureError, match="do not converge"):
        convergence(rig[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda K, w2c: K.__setitem__((0, 0), -1.0), "focal length"),
        (lambda K, w2c: K.__setitem__((0, 0), np.nan), "NaN"),
        (lambda K, w2c: w2c.__setitem__((0, 0), 3.0), "not orthonormal"),
        (lambda K, w2c: w2c.__setitem__((0, slice(0, 3)), -w2c[0, :3]), "mirrors"),
        (lambda K, w2c: w2c.__setitem__((3, 0), 1.0), "last row"),
    ],
)
def test_a_calibration_that_cannot_be_right_is_refused(change, message: str) -> None:  # type: ignore[no-untyped-def]
    view = camera()
    change(matrix := view.K.copy(), w2c := view.w2c.copy())
    with pytest.raises(CaptureError, match=f"(?s)Camera c in rig.json.*{message}"):
        check_camera(Camera("c", matrix, w2c, 320, 240), "rig.json")


@given(rotation=triples, translation=triples, scale=st.floats(0.1, 3), point=triples)
def test_poses_invert(
    rotation: np.ndarray, translation: np.ndarray, scale: float, point: np.ndarray
) -> None:
    pose = HeadPose(rotation, translation, scale)
    np.testing.assert_allclose(pose.to_head(pose.to_world(point)), point, atol=1e-8)


def test_a_pose_turns_counter_clockwise_about_its_axis() -> None:
    pose = HeadPose(np.array([0, np.pi / 2, 0]), np.array([1.0, 0, 0]), 2.0)
    np.testing.assert_allclose(pose.to_world([0, 0, 1]), [3, 0, 0], atol=1e-12)


def test_splits_hold_out_what_they_name() -> None:
    splits = Splits(test_cameras=("b",), test_sequences=("FREE",), test_every=4, test_last=0.2)
    assert splits.part("EMO", 0.0, 0, "a") == "train"
    assert splits.part("EMO", 0.0, 0, "b") == "novel_view"
    assert splits.part("FREE", 0.0, 0, "a") == "novel_expression"
    assert splits.part("FREE", 0.0, 0, "b") == "novel_view_and_expression"
    assert splits.part("EMO", 0.1, 3, "a") == "novel_expression"
    assert splits.part("EMO", 0.8, 8, "a") == "novel_expression"


@pytest.mark.parametrize("count", [10, 25, 501])
def test_the_last_fraction_is_a_fraction(count: int) -> None:
    splits = Splits(test_last=0.2)
    places = positions({"video": range(count)})
    held = sum(splits.is_test_time("video", places["video", step], step) for step in range(count))
    assert held == pytest.approx(0.2 * count, abs=1)


def test_held_out_names_must_exist_and_leave_something() -> None:
    with pytest.raises(ParameterError, match=r"camera 'z'.*It has: a, b"):
        Splits(test_cameras=("z",)).check(["a", "b"], ["FREE"])
    with pytest.raises(ParameterError, match="every sequence"):
        Splits(test_sequences=("FREE",)).check(["a", "b"], ["FREE"])
