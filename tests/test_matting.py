"""Mattes: exact where the truth is known, refused where they are empty."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image, decode_matte, encode_jpeg, encode_png
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_rows, read_table, write_table
from gha_core.cameras import Camera
from gha_core.errors import StageError
from gha_core.linear_light import to_light, to_srgb
from gha_core.matting import PlateMatting, Refinement
from gha_core.matting.guided_filter import guided_filter
from gha_core.matting.plate import difference
from gha_core.matting.trimap import BACKGROUND, FOREGROUND, UNKNOWN, clean_mask, make_trimap
from gha_core.splits import Splits
from tasks import ingest, matting
from tasks.stage import Inputs

SIDE = 128
Floats = NDArray[np.float32]


def wall() -> Floats:
    """A wall with soft furniture, 0..1."""
    random = np.random.default_rng(5)
    coarse = random.uniform(0.35, 0.75, (5, 5, 3)).astype(np.float32)
    return cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def bust(hair: bool = True, shift: int = 0) -> tuple[Floats, Floats]:
    """Colours and true alpha (drawn 8 times finer) of a head with strands, on shoulders."""
    fine = 8
    alpha = np.zeros((SIDE * fine, SIDE * fine), np.uint8)
    middle = (64 + shift) * fine
    cv2.ellipse(alpha, (middle, 56 * fine), (26 * fine, 34 * fine), 0, 0, 360, 255, -1)
    cv2.ellipse(alpha, (middle, 128 * fine), (52 * fine, 34 * fine), 0, 0, 360, 255, -1)
    cv2.rectangle(alpha, (middle - 10 * fine, 80 * fine), (middle + 10 * fine, 110 * fine), 255, -1)
    if hair:
        for angle in np.linspace(np.pi, 2 * np.pi, 24):
            direction = np.array([np.cos(angle), np.sin(angle)])
            start = np.array([middle, 56 * fine]) + direction * 25 * fine
            end = start + direction * 14 * fine
            cv2.line(alpha, start.astype(int).tolist(), end.astype(int).tolist(), 255, fine)
    coverage = cv2.resize(alpha, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    colours = np.empty((SIDE, SIDE, 3), np.float32)
    colours[:] = (0.78, 0.55, 0.43)
    colours[:50] = (0.16, 0.11, 0.08)
    colours[95:] = (0.2, 0.25, 0.5)
    return colours, (coverage / 255).astype(np.float32)


def photo(light: Floats, noise: float, seed: int) -> Image:
    random = np.random.default_rng(seed)
    noisy = light + random.normal(0, noise / 255, light.shape)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def scene(noise: float = 1.5, gain: float = 1.0, shadow: float = 0.0, **person: object) -> tuple:
    """(frame, plate, true alpha)."""
    colours, alpha = bust(**person)  # type: ignore[arg-type]
    back = wall() * gain
    x = np.arange(SIDE)[None, :, None]
    back = back * (1 - shadow * np.exp(-(((x - 100) / 12.0) ** 2)))
    light = alpha[..., None] * to_light(colours) + (1 - alpha[..., None]) * to_light(back)
    return photo(to_srgb(light), noise, 1), photo(wall(), noise, 2), alpha


@pytest.mark.parametrize(
    ("noise", "refinement"),
    [
        (0.5, "guided"),
        (2.0, "guided"),
        (5.0, "guided"),
        # pymatting compiles for half a minute when it is imported for the first time.
        pytest.param(2.0, "closed_form", marks=pytest.mark.slow),
    ],
)
def test_a_head_with_loose_hair_is_cut_out(noise: float, refinement: Refinement) -> None:
    frame, plate, truth = scene(noise)
    alpha = PlateMatting(plate, refinement)(frame)
    assert np.abs(alpha - truth).mean() < 0.012
    strands = (truth > 0.3) & (np.indices(truth.shape)[0] < 20)
    assert alpha[strands].mean() > 0.5 * truth[strands].mean()
    eroded = cv2.erode((truth == 1).astype(np.uint8), np.ones((21, 21))).astype(bool)
    assert (alpha[eroded] == 1).all()
    far = ~cv2.dilate((truth > 0).astype(np.uint8), np.ones((41, 41))).astype(bool)
    assert (alpha[far] == 0).all()


@pytest.mark.parametrize(("gain", "shadow"), [(0.9, 0.0), (1.1, 0.0), (1.0, 0.15)])
def test_exposure_and_shadows_do_not_count_as_person(gain: float, shadow: float) -> None:
    frame, plate, truth = scene(gain=gain, shadow=shadow)
    alpha = PlateMatting(plate)(frame)
    assert np.abs(alpha - truth).mean() < 0.015
    found = difference(frame / np.float32(255), plate / np.float32(255))
    if not shadow:
        assert np.allclose(found.gain, gain, atol=0.02)


@pytest.mark.parametrize("noise", [1.0, 3.0, 8.0])
def test_noise_is_measured_on_the_background(noise: float) -> None:
    frame, plate, _ = scene(noise)
    found = difference(frame / np.float32(255), plate / np.float32(255))
    # Frame and plate both carry it.
    assert np.allclose(found.noise * 255, np.sqrt(2) * noise, rtol=0.2)


def test_a_shirt_of_the_colour_of_the_wall_leaves_no_hole() -> None:
    frame, plate, _ = scene()
    frame = frame.copy()
    frame[60:68, 60:68] = plate[60:68, 60:68]
    assert (PlateMatting(plate)(frame)[60:68, 60:68] > 0.98).all()


def test_a_passer_by_is_no_part_of_the_person() -> None:
    frame, plate, _ = scene(hair=False)
    frame = frame.copy()
    frame[5:15, 5:15] = 255 - plate[5:15, 5:15]
    assert (PlateMatting(plate)(frame)[:17, :17] == 0).all()


def test_clean_mask_keeps_one_piece_and_real_gaps() -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:80, 20:80] = True
    mask[40:44, 40:44] = False  # a crumb missing: fill
    mask[50:75, 50:75] = False  # between arm and body: keep
    mask[5:8, 5:8] = True
    cleaned = clean_mask(mask)
    assert cleaned[42, 42]
    assert not cleaned[60, 60]
    assert not cleaned[6, 6]
    assert not clean_mask(np.zeros((9, 9), bool)).any()


def test_trimaps_doubt_the_outline_and_what_is_marked() -> None:
    mask = np.zeros((60, 60), bool)
    mask[20:, 20:40] = True
    doubtful = np.zeros_like(mask)
    doubtful[14, 30] = doubtful[2, 30] = True
    trimap = make_trimap(mask, doubtful, 3, 2, 8)
    assert trimap[40, 30] == FOREGROUND
    assert trimap[59, 30] == FOREGROUND  # the picture's edge is no outline
    assert trimap[40, 21] == trimap[40, 18] == trimap[14, 30] == UNKNOWN
    assert trimap[40, 10] == trimap[2, 30] == BACKGROUND


@settings(max_examples=25, deadline=None)
@given(a=st.floats(-2, 2), b=st.floats(-1, 1), radius=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_guided_filter_keeps_what_is_linear_in_colour(
    a: float, b: float, radius: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    guide = random.uniform(0, 1, (20, 24, 3)).astype(np.float32)
    weights = random.uniform(0.1, 1, (20, 24)).astype(np.float32)
    values = a * guide[..., 0] - guide[..., 2] + b
    result = guided_filter(guide, values.astype(np.float32), weights, radius, 1e-7)
    assert np.allclose(result, values, atol=0.02)
    where = random.uniform(0, 1, (20, 24)) < 0.2
    some = guided_filter(guide, values.astype(np.float32), weights, radius, 1e-7, where)
    assert np.allclose(some, np.where(where, result, 0), atol=1e-5)


def test_the_guided_filter_ignores_values_without_weight() -> None:
    guide = np.zeros((30, 30, 3), np.float32)
    guide[:, 15:] = 1
    values = (guide[..., 0] > 0.5).astype(np.float32)
    weights = np.ones((30, 30), np.float32)
    values[10:14, 13:17] = 9
    weights[10:14, 13:17] = 0
    # Black and white only: the covariance of colours is as degenerate as it can be.
    assert np.allclose(guided_filter(guide, values, weights, 4, 1e-4), guide[..., 0], atol=2e-3)


# the stage ---------------------------------------------------------------------------------------


def write_ingest(
    folder: Path, images: dict[tuple[int, str], Image], plates: dict[str, Image]
) -> Inputs:
    (folder / "ingest").mkdir(parents=True)
    size = {"width": SIDE, "height": SIDE}
    rows = [
        {
            "subject": "s", "sequence": "A", "timestep": timestep, "camera": camera, **size,
            "image": encode_jpeg(image), "time": 0.04 * timestep, "sharpness": 1.0,
            "transform": np.diag([0.5, 0.5, 1]).ravel().tolist(),
            "source_width": 2 * SIDE, "source_height": 2 * SIDE,
        }
        for (timestep, camera), image in images.items()
    ]  # fmt: skip
    write_table(folder / "ingest/frames.parquet", schemas.FRAMES, rows)
    names = sorted({camera for _, camera in images})
    cameras = [Camera(name, np.diag([200.0, 200, 1]), np.eye(4), SIDE, SIDE) for name in names]
    write_table(
        folder / "ingest/cameras.parquet", schemas.CAMERAS, [each.row("s") for each in cameras]
    )
    write_table(folder / "ingest/mattes.parquet", schemas.ALPHA, [])
    write_table(
        folder / "ingest/backgrounds.parquet",
        schemas.BACKGROUNDS,
        [
            {"subject": "s", "camera": name, "image": encode_png(plate), **size}
            for name, plate in plates.items()
        ],
    )
    return Inputs("s", folder, "auto", folder, folder / "work", Splits())


def run(inputs: Inputs, **params: object) -> Path:
    out = inputs.artifacts / "matting"
    out.mkdir()
    matting.run(inputs, matting.Params(**params), out)  # type: ignore[arg-type]
    return out


def film(timesteps: int, empty: tuple[int, ...] = ()) -> tuple[dict[tuple[int, str], Image], Image]:
    """Frames of two cameras; in ``empty`` timesteps nobody is before camera b."""
    plate = photo(wall(), 1, 0)
    images = {}
    for timestep in range(timesteps):
        frame, _, _ = scene(1.0, shift=timestep)
        images[timestep, "a"] = frame
        images[timestep, "b"] = photo(wall(), 1, 50) if timestep in empty else frame
    return images, plate


def test_every_frame_gets_its_own_matte(tmp_path: Path) -> None:
    images, plate = film(4)
    out = run(write_ingest(tmp_path, images, {"a": plate, "b": plate}))
    rows = list(read_rows(out / "alpha.parquet", schemas.ALPHA))
    assert [(row["timestep"], row["camera"]) for row in rows] == sorted(images)
    for row in rows:
        alpha = decode_matte(row["alpha"])
        truth = bust(shift=row["timestep"])[1]
        assert alpha.shape == (row["height"], row["width"]) == (SIDE, SIDE)
        assert np.abs(alpha / 255 - truth).mean() < 0.015
    summary = read_json(out / "summary.json")
    assert summary["backends"] == {"plate": 2}
    assert summary["frames"] == 8
    assert (out / "preview.jpg").stat().st_size > 1000


def test_an_empty_matte_is_set_aside(tmp_path: Path) -> None:
    images, plate = film(8, empty=(5,))
    out = run(write_ingest(tmp_path, images, {"a": plate, "b": plate}))
    (reject,) = read_table(out / "rejects.parquet", schemas.REJECTS).to_pylist()
    assert (reject["timestep"], reject["camera"]) == (5, "b")
    assert "empty" in reject["reason"]
    assert read_json(out / "summary.json")["frames"] == 15


def test_too_many_empty_mattes_stop_the_stage(tmp_path: Path) -> None:
    images, plate = film(4, empty=(1, 2, 3))
    inputs = write_ingest(tmp_path, images, {"a": plate, "b": plate})
    with pytest.raises(
        StageError, match=r"3 of 8 mattes.*sequence A, timestep 1, camera b: the matte is empty"
    ):
        run(inputs)


def test_a_wrong_plate_gives_a_full_matte_and_a_sentence(tmp_path: Path) -> None:
    images, plate = film(2)
    other = np.broadcast_to(np.array([0, 255, 0], np.uint8), plate.shape).copy()
    inputs = write_ingest(tmp_path, images, {"a": other, "b": other})
    with pytest.raises(StageError, match=r"the matte is full.*same empty scene"):
        run(inputs)


def test_padding_beyond_the_photo_is_background(tmp_path: Path) -> None:
    images, plate = film(1)
    inputs = write_ingest(tmp_path, images, {"a": plate, "b": plate})
    path = tmp_path / "ingest/frames.parquet"
    rows = list(read_rows(path, schemas.FRAMES))
    for row in rows:  # the photo ends in the middle of the stored frame
        row["source_width"] = SIDE
    write_table(path, schemas.FRAMES, rows)
    out = run(inputs)
    for row in read_rows(out / "alpha.parquet", schemas.ALPHA):
        assert (decode_matte(row["alpha"])[:, SIDE // 2 :] == 0).all()
        assert decode_matte(row["alpha"])[:, : SIDE // 2].max() == 255


def test_without_a_plate_the_plate_backend_refuses(tmp_path: Path) -> None:
    images, plate = film(1)
    inputs = write_ingest(tmp_path, images, {"a": plate})
    with pytest.raises(StageError, match=r"Camera b has no background plate.*matting\.backend"):
        run(inputs, backend="plate")


def test_cameras_without_a_plate_use_the_network(tmp_path: Path) -> None:
    images, plate = film(2)
    inputs = write_ingest(tmp_path, images, {"a": plate})
    out = run(inputs, max_rejected=1.0, min_area=0.0)
    summary = read_json(out / "summary.json")
    assert summary["backends"] == {"plate": 1, "selfie": 1}
    assert "selfie: b" in summary["warnings"][0]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    images, plate = film(3)
    outs = [run(write_ingest(tmp_path / name, images, {"a": plate, "b": plate})) for name in "xy"]
    for name in ("alpha.parquet", "rejects.parquet", "preview.jpg"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


@pytest.mark.shared
def test_a_real_person_is_cut_out_of_a_cluttered_room(tmp_path: Path) -> None:
    """One piece, shoulders kept, nothing of the room; steady from frame to frame."""
    video = Path(__file__).parents[2] / "shared" / "captures" / "talking_head.mp4"
    if not video.exists():
        pytest.skip("the shared captures are not here")
    (tmp_path / "ingest").mkdir()
    inputs = Inputs("s", video, "auto", tmp_path, tmp_path / "work", Splits())
    ingest.run(inputs, ingest.Params(max_frames=6), tmp_path / "ingest")
    out = run(inputs)
    mattes = [decode_matte(row["alpha"]) for row in read_rows(out / "alpha.parquet", schemas.ALPHA)]
    assert len(mattes) == 6
    for matte in mattes:
        pieces, _ = cv2.connectedComponents((matte > 60).astype(np.uint8))
        assert pieces == 2  # the background and the person
        assert (matte[:15] == 0).all()
        assert (matte[:140, :30] == 0).all()
        assert matte[-20:, 60:].mean() > 250  # shoulders reach the lower edge
        band = ((matte > 12) & (matte < 243)).mean()
        assert band < 0.04
    steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(mattes)]
    assert max(steps) < 3
