"""Landmarks: found where they are, in 2D and in 3D, and doubted where they are not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image, encode_jpeg, encode_png
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_table, write_table
from gha_core.cameras import Camera, look_at
from gha_core.errors import StageError
from gha_core.faces.head_model import build_head
from gha_core.faces.model import FaceModel
from gha_core.faces.portrait import Painter, portrait_camera
from gha_core.landmarks import (
    Detection,
    FaceMeshDetector,
    find_faces,
    main_face,
    triangulate,
)
from gha_core.landmarks.drawing import draw_landmarks
from gha_core.landmarks.insightface import POINTS_68
from gha_core.landmarks.points import CONTOURS, LEFT_EYE, RIGHT_EYE
from gha_core.landmarks.regions import Region, sample, upright
from gha_core.splits import Splits
from tasks import landmarks as stage
from tasks.stage import Inputs

FACE_CENTRE = np.array([0.0, -0.08, 0.2])
LIGHT = np.array([0.3, 0.5, 1.0])


# triangulation -----------------------------------------------------------------------------------
def rig(count: int = 6, spread: float = 1.0) -> list[Camera]:
    K = np.array([[500.0, 0, 128], [0, 480.0, 120], [0, 0, 1]])
    angles = np.linspace(-spread, spread, count)
    return [
        Camera(
            str(index),
            K,
            look_at(
                np.array([np.sin(a), 0.2 * np.cos(3 * a), np.cos(a)]),
                np.zeros(3),
                np.array([0, 1, 0]),
            ),
            256,
            256,
        )
        for index, a in enumerate(angles)
    ]


def seen_by(cameras: list[Camera], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([camera.project(points) for camera in cameras])


def cloud(rng: np.random.Generator, length: int = 40) -> NDArray[np.float64]:
    return rng.uniform(-0.1, 0.1, (length, 3))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), views=st.integers(2, 9))
def test_exact_observations_give_exact_points(seed: int, views: int) -> None:
    points, cameras = cloud(np.random.default_rng(seed)), rig(views)
    found = triangulate(seen_by(cameras, points), cameras)
    np.testing.assert_allclose(found.points, points, atol=1e-9)
    assert (found.views == views).all()
    assert np.nanmax(found.error) < 1e-6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), bad=st.integers(0, 3))
def test_wrong_views_are_left_out(seed: int, bad: int) -> None:
    rng = np.random.default_rng(seed)
    points, cameras = cloud(rng), rig(7)
    pixels = seen_by(cameras, points)
    noisy = pixels + rng.normal(0, 0.3, pixels.shape)
    wrong = np.zeros(pixels.shape[:2], bool)
    for index in range(len(points)):  # other views for every point, each wrong in its own way
        wrong[rng.choice(7, bad, replace=False), index] = True
    direction = rng.uniform(0, 2 * np.pi, wrong.shape)
    away = (
        np.stack([np.cos(direction), np.sin(direction)], -1)
        * rng.uniform(25, 90, wrong.shape)[..., None]
    )
    found = triangulate(noisy + away * wrong[..., None], cameras)
    assert np.median(np.linalg.norm(found.points - points, axis=1)) < 0.0012
    assert (found.inliers & wrong).mean() < 0.01
    assert (found.views >= 7 - bad - 1).mean() > 0.95


def test_minimises_pixels_and_not_an_algebraic_error() -> None:
    """A near and a far camera: the optimum of the reprojection error is stationary."""
    rng = np.random.default_rng(3)
    cameras = rig(4)
    far = cameras[0].w2c.copy()
    far[2, 3] *= 4
    cameras[0] = replace(cameras[0], w2c=far)
    points = cloud(rng, 5)
    pixels = seen_by(cameras, points) + rng.normal(0, 0.4, (4, 5, 2))
    found = triangulate(pixels, cameras, threshold=4.0, iterations=30).points

    def cost(place: NDArray[np.float64]) -> NDArray[np.float64]:
        square = ((seen_by(cameras, place) - pixels) ** 2).sum(-1)
        return np.log1p(square / 4.0).sum(0)  # Cauchy with half the threshold

    for axis in np.eye(3) * 1e-5:
        assert (cost(found) <= cost(found + axis) + 1e-12).all()
        assert (cost(found) <= cost(found - axis) + 1e-12).all()


def test_unknown_points_are_nan() -> None:
    points, cameras = cloud(np.random.default_rng(0), 4), rig(4)
    pixels = seen_by(cameras, points)
    pixels[1:, 0] = np.nan  # one view left
    pixels[:, 1] = np.nan  # none left
    weights = np.ones((4, 4))
    weights[:3, 2] = 0
    found = triangulate(pixels, cameras, weights)
    assert np.isnan(found.points[:3]).all()
    assert np.isnan(found.error[:3]).all()
    assert (found.views == [0, 0, 0, 4]).all()
    np.testing.assert_allclose(found.points[3], points[3], atol=1e-9)


def test_nearly_parallel_rays_do_not_make_up_a_depth() -> None:
    cameras = rig(2, spread=np.radians(0.5))
    points = cloud(np.random.default_rng(1))
    assert np.isnan(triangulate(seen_by(cameras, points), cameras).points).all()


def test_weights_decide_between_equals() -> None:
    cameras = rig(4)
    a, b = np.array([[0.05, 0, 0]]), np.array([[-0.05, 0, 0]])
    pixels = np.concatenate([seen_by(cameras[:2], a), seen_by(cameras[2:], b)])
    first = triangulate(pixels, cameras, np.array([1, 1, 0.5, 0.5]))
    second = triangulate(pixels, cameras, np.array([0.5, 0.5, 1, 1]))
    np.testing.assert_allclose(first.points, a, atol=1e-6)
    np.testing.assert_allclose(second.points, b, atol=1e-6)


# regions -----------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(-3.1, 3.1),
    size=st.floats(40, 700),
    x=st.floats(60, 140),
    y=st.floats(60, 140),
)
def test_a_dot_is_found_where_the_region_maps_it(
    angle: float, size: float, x: float, y: float
) -> None:
    """Sampling and mapping back are inverse, whatever the turn, and when it shrinks the image."""
    image = np.zeros((200, 200, 3), np.uint8)
    cv2.circle(image, (100, 100), 9, (255, 255, 255), -1)
    dot = np.array([100.5, 100.5])
    region = Region(x, y, size, angle)
    picture = sample(image, region, 64).astype(float).sum(-1)
    inside = np.abs((dot - [x, y]) @ region.axes) + 15 < size / 2
    if not inside.all():
        return
    rows, columns = np.indices(picture.shape) + 0.5
    found = np.array([(columns * picture).sum(), (rows * picture).sum()]) / picture.sum()
    # A tenth of a sample, or of a pixel where the region magnifies.
    assert np.abs(region.to_image(found / 64) - dot).max() < max(0.15, 0.1 * size / 64)


def test_whole_image_is_sampled_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(sample(image, Region(16, 16, 32), 32), image)


def test_upright_turns_with_its_reference() -> None:
    points = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]])
    turn = Region(0, 0, 1, 0.7).axes
    region = upright(points @ turn.T, turn @ [0.0, 1.0], turn @ [1.0, 1.0], 1.5)
    np.testing.assert_allclose(region.angle, 0.7)
    np.testing.assert_allclose(region.size, 6.0)
    np.testing.assert_allclose([region.x, region.y], turn @ [2.0, 1.0])


# detection ---------------------------------------------------------------------------------------
Portray = Callable[..., tuple[Image, Camera]]


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return build_head()


@pytest.fixture(scope="module")
def portray(model: FaceModel) -> Portray:
    painter = Painter(model)

    def paint(yaw: float = 0, size: int = 256, **expression: float) -> tuple[Image, Camera]:
        amounts = torch.zeros(len(model.expression_names))
        for name, amount in expression.items():
            amounts[model.expression_names.index(name)] = amount
        vertices = model.vertices(torch.zeros(len(model.identity_basis)), amounts)
        camera = portrait_camera(yaw, 0, size, FACE_CENTRE)
        return painter.portrait(vertices.double().numpy(), camera, LIGHT).image, camera

    return paint


@pytest.fixture(scope="module")
def detector() -> FaceMeshDetector:
    return FaceMeshDetector()


def opening(points: NDArray[np.float32], eye: tuple[int, ...]) -> float:
    """Height of the lids' gap over the eye's width."""
    corners = np.linalg.norm(points[eye[0]] - points[eye[8]])
    return float(np.linalg.norm(points[eye[4]] - points[eye[12]]) / corners)


def test_irises_are_on_the_eyes_right_before_left(
    portray: Portray, model: FaceModel, detector: FaceMeshDetector
) -> None:
    image, camera = portray()
    found = detector.detect(image)
    assert found is not None
    assert found.confidence > 0.9
    left, right = camera.project(Painter(model).eye_centres)
    assert right[0] < left[0]
    np.testing.assert_allclose(found.points[468], right, atol=2)
    np.testing.assert_allclose(found.points[473], left, atol=2)
    # Centre, nasal, upper, temporal, lower.
    for centre, nose in ((468, 1), (473, -1)):
        nasal, upper, temporal, lower = found.points[centre + 1 : centre + 5] - found.points[centre]
        assert nasal[0] * nose > 1
        assert temporal[0] * nose < -1
        assert upper[1] < -1
        assert lower[1] > 1
    assert (found.box[:2] <= found.points.min(0)).all()
    assert (found.box[2:] >= found.points.max(0)).all()


def test_both_models_agree_on_the_eye_contour(
    portray: Portray, detector: FaceMeshDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table that maps the iris model's points to FaceMesh's: each nearest to its own."""
    image, _ = portray(size=512)
    refined = detector.detect(image)
    monkeypatch.setattr(
        FaceMeshDetector, "_run_iris", lambda self, *_: (np.zeros((16, 2)), np.zeros((5, 2)))
    )
    shown = list(RIGHT_EYE + LEFT_EYE)
    runs: list[NDArray[np.float64]] = []
    original = FaceMeshDetector._run_mesh

    def remember(self: FaceMeshDetector, *args: object) -> object:
        mesh = original(self, *args)  # type: ignore[arg-type]
        runs.append(mesh.points[shown, :2])
        return mesh

    monkeypatch.setattr(FaceMeshDetector, "_run_mesh", remember)
    detector.detect(image)
    assert refined is not None
    away = np.linalg.norm(refined.points[shown] - np.mean(runs[1:], axis=0), axis=1)
    eye_width = np.linalg.norm(refined.points[33] - refined.points[133])
    assert away.max() < 0.2 * eye_width
    assert away.mean() < 0.1 * eye_width


