"""The ingest stage: tables that say exactly what the capture showed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_trees
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from tiny_captures import (
    SEQUENCES,
    SERIALS,
    damage,
    number_of,
    numbered,
    picture,
    rig,
    video_packets,
    write_nersemble,
    write_picture,
    write_video,
)

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image, decode_image, decode_matte
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_rows, read_table
from gha_core.cameras import Camera, look_at
from gha_core.capture.crop import PixelMap, square
from gha_core.capture.framing import frame_face, frame_tracked
from gha_core.errors import CaptureError, StageError
from gha_core.faces import head_model
from gha_core.faces.portrait import Painter, portrait_camera
from gha_core.landmarks import find_faces
from gha_core.splits import Splits
from tasks import ingest, matting
from tasks.stage import Inputs


def run(capture: Path, out: Path, **params: object) -> Path:
    out.mkdir(parents=True)
    inputs = Inputs("018", capture, "auto", out.parent, out.parent / "work", Splits())
    ingest.run(inputs, ingest.Params(**params), out)  # type: ignore[arg-type]
    return out


def frames(out: Path) -> list[dict]:
    return list(read_rows(out / "frames.parquet", schemas.FRAMES))


def cameras(out: Path) -> dict[str, Camera]:
    rows = read_rows(out / "cameras.parquet", schemas.CAMERAS)
    return {row["camera"]: Camera.from_row(row) for row in rows}


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nersemble(tmp_path_factory.mktemp("raw"), frames=5)


def test_every_frame_of_every_camera_is_stored_under_its_key(capture: Path, tmp_path: Path) -> None:
    out = run(capture, tmp_path / "ingest", image_size=64)
    rows = frames(out)
    expected = [
        (seq, t, cam) for seq in sorted(SEQUENCES) for t in range(5) for cam in sorted(SERIALS)
    ]
    assert [(row["sequence"], row["timestep"], row["camera"]) for row in rows] == expected
    for row in rows:
        assert number_of(decode_image(row["image"])) == row["timestep"]
        assert decode_image(row["image"]).shape == (row["height"], row["width"], 3) == (64, 64, 3)
        assert row["time"] == pytest.approx(row["timestep"] / 25)
        assert (row["source_width"], row["source_height"]) == (48, 64)
    assert read_table(out / "rejects.parquet", schemas.REJECTS).num_rows == 0
    summary = read_json(out / "summary.json")
    assert summary["frames"] == 30
    assert summary["format"] == "nersemble"
    assert (out / "preview.jpg").stat().st_size > 1000


def test_stored_cameras_see_what_the_transform_says(capture: Path, tmp_path: Path) -> None:
    out = run(capture, tmp_path / "ingest", image_size=64)
    stored = cameras(out)
    points = np.random.default_rng(0).uniform(-0.1, 0.1, (20, 3))
    for row in frames(out)[:3]:
        source = next(each for each in rig() if each.name == row["camera"])
        transform = np.array(row["transform"]).reshape(3, 3)
        pixels = source.project(points) @ transform[:2, :2].T + transform[:2, 2]
        assert np.allclose(stored[row["camera"]].project(points), pixels)
        # The rig looks at the origin: that is the middle of the picture.
        assert np.allclose(stored[row["camera"]].project(np.zeros(3)), 32, atol=2)


def test_backgrounds_get_the_crop_of_the_frames(capture: Path, tmp_path: Path) -> None:
    out = run(capture, tmp_path / "ingest", image_size=64, crop=(0, 0, 48))
    for k, row in enumerate(read_rows(out / "backgrounds.parquet", schemas.BACKGROUNDS)):
        stored = decode_image(row["image"]).astype(int)
        source = picture(k)[:48]
        assert stored.shape == (64, 64, 3)
        assert np.allclose(stored.mean((0, 1)), source.mean((0, 1)), atol=1)


def test_stride_and_limit_keep_the_numbers_of_the_frames(capture: Path, tmp_path: Path) -> None:
    out = run(
        capture, tmp_path / "ingest", image_size=64, stride=2, max_frames=2, sequences=["FREE"],
        cameras=["2222*36"], crop="none",
    )  # fmt: skip
    assert [row["timestep"] for row in frames(out)] == [0, 2]
    assert [number_of(decode_image(row["image"])) for row in frames(out)] == [0, 2]


def test_the_whole_photo_can_be_stored(capture: Path, tmp_path: Path) -> None:
    out = run(capture, tmp_path / "ingest", image_size=128, crop="none")
    assert {(row["width"], row["height"]) for row in frames(out)} == {(96, 128)}
    camera = cameras(out)[SERIALS[0]]
    assert np.allclose(camera.K, np.diag([2, 2, 1]) @ rig()[0].K)


def test_same_input_same_bytes(capture: Path, tmp_path: Path) -> None:
    first, second = (run(capture, tmp_path / name / "ingest", image_size=64) for name in "ab")
    for path in sorted(first.iterdir()):
        if path.name != "summary.json":
            assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_bad_frames_are_set_aside_with_a_reason(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path / "raw", frames=8, sequences=["FREE"])
    path = root / f"sequences/FREE/images/cam_{SERIALS[1]}.mp4"
    images = [numbered(k) for k in range(8)]
    images[2] = np.zeros_like(images[2])
    write_video(path, images, options={"g": "1", "bf": "0"})
    damage(path, video_packets(path)[5])
    out = run(root, tmp_path / "ingest", image_size=64)
    rejects = read_table(out / "rejects.parquet", schemas.REJECTS).to_pylist()
    found = [(row["timestep"], row["camera"], row["reason"].split(":")[0]) for row in rejects]
    assert found == [
        (2, SERIALS[1], "the frame is blank"),
        (5, SERIALS[1], "the frame cannot be decoded"),
    ]
    kept = [row for row in frames(out) if row["camera"] == SERIALS[1]]
    assert [row["timestep"] for row in kept] == [0, 1, 3, 4, 6, 7]
    assert all(number_of(decode_image(row["image"])) == row["timestep"] for row in kept)


def test_too_many_bad_frames_stop_the_stage(tmp_path: Path) -> None:
    root = write_nersemble(tmp_path / "raw", frames=4, sequences=["FREE"])
    for path in root.glob("sequences/FREE/images/*.mp4"):
        write_video(path, [np.zeros((64, 48, 3), np.uint8)] * 4)
    with pytest.raises(CaptureError, match=r"12 of 12 frames.*sequence FREE, timestep 0, camera"):
        run(root, tmp_path / "ingest", image_size=64)


def test_sharpness_tells_blurred_from_sharp(tmp_path: Path) -> None:
    checks = (np.indices((64, 64)).sum(0) // 4 % 2 * 200 + 20).astype(np.uint8)
    sharp = np.repeat(checks[..., None], 3, -1)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    path = write_video(tmp_path / "a.mp4", [sharp, blurred], options={"g": "1"})
    out = run(path, tmp_path / "ingest", image_size=64, crop="none")
    first, second = (row["sharpness"] for row in frames(out))
    assert first > 10 * second


# one camera --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def face() -> Image:
    model = head_model()
    vertices = model.vertices(
        torch.zeros(len(model.identity_basis)), torch.zeros(len(model.expression_names))
    )
    camera = portrait_camera(0, 0, 256, np.array([0.0, -0.08, 0.2]))
    portrait = Painter(model).portrait(vertices.double().numpy(), camera, np.array([0.3, 0.5, 1.0]))
    return portrait.image


@pytest.mark.parametrize("corner", [(150, 20), (0, 0), (384, 104)], ids=["inside", "left", "right"])
def test_one_camera_is_cropped_around_the_face(
    face: Image, tmp_path: Path, corner: tuple[int, int]
) -> None:
    x, y = corner
    photo = np.full((360, 640, 3), face[0, 0], np.uint8)
    photo[y : y + 256, x : x + 256] = face
    path = write_video(tmp_path / "me.mp4", [photo] * 6)
    out = run(path, tmp_path / "ingest", image_size=256)
    rows = frames(out)
    assert len(rows) == 6
    assert len({tuple(row["transform"]) for row in rows}) == 1  # fixed for the clip
    transform = np.array(rows[0]["transform"]).reshape(3, 3)
    (seen,) = find_faces(photo)
    x0, y0, x1, y1 = seen.box
    side = max(x1 - x0, y1 - y0)
    # Hair, ears and chin are in the picture as far as they are in the photo.
    head = np.array([[x0 - 0.3 * side, y0 - 0.6 * side, 1], [x1 + 0.3 * side, y1 + 0.2 * side, 1]])
    head[:, 0] = head[:, 0].clip(0, 640)
    head[:, 1] = head[:, 1].clip(0, 360)
    stored = (head @ transform.T)[:, :2]
    assert (stored >= -1e-6).all()
    assert (stored <= 256 + 1e-6).all()
    # And the face is not lost in it.
    assert 0.3 < side * transform[0, 0] / 256 < 0.6


def test_a_second_person_does_not_widen_the_crop(face: Image) -> None:
    """Now the one, now the other is the larger face; the crop stays with the same."""

    def photo(left: int, right: int) -> Image:
        image = np.full((300, 700, 3), face[0, 0], np.uint8)
        for x, side in ((150, left), (550, right)):
            start = x - side // 2
            image[20 : 20 + side, start : start + side] = cv2.resize(face, (side, side))
        return image

    crop = frame_face([photo(*sides) for sides in ((256, 220), (220, 250), (250, 210))], 256, "us")
    assert crop.width < 450, "both together need 650"
    assert crop.x + crop.width / 2 < 200


def test_a_clip_without_a_face_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wall.mp4", [picture(k, 160, 120) for k in range(3)])
    with pytest.raises(CaptureError, match=r"No face was found.*wall\.mp4.*ingest\.crop"):
        run(path, tmp_path / "ingest")


def test_a_crop_beyond_the_photo_is_padded_and_reported(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.full((64, 96, 3), 150, np.uint8) + numbered(1, 96)])
    out = run(path, tmp_path / "ingest", image_size=64, crop=(-48, 0, 96))
    image = decode_image(frames(out)[0]["image"])
    assert image[:, :31].max() < 8
    assert any("outside its photo" in note for note in read_json(out / "summary.json")["warnings"])
    with pytest.raises(CaptureError, match=r"ingest\.crop \[500, 0, 10\] shows nothing"):
        run(path, tmp_path / "again", crop=(500, 0, 10))


# selection ---------------------------------------------------------------------------------------


def stored_timesteps(out: Path) -> list[int]:
    return sorted({row["timestep"] for row in frames(out)})


@pytest.mark.parametrize(
    ("params", "timesteps"),
    [
        ({"fps": 12.5}, [0, 2, 4, 6, 8]),
        ({"fps": 10.0}, [0, 3, 5, 8]),
        ({"fps": 12.5, "stride": 2, "max_frames": 2}, [0, 4]),
        ({"fps": 100.0}, list(range(9))),
    ],
)
def test_frames_are_chosen_by_their_rate(
    tmp_path: Path, params: dict[str, Any], timesteps: list[int]
) -> None:
    path = write_video(tmp_path / "a.mp4", [numbered(k) for k in range(9)])
    out = run(path, tmp_path / "ingest", image_size=64, crop="none", **params)
    assert stored_timesteps(out) == timesteps


def test_the_sharpest_of_every_few_timesteps_is_stored(tmp_path: Path) -> None:
    checks = (np.indices((64, 64)).sum(0) // 4 % 2 * 200 + 20).astype(np.uint8)
    sharp = np.repeat(checks[..., None], 3, -1)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4)
    images = [blurred, sharp, blurred, blurred, blurred, sharp, sharp]
    path = write_video(tmp_path / "a.mp4", images, options={"g": "1", "crf": "1"})
    size = {"image_size": 64, "crop": "none"}
    out = run(path, tmp_path / "ingest", stride=3, pick="sharpest", **size)
    assert stored_timesteps(out) == [1, 5, 6]
    assert stored_timesteps(run(path, tmp_path / "first", stride=3, **size)) == [0, 3, 6]


# what the capture came with ----------------------------------------------------------------------


def test_given_mattes_are_stored_with_the_frames_and_used(tmp_path: Path) -> None:
    root = tiny_trees.write_rig(tmp_path)
    (root / f"masks/{SERIALS[0]}/frame1.png").write_bytes(b"no picture")
    out = run(root, tmp_path / "018" / "ingest", image_size=64, crop=(0, 0, 48))
    rows = list(read_rows(out / "mattes.parquet", schemas.ALPHA))
    keys = {(row["timestep"], row["camera"]) for row in rows}
    assert keys == {(t, c) for t in range(3) for c in SERIALS} - {(1, SERIALS[0])}
    inputs = Inputs("018", root, "rig", out.parent, tmp_path / "work", Splits())
    made = tmp_path / "matting"
    made.mkdir()
    matting.run(inputs, matting.Params(), made)
    assert read_json(made / "summary.json")["backends"] == {"given": 3}
    for row in read_rows(made / "alpha.parquet", schemas.ALPHA):
        alpha = decode_matte(row["alpha"])
        assert abs(alpha.mean() / 255 - (16 + 4 * row["timestep"]) / 48) < 0.06
    (reject,) = read_rows(made / "rejects.parquet", schemas.REJECTS)
    assert (reject["timestep"], reject["camera"]) == (1, SERIALS[0])
    assert reject["reason"] == "the capture has no matte of this frame"


def test_mattes_that_are_not_there_cannot_be_given(capture: Path, tmp_path: Path) -> None:
    out = run(capture, tmp_path / "018" / "ingest", image_size=64)
    inputs = Inputs("018", capture, "auto", out.parent, tmp_path / "work", Splits())
    with pytest.raises(StageError, match=rf"no mattes of camera {SERIALS[0]}.*matting\.backend"):
        matting.run(inputs, matting.Params(backend="given"), tmp_path)


def test_given_tracking_is_stored_and_frames_the_head(tmp_path: Path) -> None:
    root = tiny_trees.write_transforms(tmp_path)
    out = run(root, tmp_path / "ingest", image_size=64, stride=2)
    rows = list(read_rows(out / "given_tracking.parquet", schemas.GIVEN_TRACKING))
    assert [row["timestep"] for row in rows] == [0, 2]
    assert rows[1]["model"] == "FLAME"
    assert np.allclose(rows[1]["translation"], [0.02, 0, 0])
    turned = Rotation.from_rotvec([0, 0.2, 0]) * Rotation.from_rotvec([0.1, 0, 0])
    assert np.allclose(rows[1]["rotation"], turned.as_rotvec())
    assert len(dict(rows[1]["coefficients"])["expr"]) == 100


def test_a_crop_around_the_tracked_head_holds_it_and_little_else() -> None:
    K = np.array([[1000.0, 0, 1000], [0, 1000, 500], [0, 0, 1]])
    eye, up = np.array([0.3, 0.1, 4.0]), np.array([0, 1.0, 0])
    camera = Camera("a", K, look_at(eye, np.array([1.0, 0, 0]), up), 2000, 1000)
    heads = np.array([[0.0, 0, 0], [0.1, 0, 0]])
    crop = frame_tracked([camera], heads, 0.2, 256)["a"]
    transform = crop.transform
    for head in heads:
        for offset in 0.19 * np.vstack([np.eye(3), -np.eye(3)]):
            pixel = camera.project(head + offset) @ transform[:2, :2].T + transform[:2, 2]
            assert (pixel > -3).all()
            assert (pixel < 259).all()
    assert crop.width < 160
    # A head that the camera does not see: the middle of the photo, as large as it gets.
    crop = frame_tracked([camera], np.array([[0.3, 0.1, 9.0]]), 0.2, 256)["a"]
    assert (crop.x, crop.y, crop.width) == (500, 0, 1000)


# the way back ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    place=st.tuples(st.integers(-50, 900), st.integers(-50, 900), st.integers(40, 1500)),
    size=st.integers(32, 1024),
    lens=st.tuples(
        st.floats(-0.25, 0.25), st.floats(-0.05, 0.05), st.floats(-0.005, 0.005),
        st.floats(-0.005, 0.005), st.floats(-0.01, 0.01),
    ),
    focal=st.floats(900, 3000),
)  # fmt: skip
def test_what_happened_to_a_pixel_can_be_undone(
    place: tuple[int, int, int], size: int, lens: tuple[float, ...], focal: float
) -> None:
    K = np.array([[focal, 0, 500], [0, 1.1 * focal, 420], [0, 0, 1]])
    frame = {"transform": square(*place, size).transform.ravel().tolist()}
    way = PixelMap.from_rows(frame, {"source_K": K.ravel().tolist(), "source_distortion": lens})
    filmed = np.stack(np.meshgrid(np.linspace(0, 1000, 5), np.linspace(0, 840, 5)), -1)
    filmed = filmed.reshape(-1, 2)
    assert np.allclose(way.to_source(way.to_stored(filmed)), filmed, atol=1e-4)
    stored = np.random.default_rng(0).uniform(0, size, (20, 2))
    if min(place[:2]) >= 0 and max(place[:2]) + place[2] < 1000:
        assert np.allclose(way.to_stored(way.to_source(stored)), stored, atol=1e-4)


def test_the_tables_lead_back_to_the_pixel_that_was_filmed(tmp_path: Path) -> None:
    """A dot in a distorted photo is found at its place from where it is in the stored frame."""
    root = tiny_trees.write_rig(tmp_path)
    K = [[60.0, 0, 160], [0, 60.0, 120], [0, 0, 1]]
    entry = {"K": K, "w2c": np.eye(4).tolist(), "width": 320, "height": 240}
    K[0][0] = K[1][1] = 300.0
    entry["distortion"] = [-0.2, 0.05, 0.001, -0.002]
    (root / "cameras.json").write_text(json.dumps({"cameras": {"a": entry}}))
    for name in ("images", "masks", "backgrounds"):
        shutil.rmtree(root / name)
    photo = np.full((240, 320, 3), 60, np.uint8)
    cv2.circle(photo, (60, 50), 5, (255, 255, 255), -1)
    write_picture(root / "images/a/0.png", photo)
    out = run(root, tmp_path / "ingest", image_size=320, crop=(10, 5, 200))
    (row,), (camera,) = frames(out), read_rows(out / "cameras.parquet", schemas.CAMERAS)
    image = decode_image(row["image"])[..., 0].astype(float).clip(90) - 90
    y, x = np.indices(image.shape) + 0.5
    dot = np.array([[(image * x).sum(), (image * y).sum()]]) / image.sum()
    way = PixelMap.from_rows(row, camera)
    assert np.allclose(way.to_source(dot), [[60.5, 50.5]], atol=0.15)
    assert not np.allclose(dot / 1.6 + [10, 5], [[60.5, 50.5]], atol=1)
