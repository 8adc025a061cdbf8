"""Scores on exact cases, regions where they should be, retargeting, and the report as a page."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gha_core.cameras import Camera, look_at
from gha_core.evaluation.metrics import keypoint_distance, masked_mean, psnr, ssim_map
from gha_core.evaluation.optional_metrics import optional_metrics
from gha_core.evaluation.regions import region_masks
from gha_core.evaluation.report import Report, error_map, line_plot, render_report
from gha_core.evaluation.scoring import evenly
from gha_core.pose import HeadPose
from gha_core.reenactment import Motion, at_height, frontal_camera, retarget
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
    assert at_height(frontal(), 512).width == 512


def test_evenly_spaced() -> None:
    assert evenly(list(range(10)), 3) == [0, 3, 6]
    assert evenly([1, 2], 5) == [1, 2]


def test_a_missing_metric_gives_its_reason() -> None:
    available, missing = optional_metrics()
    assert set(available) | set(missing) == {"lpips_alex", "csim"}
    assert all(len(reason) > 20 for reason in missing.values())


def test_the_report_is_one_file_that_needs_no_network() -> None:
    entry = {"mean": 30.0, "std": 1.0, "median": 30.5, "count": 4}
    image = RNG.integers(0, 255, (32, 32, 3), np.uint8)
    page = render_report(
        Report(
            subject="<demo>",
            scores={"novel_view": {"head": {"psnr": entry, "ssim": {**entry, "mean": 0.95}}}},
            headline="novel_view",
            protocol={"background": "white"},
            missing={"csim": "no model"},
            video=b"mp4",
            strips=[("worst", error_map(image, image))],
            plots=[("loss", line_plot({"l1": ([1, 2], [3, 4])}, "step", "loss"))],
            stages={"ingest": (b"jpeg", {"frames": 3})},
            lineage={"licences": ["CC0"]},
        )
    )
    assert "30.00 dB" in page
    assert "&lt;demo&gt;" in page
    assert "not available: no model" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len([source for source in sources if source.startswith("data:")]) == 3
    assert all(source.startswith(("data:", "#")) for source in sources)