def test_a_wink_closes_one_eye(portray: Portray, detector: FaceMeshDetector) -> None:
    found = detector.detect(portray(eyeBlinkLeft=1.0)[0])
    assert found is not None
    assert opening(found.points, LEFT_EYE) < 0.5 * opening(found.points, RIGHT_EYE)


@pytest.mark.parametrize("turn", [-35.0, 25.0])
def test_points_turn_and_shift_with_the_image(
    portray: Portray, detector: FaceMeshDetector, turn: float
) -> None:
    image, _ = portray()
    matrix = cv2.getRotationMatrix2D((128, 128), turn, 0.8)
    matrix[:, 2] += [9, -6]
    turned = cv2.warpAffine(image, matrix, (256, 256), borderValue=(184, 184, 184))
    plain, other = detector.detect(image), detector.detect(turned.astype(np.uint8))
    assert plain is not None
    assert other is not None
    expected = (plain.points - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    # One percent of the face, which is about 100 px wide here.
    assert np.linalg.norm(other.points - expected, axis=1).mean() < 1.2


@pytest.mark.parametrize("kind", ["tiny", "huge", "corner"])
def test_faces_of_any_size(portray: Portray, detector: FaceMeshDetector, kind: str) -> None:
    image, _ = portray()
    plain = detector.detect(image)
    assert plain is not None
    if kind == "tiny":  # 30 px in full HD
        canvas = np.full((1080, 1920, 3), 184, np.uint8)
        canvas[700:764, 1500:1564] = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
        scale, shift, shown = 0.25, np.array([1500.0, 700.0]), canvas
    elif kind == "huge":  # from the brows to the chin, larger than what the detector was made for
        x0, y0, x1, y1 = (int(value) for value in plain.box)
        shown = cv2.resize(image[y0:y1, x0:x1], None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
        scale, shift = 3.0, -3.0 * np.array([x0, y0])
    else:
        shown = image[40:, 40:].copy()
        scale, shift = 1.0, np.array([-40.0, -40.0])
    found = detector.detect(shown)
    assert found is not None
    away = np.linalg.norm(found.points - (plain.points * scale + shift), axis=1)
    assert away.mean() < 0.02 * (plain.box[2] - plain.box[0]) * scale + 0.3


def test_confidence_falls_as_the_head_turns(portray: Portray, detector: FaceMeshDetector) -> None:
    found = [detector.detect(portray(yaw=yaw)[0]) for yaw in (0, 45, 75)]
    front, half, side = (0.0 if each is None else each.confidence for each in found)
    assert front > 0.9
    assert 0.5 < half < 0.9
    assert side < 0.3
    # Seen from the subject's left, the right cheek is hidden.
    assert found[1] is not None
    assert found[1].visibility[234] < 0.1 < 0.5 < found[1].visibility[411]


def test_no_face_is_none(detector: FaceMeshDetector) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    for image in (np.zeros((256, 256, 3), np.uint8), noise, np.zeros((3, 900, 3), np.uint8)):
        assert detector.detect(image) is None


def test_the_subject_is_the_largest_central_face(portray: Portray) -> None:
    image, _ = portray()
    canvas = np.full((256, 640, 3), 184, np.uint8)
    canvas[:, 192:448] = image
    canvas[120:220, 10:110] = cv2.resize(image, (100, 100), interpolation=cv2.INTER_AREA)
    faces = find_faces(canvas)
    chosen = main_face(faces, 640, 256)
    assert chosen is not None
    assert abs(chosen.centre[0] - 320) < 20
    assert main_face([], 640, 256) is None


def test_threads_agree_with_one_thread(portray: Portray, detector: FaceMeshDetector) -> None:
    images = [portray(yaw=yaw)[0] for yaw in (0, 10, 20, -10)]
    alone = [detector.detect(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, images))
    for a, b in zip(alone, together, strict=True):
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a.points, b.points)


def test_drawing_marks_the_landmarks(portray: Portray, detector: FaceMeshDetector) -> None:
    image, _ = portray()
    found = detector.detect(image)
    assert found is not None
    picture = draw_landmarks(image, found.points, size=512)
    assert picture.shape == (512, 512, 3)
    changed = (
        np.abs(picture.astype(int) - cv2.resize(image, (512, 512), interpolation=2)).sum(-1) > 60
    )
    for contour in CONTOURS.values():
        x, y = (found.points[contour[0]] * 2).astype(int)
        assert changed[y - 2 : y + 3, x - 2 : x + 3].any()
    unknown = np.full((478, 2), np.nan)
    np.testing.assert_array_equal(draw_landmarks(image, unknown), image)


# stage -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def frames(portray: Portray) -> dict[str, tuple[Image, Camera]]:
    views = {f"cam{yaw:+d}": portray(yaw=yaw) for yaw in (-25, 0, 25)}
    # Three head lengths away in head space: about two thirds of a metre.
    return {name: (image, replace(camera, name=name)) for name, (image, camera) in views.items()}


def subject(
    folder: Path,
    frames: dict[str, tuple[Image, Camera]],
    spoil: dict[tuple[int, str], Image] | None = None,
    matte: Image | None = None,
    splits: Splits | None = None,
    timesteps: int = 2,
) -> Inputs:
    """Artifacts of ingest and matting: some timesteps of every camera."""
    (folder / "ingest").mkdir(parents=True)
    (folder / "matting").mkdir()
    keys = [
        {"subject": "s", "sequence": "A", "timestep": timestep, "camera": name}
        for timestep in range(timesteps)
        for name in sorted(frames)
    ]
    rows, mattes = [], []
    for key in keys:
        image = (spoil or {}).get((key["timestep"], key["camera"]), frames[key["camera"]][0])
        size = {"width": image.shape[1], "height": image.shape[0]}
        rows.append(
            {
                **key,
                **size,
                "image": encode_jpeg(image),
                "time": 0.04 * key["timestep"],
                "sharpness": 1.0,
                "transform": np.eye(3).ravel(),
                "source_width": 256,
                "source_height": 256,
            }
        )
        alpha = np.full(image.shape[:2], 255, np.uint8) if matte is None else matte
        mattes.append({**key, **size, "alpha": encode_png(alpha)})
    write_table(folder / "ingest" / "frames.parquet", schemas.FRAMES, rows)
    write_table(
        folder / "ingest" / "cameras.parquet",
        schemas.CAMERAS,
        [camera.row("s") for _, camera in frames.values()],
    )
    write_table(folder / "matting" / "alpha.parquet", schemas.ALPHA, mattes)
    return Inputs("s", folder, "auto", folder, folder / "work", splits or Splits())


def run(inputs: Inputs, out: Path, **params: object) -> Path:
    out.mkdir()
    stage.run(inputs, stage.Params(**params), out)  # type: ignore[arg-type]
    return out


def test_stage_writes_points_in_2d_and_3d(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]], model: FaceModel
) -> None:
    blank = np.full((256, 256, 3), 90, np.uint8)
    inputs = subject(tmp_path / "s", frames, {(1, "cam-25"): blank})
    out = run(inputs, tmp_path / "out")
    found = read_table(out / "landmarks.parquet", schemas.LANDMARKS).to_pylist()
    assert len(found) == 5
    assert all(len(row["points"]) == 478 * 2 for row in found)
    (reject,) = read_table(out / "rejects.parquet", schemas.REJECTS).to_pylist()
    assert (reject["timestep"], reject["camera"]) == (1, "cam-25")
    assert "no face" in reject["reason"]
    world = read_table(out / "landmarks3d.parquet", schemas.LANDMARKS_3D).to_pylist()
    assert [(row["sequence"], row["timestep"]) for row in world] == [("A", 0), ("A", 1)]
    points = np.array(world[0]["points"]).reshape(478, 3)
    left, right = Painter(model).eye_centres
    radius = 0.07  # an eyeball, in head lengths
    assert np.linalg.norm(points[473] - left) < 1.5 * radius
    assert np.linalg.norm(points[468] - right) < 1.5 * radius
    assert max(world[1]["views"]) == 2
    summary = read_json(out / "summary.json")
    assert summary["found"] == 5
    assert summary["cameras"]["cam-25"]["found"] == 1
    assert summary["triangulated"] > 0.9
    assert summary["reprojection_px"] < 2
    assert (out / "preview.jpg").stat().st_size > 10_000


