"""Reading raw captures: exact frames, exact geometry, exact colours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_captures import (
    HEIGHT,
    SEQUENCES,
    SERIALS,
    WIDTH,
    calibration,
    damage,
    number_of,
    numbered,
    picture,
    rig,
    turn_clockwise,
    video_packets,
    write_calibration,
    write_nersemble,
    write_video,
)

from gha_core.cameras import Camera, look_at
from gha_core.capture import detect_format, open_capture
from gha_core.capture.colour import correct_colour, linear_to_srgb, polynomial_expansion
from gha_core.capture.crop import Crop, Undistorter, square, square_around, whole
from gha_core.capture.framing import frame_rig
from gha_core.capture.nersemble import read_calibration
from gha_core.capture.video import probe, read_frames
from gha_core.errors import CaptureError

# videos ------------------------------------------------------------------------------------------


def test_every_frame_of_a_video_is_read_once_and_in_order(tmp_path: Path) -> None:
    # B-frames, so that decoding order is not the order of presentation.
    path = write_video(tmp_path / "a.mp4", [numbered(k) for k in range(20)], options={"bf": "3"})
    video = probe(path)
    assert (video.frames, video.width, video.height, video.rate) == (20, WIDTH, HEIGHT, 25)
    read = [(index, number_of(image)) for index, image in read_frames(video)]
    assert read == [(k, k) for k in range(20)]
    assert video.seconds(10) == pytest.approx(0.4)


@pytest.mark.parametrize("wanted", [range(0, 12, 5), range(3, 4), range(7, 12), range(0)])
def test_chosen_frames_keep_their_numbers(tmp_path: Path, wanted: range) -> None:
    video = probe(write_video(tmp_path / "a.mkv", [numbered(k) for k in range(12)]))
    read = [(index, number_of(image)) for index, image in read_frames(video, wanted, threads=1)]
    assert read == [(k, k) for k in wanted]


def test_a_damaged_stretch_leaves_a_gap_and_shifts_nothing(tmp_path: Path) -> None:
    options = {"g": "4", "bf": "0", "sc_threshold": "0"}
    frames = [numbered(k) for k in range(16)]
    path = write_video(tmp_path / "a.mp4", frames, options=options)
    damage(path, video_packets(path)[5])
    read = dict(read_frames(probe(path)))
    assert list(read) == list(range(16))
    # Frame 5 is lost, 6 and 7 are predicted from it; 8 is the next key frame.
    assert [index for index, image in read.items() if image is None] == [5, 6, 7]
    assert all(number_of(image) == index for index, image in read.items() if image is not None)


@pytest.mark.parametrize(
    ("degrees", "quarters"), [(90, 3), (270, 1), (180, 2)], ids=["right", "left", "over"]
)
def test_rotation_in_the_metadata_is_applied(tmp_path: Path, degrees: int, quarters: int) -> None:
    upright = picture(3, 64, 48)
    path = write_video(tmp_path / "phone.mp4", [upright] * 3)
    turn_clockwise(path, degrees)
    video = probe(path)
    _, image = next(read_frames(video))
    expected = np.rot90(upright, quarters)
    assert (video.height, video.width) == image.shape[:2] == expected.shape[:2]
    assert np.abs(image.astype(int) - expected).mean() < 3


def test_a_monocular_video_is_one_camera_at_the_origin(tmp_path: Path) -> None:
    path = write_video(tmp_path / "me.mov", [numbered(k, 64, 48) for k in range(3)])
    capture = open_capture(path)
    (camera,) = capture.cameras
    assert capture.format == "monocular"
    assert [(each.name, each.frames) for each in capture.sequences] == [("video", 3)]
    assert np.array_equal(camera.w2c, np.eye(4))
    assert camera.K.tolist() == [[76.8, 0, 32], [0, 76.8, 24], [0, 0, 1]]
    assert any("76.8 px" in note for note in capture.notes)
    given_one = open_capture(path, focal_length=100.0)
    assert given_one.cameras[0].K[0, 0] == 100
    assert not given_one.notes


# NeRSemble ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nersemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nersemble(tmp_path_factory.mktemp("raw"))


@pytest.mark.parametrize("up", [False, True], ids=["participant", "its parent"])
def test_a_nersemble_folder_is_read_completely(nersemble: Path, up: bool) -> None:
    capture = open_capture(nersemble.parent if up else nersemble)
    assert capture.format == "nersemble"
    assert [each.name for each in capture.cameras] == sorted(SERIALS)
    assert [each.name for each in capture.sequences] == sorted(SEQUENCES)
    for camera, expected in zip(capture.cameras, rig(), strict=True):
        assert np.allclose(camera.w2c, expected.w2c)
        assert np.allclose(camera.K, expected.K)
    for timestep in capture.frames("FREE", range(1, 4, 2)):
        assert sorted(timestep.images) == sorted(SERIALS)
        assert {number_of(image) for image in timestep.images.values()} == {timestep.index}
    for k, serial in enumerate(SERIALS):
        assert np.array_equal(capture.background(serial), picture(k))


def test_sequences_and_cameras_are_chosen_by_pattern(nersemble: Path) -> None:
    capture = open_capture(nersemble, sequences=["EMO-*"], cameras=["2222*"])
    assert [each.name for each in capture.sequences] == ["EMO-1-shout+laugh"]
    assert [each.name for each in capture.cameras] == ["222200036", "222200037"]


def test_the_rest_of_a_spoilt_capture_can_still_be_used(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path, frames=2)
    (root / f"sequences/FREE/images/cam_{SERIALS[0]}.mp4").unlink()
    content = calibration(root)
    content["world_2_cam"][SERIALS[0]][0][0] = 7.0
    write_calibration(root, content)
    capture = open_capture(root, cameras=[SERIALS[1], SERIALS[2]])
    assert len(list(capture.frames("FREE", range(2)))) == 2


@given(
    width=st.integers(8, 4000), factor=st.floats(0.05, 1.0), x=st.floats(0, 1), y=st.floats(0, 1)
)
def test_intrinsics_scale_with_the_frames(width: int, factor: float, x: float, y: float) -> None:
    """A point keeps its place relative to the picture."""
    camera = Camera(
        "a", np.array([[900.0, 0, 400], [0, 900, 300], [0, 0, 1]]), np.eye(4), width, 600
    )
    small = camera.resized(max(1, round(width * factor)), max(1, round(600 * factor)))
    point = np.array([x - 0.5, y - 0.5, 2.0])
    relative = camera.project(point) / [camera.width, camera.height]
    assert np.allclose(small.project(point) / [small.width, small.height], relative)


def test_without_a_size_the_calibration_is_for_the_full_sensor(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path, frames=2, sequences=["FREE"], backgrounds=False)
    content = calibration(root)
    del content["height"], content["width"]
    content["intrinsics"] = [[8000, 0, 1100], [0, 8000, 1604], [0, 0, 1]]
    write_calibration(root, content)
    for path in root.glob("sequences/*/images/*.mp4"):
        write_video(path, [numbered(k, 44, 64) for k in range(2)])
    capture = open_capture(root)
    camera = capture.cameras[0]
    assert camera.K[0, 2] == pytest.approx(22)  # the middle stays the middle
    assert camera.K[1, 2] == pytest.approx(32)
    assert camera.K[0, 0] == pytest.approx(8000 * 44 / 2200)
    assert any("2200x3208" in note and "44x64" in note for note in capture.notes)


def test_intrinsics_may_be_given_per_camera(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path, frames=1, sequences=["FREE"])
    content = calibration(root)
    shared = np.array(content["intrinsics"])
    content["intrinsics"] = {
        serial: (shared * [[k + 1], [k + 1], [1]]).tolist() for k, serial in enumerate(SERIALS)
    }
    write_calibration(root, content)
    cameras = {
        each.name: each for each in read_calibration(root / "calibration/camera_params.json")
    }
    assert [cameras[serial].K[0, 0] for serial in SERIALS] == [60, 120, 180]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(poses=json_values, intrinsics=json_values, size=json_values)
def test_any_calibration_is_read_or_refused_with_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, poses: object, intrinsics: object, size: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any_camera_params.json"
    content = {"world_2_cam": poses, "intrinsics": intrinsics, "height": size, "width": size}
    path.write_text(json.dumps(content))
    try:
        cameras = read_calibration(path)
    except CaptureError as error:
        sentence = str(error)
    else:
        sentence = str(path)
        assert all(each.K.shape == (3, 3) and each.w2c.shape == (4, 4) for each in cameras)
    assert str(path) in sentence


# formats -----------------------------------------------------------------------------------------


def test_formats_are_told_apart(tmp_path: Path, nersemble: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", [numbered(0)])
    assert detect_format(video) == "monocular"
    assert detect_format(nersemble) == "nersemble"
    assert detect_format(nersemble.parent) == "nersemble"
    (tmp_path / "notes.txt").write_text("hello")
    for path, part in [
        (tmp_path / "notes.txt", "not look like a video"),
        (tmp_path, "contains clip.mp4, notes.txt"),
        (tmp_path / "absent", "does not exist"),
    ]:
        with pytest.raises(CaptureError, match=part):
            detect_format(path)
    with pytest.raises(CaptureError, match=r"'vhs' is unknown.*nersemble"):
        open_capture(video, "vhs")


# crops -------------------------------------------------------------------------------------------

crops = st.builds(
    Crop,
    st.integers(-30, 80), st.integers(-30, 80), st.integers(1, 120), st.integers(1, 120),
    st.integers(1, 90), st.integers(1, 90),
)  # fmt: skip


@given(crop=crops, point=st.tuples(*[st.floats(-0.2, 0.2)] * 3))
def test_a_cropped_camera_sees_points_where_the_crop_puts_them(
    crop: Crop, point: tuple[float, float, float]
) -> None:
    camera = rig()[1]
    cropped = camera.transformed(crop.transform, crop.stored_width, crop.stored_height)
    pixel = camera.project(np.array(point))
    moved = crop.transform @ [*pixel, 1]
    assert np.allclose(cropped.project(np.array(point)), moved[:2])


@pytest.mark.parametrize("crop", [square(4, 10, 32, 8), square(-8, -8, 64, 16), whole(64, 48, 32)])
def test_pixels_go_where_the_transform_says(crop: Crop) -> None:
    """The centroid of a bright spot, in the stored picture and through the transform."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[20:24, 16:20] = 255  # covers 16..20 x 20..24, centre (18, 22)
    stored = crop.apply(image)[..., 0].astype(float)
    assert stored.shape == (crop.stored_height, crop.stored_width)
    y, x = np.indices(stored.shape) + 0.5
    found = [(stored * x).sum() / stored.sum(), (stored * y).sum() / stored.sum()]
    assert np.allclose(found, (crop.transform @ [18, 22, 1])[:2], atol=0.02)


