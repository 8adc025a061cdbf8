"""Scores on exact cases, regions where they should be, retargeting, and the report as a page."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torchmetrics.functional.image import structural_similarity_index_measure

from gha_core.artifacts import schemas
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import write_table
from gha_core.cameras import Camera, look_at
from gha_core.errors import AssetError
from gha_core.evaluation.comparison import (
    Contender,
    Interval,
    compare,
    disagreements,
    interval,
)
from gha_core.evaluation.metrics import (
    flicker,
    jitter,
    keypoint_distance,
    masked_mean,
    psnr,
    ssim_map,
)
from gha_core.evaluation.optional_metrics import optional_metrics
from gha_core.evaluation.regions import region_masks
from gha_core.evaluation.report import Report, Strip, error_map, line_plot, render_report
from gha_core.evaluation.scoring import evenly, side_by_side
from gha_core.losses.lpips import FILES, Lpips, find_weights
from gha_core.pose import HeadPose
from gha_core.reenactment import Motion, at_size, frontal_camera, retarget
from gha_core.tracked_face import TrackedFace

RNG = np.random.default_rng(0)


def ring(centre: tuple[float, float, float], radius: float, count: int = 16) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    offsets = np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], -1)
    return (np.array(centre) + radius * offsets).astype(np.float32)


def face() -> TrackedFace:
    """A head of rings: skull, scalp, neck, lips, two lids; one expression opens the mouth."""
    parts = {
        "skull": ring((0, 0, 0.3), 0.4),
        "scalp": ring((0, 0.1, 0.2), 0.45),
        "neck": ring((0, -0.9, 0), 0.2),
        "lips": ring((0, -0.25, 0.4), 0.08),
        "left_lid": ring((0.15, 0.1, 0.4), 0.05),
        "right_lid": ring((-0.15, 0.1, 0.4), 0.05),
    }
    names = np.concatenate([[name] * len(points) for name, points in parts.items()])
    neutral = np.concatenate(list(parts.values()))
    basis = np.zeros((1, *neutral.shape), np.float32)
    basis[0, (names == "lips") & (neutral[:, 1] < -0.25), 1] = -0.2
    return TrackedFace(
        vertices=torch.from_numpy(neutral),
        faces=torch.tensor([[0, 1, 2]]),
        basis=torch.from_numpy(basis),
        landmarks=torch.zeros(0, 3),
        regions={
            "neck": torch.from_numpy(names == "neck"),
            "scalp": torch.from_numpy(names == "scalp"),
            "lips": torch.from_numpy(names == "lips"),
            "eyelids": torch.from_numpy(np.char.endswith(names, "lid")),
        },
    )


def frontal(distance: float = 1.0) -> Camera:
    w2c = look_at(np.array([0, 0, distance]), np.zeros(3), np.array([0, 1.0, 0]))
    return Camera("front", np.array([[400.0, 0, 128], [0, 400, 128], [0, 0, 1]]), w2c, 256, 256)


POSE = HeadPose(np.zeros(3), np.zeros(3), 0.25)


def test_psnr_counts_only_the_masked_pixels() -> None:
    truth = np.full((10, 10, 3), 100, np.uint8)
    image = truth.copy()
    image[:5] += 51
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    assert psnr(truth, image, mask) == pytest.approx(-20 * np.log10(0.2))
    assert psnr(truth, image, ~mask) == 100
    assert np.isnan(psnr(truth, image, np.zeros_like(mask)))


def test_ssim_is_one_for_equal_images_and_falls_where_they_differ() -> None:
    truth = RNG.integers(0, 255, (64, 64, 3), np.uint8)
    image = truth.copy()
    image[:, 32:] = RNG.integers(0, 255, (64, 32, 3), np.uint8)
    values = ssim_map(truth, image)
    assert values.shape == (64, 64)
    assert values[:, :20].min() > 0.999
    assert masked_mean(values, np.arange(64)[None].repeat(64, 0) > 40) < 0.2


def test_keypoint_distance() -> None:
    points = np.zeros((5, 2), np.float32)
    assert keypoint_distance(points, points + np.float32([3, 4])) == pytest.approx(5)


def test_regions_cover_the_face_and_leave_out_neck_and_background() -> None:
    camera, alpha = frontal(), np.full((256, 256), 255, np.uint8)
    masks = region_masks(face(), camera, POSE, np.zeros(1, np.float32), alpha)

    def at(name: str, *head_point: float) -> bool:
        x, y = camera.project(POSE.to_world(head_point)).astype(int)
        return bool(masks[name][y, x])

    assert masks["full"].all()
    assert at("head", 0, 0, 0.4)
    assert at("head", 0, 0.6, 0.2), "hair above the skull counts"
    assert not at("head", 0, -0.9, 0), "the neck does not"
    assert at("mouth_eyes", 0.15, 0.1, 0.4)
    assert at("mouth_eyes", -0.15, 0.1, 0.4)
    assert at("mouth_eyes", 0, -0.25, 0.4)
    assert not at("mouth_eyes", 0, 0, 0.4), "the nose lies between the parts"
    empty = region_masks(face(), camera, POSE, np.zeros(1, np.float32), np.zeros_like(alpha))
    assert not empty["head"].any()


def test_the_mouth_region_follows_the_expression() -> None:
    alpha = np.full((256, 256), 255, np.uint8)
    areas = [
        region_masks(face(), frontal(), POSE, np.array([jaw], np.float32), alpha)[
            "mouth_eyes"
        ].sum()
        for jaw in (0.0, 1.0)
    ]
    assert areas[1] > 1.3 * areas[0]


def motion(x: float, scale: float, turn: float, flip: bool = False) -> Motion:
    """A head that has moved by ``x`` to its left and turned; ``flip``: in a world with y down."""
    world = Rotation.from_rotvec([np.pi, 0, 0]) if flip else Rotation.identity()
    rotation = (world * Rotation.from_rotvec([0, turn, 0])).as_rotvec()
    pose = HeadPose(rotation, world.apply([x, 0, 0]), scale)
    return Motion("FREE", 0, pose, np.array([turn], np.float32))


@pytest.mark.parametrize("flip", [False, True])
def test_retargeting_carries_movement_and_keeps_size_place_and_facing(flip: bool) -> None:
    driver = [motion(-0.1, 0.5, -0.05, flip), motion(0.1, 0.5, 0.05, flip)]
    target = [motion(1.0, 0.25, 0.3), motion(1.0, 0.25, 0.3)]
    moved = retarget(driver, target)
    assert [m.pose.scale for m in moved] == [0.25, 0.25]
    np.testing.assert_allclose([m.pose.rotation[1] for m in moved], [0.25, 0.35])
    left = Rotation.from_rotvec([0, 0.3, 0]).apply([0.05, 0, 0])
    np.testing.assert_allclose(moved[1].pose.translation, left + np.float64([1, 0, 0]), atol=1e-12)
    assert moved[1].expression[0] == np.float32(0.05)


def test_the_frontal_camera_is_the_one_the_face_looks_at() -> None:
    side = Camera(
        "a_side",
        frontal().K,
        look_at(np.array([1.0, 0, 0]), np.zeros(3), np.array([0, 1.0, 0])),
        256,
        256,
    )
    assert frontal_camera([side, frontal()], [POSE]).name == "front"
    assert at_size(frontal(), 512).width == 512


def test_evenly_spaced() -> None:
    assert evenly(list(range(10)), 3) == [0, 3, 6]
    assert evenly([1, 2], 5) == [1, 2]


def test_ssim_is_that_of_torchmetrics() -> None:
    truth = RNG.integers(0, 255, (40, 56, 3), np.uint8)
    image = np.clip(truth + RNG.normal(0, 30, truth.shape), 0, 255).astype(np.uint8)
    pair = torch.from_numpy(np.stack([truth, image])).permute(0, 3, 1, 2).float() / 255
    _, full = structural_similarity_index_measure(
        pair[:1], pair[1:], sigma=1.5, data_range=1.0, return_full_image=True
    )
    np.testing.assert_allclose(ssim_map(truth, image), full[0].mean(0), atol=2e-5)


def test_a_constant_error_does_not_flicker() -> None:
    mask = np.zeros((8, 8), bool)
    mask[:4] = True
    error = RNG.normal(0, 9, (8, 8, 3)).astype(np.float32)
    changed = error + np.float32(3) * mask[..., None]
    assert flicker(error, error, mask) == 0
    assert flicker(error, changed, mask) == pytest.approx(3)
    assert flicker(error, changed, ~mask) == 0
    assert np.isnan(flicker(error, changed, np.zeros_like(mask)))


def test_jitter_sees_trembling_and_not_drift() -> None:
    still = np.zeros((3, 5, 2), np.float32)
    drift = np.arange(3, dtype=np.float32)[:, None, None] * np.float32([3, 4]) + still
    trembling = still.copy()
    trembling[1] += np.float32([3, 4])
    assert jitter(drift) == pytest.approx(0)
    assert jitter(trembling) == pytest.approx(10)


def test_work_side_by_side_comes_in_order() -> None:
    assert list(side_by_side(lambda n: n * n, range(40))) == [n * n for n in range(40)]


def test_a_missing_metric_gives_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "pycvvdp", None)
    found = optional_metrics()
    assert {*found.images, *found.missing} == {
        "lpips_vgg", "lpips_alex", "perceptual", "csim", "jod"
    }  # fmt: skip
    assert "perceptual" in found.images
    assert all(len(reason) > 20 for reason in found.missing.values())
    assert not any(str(tmp_path) in reason for reason in found.missing.values())
    truth = RNG.integers(0, 255, (32, 32, 3), np.uint8)
    score = found.images["perceptual"]
    assert score(truth, truth) == 0 < score(truth, 255 - truth)


def test_jod_is_asked_as_colorvideovdp_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Meter:
        def __init__(self, display_name: str) -> None:
            asked["display"] = display_name

        def predict(self, test: Any, reference: Any, **how: Any) -> tuple[torch.Tensor, dict]:
            asked.update(how, shapes=(test.shape, reference.shape))
            return torch.tensor(9.5), {}

    monkeypatch.setitem(sys.modules, "pycvvdp", SimpleNamespace(cvvdp=Meter))
    clip = np.zeros((4, 8, 8, 3), np.uint8)
    assert optional_metrics().videos["jod"](clip, clip, 24.3) == 9.5
    assert asked == {
        "display": "standard_4k",
        "dim_order": "FHWC",
        "frames_per_second": 24.3,
        "shapes": ((4, 8, 8, 3),) * 2,
    }


def random_weights(path: Path, backbone: str) -> Path:
    """As torchvision's file of that network has them, but with random values."""
    generator = torch.Generator().manual_seed(0)
    alex = [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)]
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    vgg = [(k, *pair, 3) for k, pair in zip(places, itertools.pairwise(widths), strict=True)]
    state = {}
    for index, source, out, side in alex if backbone == "alex" else vgg:
        weight = torch.randn(out, source, side, side, generator=generator)
        state[f"features.{index}.weight"] = weight / (source * side * side / 2) ** 0.5
        state[f"features.{index}.bias"] = torch.zeros(out)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_lpips_from_the_users_weights(tmp_path: Path, backbone: Any) -> None:
    distance = Lpips(backbone, random_weights(tmp_path / "weights.pth", backbone))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    near, far = image + 0.02, 1 - image
    assert [tap.shape[1] for tap in distance.features(image)] == (
        [64, 192, 384, 256, 256] if backbone == "alex" else [64, 128, 256, 512, 512]
    )
    assert float(distance(image, image)) == 0
    assert 0 < float(distance(near, image)) < float(distance(far, image))
    near.requires_grad_()
    distance(near, image).backward()
    assert near.grad is not None
    assert near.grad.abs().sum() > 0