def test_every_frame_is_found_or_set_aside(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]]
) -> None:
    timesteps = 50
    blank = np.full((64, 64, 3), 90, np.uint8)
    spoil = {
        (timestep, name): blank
        for timestep in range(timesteps)
        for name in frames
        if timestep % 20 or name != "cam+0"
    }
    out = run(
        subject(tmp_path / "s", frames, spoil, timesteps=timesteps), tmp_path / "out", min_found=0
    )
    columns = ["timestep", "camera"]
    found = read_table(out / "landmarks.parquet", schemas.LANDMARKS, columns).to_pylist()
    rejects = read_table(out / "rejects.parquet", schemas.REJECTS, columns).to_pylist()
    everything = {(timestep, name) for timestep in range(timesteps) for name in frames}
    assert {(row["timestep"], row["camera"]) for row in rejects} == set(spoil)
    assert {(row["timestep"], row["camera"]) for row in found} == everything - set(spoil)


def test_stage_is_reproducible(tmp_path: Path, frames: dict[str, tuple[Image, Camera]]) -> None:
    inputs = subject(tmp_path / "s", frames)
    a, b = run(inputs, tmp_path / "a"), run(inputs, tmp_path / "b")
    for name in ("landmarks.parquet", "landmarks3d.parquet", "rejects.parquet", "preview.jpg"):
        assert (a / name).read_bytes() == (b / name).read_bytes()