def test_what_lies_outside_the_photo_is_black() -> None:
    crop = square(-10, 0, 20, 20)
    stored = crop.apply(np.full((20, 20, 3), 200, np.uint8))
    assert (stored[:, :10] == 0).all()
    assert (stored[:, 10:] == 200).all()
    assert crop.padding(20, 20) == pytest.approx(0.5)


@given(
    x=st.floats(-50, 150), y=st.floats(-50, 150), side=st.floats(1, 150),
    width=st.integers(20, 100), height=st.integers(20, 100),
)  # fmt: skip
def test_squares_stay_in_the_photo_where_they_fit(
    x: float, y: float, side: float, width: int, height: int
) -> None:
    crop = square_around(np.array([x, y]), side, width, height, 64)
    for start, extent in ((crop.x, width), (crop.y, height)):
        if crop.width <= extent:
            assert 0 <= start <= extent - crop.width
        else:
            assert extent - crop.width <= start <= 0
    fits = crop.width <= min(width, height)
    assert (crop.padding(width, height) < 1e-9) == fits


def test_rig_crops_show_what_the_cameras_look_at() -> None:
    crops, notes = frame_rig(rig(), 32)
    assert not notes
    for camera in rig():
        crop = crops[camera.name]
        stored = camera.transformed(crop.transform, 32, 32)
        assert np.allclose(stored.project(np.zeros(3)), 16, atol=1)