def test_lpips_weights_that_are_not_what_their_name_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHA_ASSETS", str(tmp_path))
    (tmp_path / FILES["vgg"]).write_bytes(b"something else")
    with pytest.raises(AssetError, match="does not begin with 397923af"):
        find_weights("vgg")


# Comparison --------------------------------------------------------------------------------------


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Views of a moment are nearly the same, so that only moments count."""
    random = np.random.default_rng(5)
    hits = 0
    for draw in range(60):
        moments = random.normal(30, 1, 25)
        values = {
            ("FREE", t, f"cam{c}"): float(moments[t] + random.normal(0, 0.05))
            for t in range(25)
            for c in range(6)
        }
        found = interval(values, seed=draw)
        hits += found.low <= 30 <= found.high
    assert 51 <= hits <= 60
    assert np.isnan(interval({("FREE", 0, "cam0"): 1.0}).low)


def contender(folder: Path, label: str, gain: float, photos: str = "same") -> Contender:
    root = folder / label
    for stage in ("evaluation", "avatar"):
        (root / stage).mkdir(parents=True)
    random = np.random.default_rng(2)
    rows = [
        {
            "subject": label, "sequence": "FREE", "timestep": t, "camera": "left",
            "task": "novel_view", "region": "head", "metric": "psnr",
            "value": float(random.normal(30, 3)) + gain + 0.05 * (-1) ** t,
        }
        for t in range(20)
    ]  # fmt: skip
    write_table(root / "evaluation" / "frames.parquet", schemas.SCORES, rows)
    write_json(root / "avatar" / "avatar.json", {"lineage": {"ingest/frames.parquet": photos}})
    write_json(root / "evaluation" / "protocol.json", {"resolution": f"{label}px"})
    return Contender(label, root)


def test_pairing_finds_a_gain_far_smaller_than_the_spread(tmp_path: Path) -> None:
    first, better = contender(tmp_path, "a", 0.0), contender(tmp_path, "b", 0.2)
    other = contender(tmp_path, "c", 5.0, photos="others")
    (row,) = compare([first, better, other])
    assert row.name == ("novel_view", "head", "psnr")
    spread, gain = row.values[0], row.differences[1]
    assert isinstance(spread, Interval)
    assert isinstance(gain, Interval)
    assert spread.high - spread.low > 1
    assert gain.mean == pytest.approx(0.2)
    assert gain.excludes_zero
    assert row.differences[2] is None, "of other photos: nothing to pair"
    said = disagreements([first, better, other])
    assert any("resolution" in sentence and "bpx" in sentence for sentence in said)
    assert any("other photos" in sentence for sentence in said)


def test_the_report_is_one_file_that_needs_no_network() -> None:
    entry = {"mean": 30.0, "std": 1.0, "median": 30.5, "count": 4}
    image = RNG.integers(0, 255, (32, 32, 3), np.uint8)
    page = render_report(
        Report(
            subject="<demo>",
            scores={"novel_view": {"head": {"psnr": entry, "ssim": {**entry, "mean": 0.95}}}},
            headline="novel_view",
            facts={"size": "3 MB"},
            protocol={"background": "white", "resolution": "32x32", "regions": {"head": "hull"}},
            missing={"csim": "no model"},
            warnings=["Look here."],
            video=b"mp4",
            strips=[Strip("worst", "a frame", error_map(image, image))],
            plots=[("loss", line_plot({"l1": ([1, 2], [3, 4])}, "step", "loss"))],
            stages={"ingest": (b"jpeg", {"frames": 3}, 2.0)},
            lineage={"licences": {"face": "CC0"}, "lineage": {"a": "1"}, "config": {"width": 3}},
            code="0.1",
            parameters={"avatar": {"steps": 7}},
        )
    )
    assert "30.00 dB" in page
    assert "&lt;demo&gt;" in page
    assert "not available: no model" in page
    assert "of the mean squared error over the region" in page, "the protocol, next to the score"
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len([source for source in sources if source.startswith("data:")]) == 3
    assert not [source for source in sources if not source.startswith(("data:", "#"))]