def test_held_out_cameras_have_no_part_in_3d(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]]
) -> None:
    splits = Splits(test_cameras=("cam+25",))
    other = {key: frames["cam-25"][0] for key in ((0, "cam+25"), (1, "cam+25"))}
    honest = run(subject(tmp_path / "s", frames, splits=splits), tmp_path / "a")
    altered = run(subject(tmp_path / "t", frames, other, splits=splits), tmp_path / "b")
    name = "landmarks3d.parquet"
    assert (honest / name).read_bytes() == (altered / name).read_bytes()
    assert len(read_table(honest / "landmarks.parquet", schemas.LANDMARKS)) == 6


def test_one_camera_has_an_empty_3d_table(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]]
) -> None:
    out = run(subject(tmp_path / "s", {"cam+0": frames["cam+0"]}), tmp_path / "out")
    assert len(read_table(out / "landmarks3d.parquet", schemas.LANDMARKS_3D)) == 0
    assert len(read_table(out / "landmarks.parquet", schemas.LANDMARKS)) == 2


def test_a_face_beside_the_matte_is_not_the_subject(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]]
) -> None:
    matte = np.zeros((256, 256), np.uint8)
    matte[:, :60] = 255
    inputs = subject(tmp_path / "s", frames, matte=matte)
    with pytest.raises(StageError, match=r"0 of 6 frames.*matte.*sequence A, timestep 0"):
        run(inputs, tmp_path / "out")
    run(inputs, tmp_path / "tolerant", min_on_matte=0.0)