def test_a_camera_that_looks_elsewhere_is_named() -> None:
    cameras = rig(["a", "b", "c", "d", "e"])
    astray = look_at(cameras[0].centre, np.array([0, 9.0, 0]), np.array([0, 0, 1.0]))
    cameras[0] = Camera("a", cameras[0].K, astray, 48, 64)
    _, notes = frame_rig(cameras, 32)
    assert len(notes) == 1
    assert "Camera a " in notes[0]


def test_camera_to_world_matrices_are_recognised() -> None:
    turned = [
        Camera(each.name, each.K, np.diag([1.0, -1, -1, 1]) @ each.w2c, 48, 64) for each in rig()
    ]  # OpenGL axes: everything is behind
    with pytest.raises(CaptureError, match="meet behind"):
        frame_rig(turned, 32)


def test_undistortion_moves_pixels_to_where_a_pinhole_sees_them() -> None:
    K = np.array([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]])
    camera = Camera("a", K, np.eye(4), 64, 48, np.array([-0.3, 0.05, 0.002, -0.001, 0.0]))
    point = np.array([0.3, 0.2])
    k1, k2, p1, p2, _ = camera.distortion
    x, y = point
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2  # OpenCV's model
    seen = np.array(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ]
    ) * 60 + [32, 24]
    v, u = np.indices((48, 64)) + 0.5
    spot = 250 * np.exp(-((u - seen[0]) ** 2 + (v - seen[1]) ** 2) / 8)
    image = np.repeat(spot[..., None], 3, -1).astype(np.uint8)
    straight = Undistorter(camera)(image)[..., 0].astype(float)
    found = [(straight * u).sum() / straight.sum(), (straight * v).sum() / straight.sum()]
    assert np.allclose(found, camera.project(np.array([0.3, 0.2, 1.0])), atol=0.15)
    plain = Camera("a", K, np.eye(4), 64, 48)
    assert Undistorter(plain)(image) is image


# colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (3, [2, 3, 5]),
        (4, [2, 3, 5, 1]),
        (5, [2, 3, 5, 30, 1]),
        (7, [2, 3, 5, 6, 10, 15, 1]),
        (8, [2, 3, 5, 6, 10, 15, 30, 1]),
        (10, [2, 3, 5, 6, 10, 15, 4, 9, 25, 1]),
        (11, [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 1]),
        (14, [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 8, 27, 125, 1]),
        (16, [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 12, 45, 50, 8, 27, 125]),
        (17, [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 12, 45, 50, 8, 27, 125, 1]),
        (19, [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 12, 45, 50, 20, 18, 75, 8, 27, 125]),
        (20, [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 12, 45, 50, 20, 18, 75, 8, 27, 125, 1]),
        (
            22,
            [2, 3, 5, 6, 10, 15, 4, 9, 25, 30, 12, 45, 50, 20, 18, 75, 8, 27, 125, 60, 90, 150],
        ),
    ],
)
def test_polynomial_terms_come_in_the_published_order(terms: int, expected: list[int]) -> None:
    """2, 3 and 5 are prime: a product says which channels are in it."""
    assert polynomial_expansion(np.array([2.0, 3.0, 5.0]), terms).tolist() == expected


def test_35_terms_are_all_products_up_to_the_fourth_degree() -> None:
    values = polynomial_expansion(np.array([2.0, 3.0, 5.0]), 35)
    expected = {
        2**i * 3**j * 5**k for i in range(5) for j in range(5) for k in range(5) if i + j + k <= 4
    }
    assert len(expected) == 35
    assert set(values.tolist()) == expected


def test_an_identity_correction_changes_nothing() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for terms in (3, 4, 10, 20):
        assert np.array_equal(correct_colour(image, np.eye(3, terms)), image)


def test_corrections_act_on_linear_light() -> None:
    """Half the light is 0.5 in linear values: level 188 of 255."""
    white = np.full((2, 2, 3), 255, np.uint8)
    assert correct_colour(white, 0.5 * np.eye(3, 4)).tolist() == [[[188] * 3] * 2] * 2
    swapped = correct_colour(np.full((1, 1, 3), (255, 0, 99), np.uint8), np.eye(3)[[1, 0, 2]])
    assert swapped.tolist() == [[[0, 255, 99]]]
    constant = np.zeros((3, 4))
    constant[:, 3] = [0.0, 1.0, 4.0]
    assert correct_colour(white, constant)[0, 0].tolist() == [0, 255, 255]  # clipped
    assert np.allclose(linear_to_srgb(np.array([0.5])) * 255, 187.516, atol=1e-3)


def test_nersemble_frames_are_corrected_when_asked(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path, frames=1, sequences=["FREE"])
    matrices = {serial: np.eye(3, 10).tolist() for serial in SERIALS}
    matrices[SERIALS[1]] = (0.5 * np.eye(3, 10)).tolist()
    (root / "calibration/color_calibration.json").write_text(json.dumps(matrices))
    white = np.full((4, 4, 3), 255, np.uint8)
    corrected = open_capture(root)
    assert corrected.correct(SERIALS[0], white)[0, 0, 0] == 255
    assert corrected.correct(SERIALS[1], white)[0, 0, 0] == 188
    raw = open_capture(root, colour_correction=False)
    assert raw.correct(SERIALS[1], white)[0, 0, 0] == 255