def test_no_face_at_all_stops_with_a_sentence(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]]
) -> None:
    blank = np.full((256, 256, 3), 90, np.uint8)
    spoil = {(timestep, name): blank for timestep in (0, 1) for name in frames}
    with pytest.raises(StageError, match=r"0 of 6 frames.*no face was found.*camera cam"):
        run(subject(tmp_path / "s", frames, spoil), tmp_path / "out")


def test_a_camera_with_a_wrong_calibration_is_named(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]], portray: Portray
) -> None:
    image, camera = portray(yaw=12)
    moved = camera.transformed(np.array([[1.0, 0, 40], [0, 1, 0], [0, 0, 1]]), 256, 256)
    views = {**frames, "cam+12": (image, replace(moved, name="cam+12"))}
    out = run(subject(tmp_path / "s", views), tmp_path / "out")
    (warning,) = read_json(out / "summary.json")["warnings"]
    assert "cam+12" in warning
    assert "calibration" in warning


def test_a_view_that_contradicts_the_others_is_doubted_and_listed(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]], portray: Portray
) -> None:
    """One frame of one camera is shifted: a frozen or a swapped camera looks like this."""
    views = {**frames, "cam+12": portray(yaw=12)}
    views["cam+12"] = (views["cam+12"][0], replace(views["cam+12"][1], name="cam+12"))
    shifted = np.roll(views["cam+12"][0], 14, axis=1)
    inputs = subject(tmp_path / "s", views, {(1, "cam+12"): shifted})
    out = run(inputs, tmp_path / "out")
    summary = read_json(out / "summary.json")
    (listed,) = summary["outlying_views"]
    assert summary["outlying"] == 1
    assert (listed["sequence"], listed["timestep"], listed["camera"]) == ("A", 1, "cam+12")
    assert 10 < listed["error_px"] < 18
    rows = read_table(out / "landmarks.parquet", schemas.LANDMARKS).to_pylist()
    trust = {(row["timestep"], row["camera"]): row["confidence"] for row in rows}
    doubt = (0.02 * 256 / listed["error_px"]) ** 2
    assert trust[1, "cam+12"] == pytest.approx(doubt * trust[0, "cam+12"], rel=0.1)
    assert min(trust[key] for key in trust if key != (1, "cam+12")) > 0.8


def test_the_stage_can_use_insightface(
    tmp_path: Path, frames: dict[str, tuple[Image, Camera]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its points are told from ours by their NaN, and its licence is on record."""
    real = FaceMeshDetector()

    class Few:
        name, licence = "insightface", "non-commercial research only"

        def detect(self, image: Image) -> Detection | None:
            found = real.detect(image)
            if found is None:
                return None
            known = np.isin(np.arange(478), POINTS_68)[:, None]
            return replace(found, points=np.where(known, found.points, np.nan).astype(np.float32))

    monkeypatch.setattr(stage, "InsightFaceDetector", Few)
    out = run(subject(tmp_path / "s", frames), tmp_path / "out", detector="insightface")
    summary = read_json(out / "summary.json")
    assert (summary["detector"], summary["found"]) == ("insightface", 6)
    assert summary["licences"] == {"insightface": "non-commercial research only"}
    rows = read_table(out / "landmarks.parquet", schemas.LANDMARKS).to_pylist()
    assert {row["detector"] for row in rows} == {"insightface"}
    world = read_table(out / "landmarks3d.parquet", schemas.LANDMARKS_3D).to_pylist()
    known = np.isfinite(np.array(world[0]["points"]).reshape(478, 3)).all(1)
    assert set(np.flatnonzero(known)) <= set(POINTS_68)
    assert known.sum() > 60


@pytest.mark.shared
def test_real_footage() -> None:
    """Some frames of a speaker who faces the camera: found with confidence, eyes mostly open."""
    video = Path(__file__).parents[2] / "shared" / "captures" / "talking_head.mp4"
    if not video.exists():
        pytest.skip("the shared captures are not here")
    capture, detector, seen = cv2.VideoCapture(str(video)), FaceMeshDetector(), []
    for index in range(501):
        if not capture.grab():
            break
        if index % 50 == 0:
            _, image = capture.retrieve()
            found = detector.detect(cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8))
            assert found is not None
            assert found.confidence > 0.75
            seen.append(opening(found.points, LEFT_EYE))
    assert len(seen) == 11
    assert 0.2 < np.median(seen) < 0.4
