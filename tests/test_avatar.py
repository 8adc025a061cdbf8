"""The avatar: what moves its Gaussians, how it is trained, killed, resumed, saved and looked at."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from gha_core.artifacts import schemas
from gha_core.artifacts.images import decode_image, encode_png
from gha_core.artifacts.stage_folder import write_json
from gha_core.artifacts.tables import read_rows, write_table
from gha_core.avatar import Avatar, quaternions
from gha_core.avatar.head import GaussianHead, Gaussians, HeadConfig
from gha_core.avatar.initialise import (
    SHARES,
    Surface,
    principal_features,
    sample_triangles,
)
from gha_core.avatar.relocation import Shown, relocate, shown
from gha_core.avatar.rendering import render_colours
from gha_core.avatar.samples import Batch, TrainingViews, seen_in_pass, shares
from gha_core.avatar.super_resolution import SuperResolution
from gha_core.avatar.training import EXPRESSION_BOUND, Corrections
from gha_core.avatar.windows import Window
from gha_core.cameras import Camera, look_at
from gha_core.checkpoint import FILE, read_checkpoint
from gha_core.dataset import Dataset
from gha_core.errors import ArtifactError, StageError
from gha_core.geometry.networks import ConditionedMLP, positional_encoding
from gha_core.mesh_rasterisation import rasterize
from gha_core.pose import HeadPose
from gha_core.splatting import rasterize_gaussians
from gha_core.splits import Splits
from gha_core.tracked_face import TrackedFace
from tasks import avatar as stage
from tasks.stage import Inputs

SIZE = 48
NAMES = ("jawOpen", "eyeLookLeft", "neverShown")
SPLITS = Splits(test_cameras=("right",), test_sequences=("held",))
TINY = stage.Params(
    steps=50,
    gaussians=400,
    channels=8,
    features=8,
    width=16,
    super_resolution_width=8,
    crop=32,
    relocations=2,
    rates=stage.LearningRates(camera_colour=1e-3),
    checkpoint_seconds=0.0,
)


# A subject made of two balls: a head, and an eye in it ------------------------------------------


@dataclass(frozen=True)
class Ball:
    vertices: torch.Tensor
    faces: torch.Tensor


def _ball(radius: float, centre: tuple[float, float, float], rings: int = 10) -> Ball:
    columns = 2 * rings
    up = np.linspace(0.02, np.pi - 0.02, rings)
    around = np.arange(columns) * 2 * np.pi / columns
    u, a = np.meshgrid(up, around, indexing="ij")
    unit = np.stack([np.sin(u) * np.sin(a), np.cos(u), np.sin(u) * np.cos(a)], -1).reshape(-1, 3)
    faces = []
    for i in range(rings - 1):
        for j in range(columns):
            a0, b0 = i * columns + j, i * columns + (j + 1) % columns
            faces += [[a0, a0 + columns, b0], [b0, a0 + columns, b0 + columns]]
    vertices = torch.from_numpy(unit * radius + np.array(centre)).float()
    return Ball(vertices, torch.tensor(faces))


def _face() -> tuple[Ball, torch.Tensor, dict[str, torch.Tensor]]:
    """Mesh, expression basis and regions: the chin drops, the eye shifts."""
    head, eye = _ball(0.5, (0, 0, 0)), _ball(0.12, (0.15, 0.1, 0.42), 6)
    vertices = torch.cat([head.vertices, eye.vertices])
    faces = torch.cat([head.faces, eye.faces + len(head.vertices)])
    is_eye = torch.arange(len(vertices)) >= len(head.vertices)
    basis = torch.zeros(len(NAMES), len(vertices), 3)
    chin = ((-vertices[:, 1] - 0.1) / 0.4).clamp(0, 1) * (vertices[:, 2] > 0) * ~is_eye
    basis[0, :, 1] = -0.15 * chin
    basis[1, is_eye, 0] = 0.06
    basis[2, :, 2] = 0.1 * ~is_eye
    regions = {"eyes": is_eye, "face": ~is_eye & (vertices[:, 2] > 0)}
    regions["neck"] = ~is_eye & (vertices[:, 1] < -0.4)
    return Ball(vertices, faces), basis, regions


def _colours(vertices: torch.Tensor, eyes: torch.Tensor) -> NDArray[np.float32]:
    tint = 0.5 + 0.4 * torch.sin(6 * vertices + torch.tensor([0.0, 1.0, 2.0]))
    return torch.where(eyes[:, None], torch.tensor([0.1, 0.2, 0.8]), tint).numpy()


def _cameras() -> dict[str, Camera]:
    K = np.array([[1.9 * SIZE, 0, SIZE / 2], [0, 1.9 * SIZE, SIZE / 2], [0, 0, 1.0]])
    eyes = {"front": (0.0, 0.0, 0.5), "left": (-0.25, 0.05, 0.45), "right": (0.2, 0.0, 0.45)}
    return {
        name: Camera(
            name, K, look_at(np.array(eye), np.zeros(3), np.array([0, 1.0, 0])), SIZE, SIZE
        )
        for name, eye in eyes.items()
    }


def _motion(sequence: str, timestep: int) -> tuple[HeadPose, NDArray[np.float32]]:
    phase = timestep + (0.5 if sequence == "held" else 0.0)
    rotation = np.array([0.1 * np.sin(phase), 0.15 * np.cos(phase), 0.0])
    pose = HeadPose(rotation, np.array([0.004 * phase, 0, 0]), 0.2)
    shown = [0.5 + 0.5 * np.sin(2 * phase), 0.5 + 0.5 * np.cos(phase), 0.0]
    return pose, np.array(shown, np.float32)


def _make_subject(folder: Path) -> None:
    """Artifacts of ingest, matting, tracking and geometry."""
    mesh, basis, regions = _face()
    colours = _colours(mesh.vertices, regions["eyes"])
    cameras = _cameras()
    for stage_name in ("ingest", "matting", "tracking", "geometry"):
        (folder / stage_name).mkdir(parents=True)
    landmarks = mesh.vertices[::7]
    frames, alphas, tracked = [], [], []
    for sequence, count in (("held", 2), ("talk", 4)):
        for timestep in range(count):
            pose, expression = _motion(sequence, timestep)
            move = torch.tensordot(torch.from_numpy(expression), basis, 1)
            key = {"subject": "ball", "sequence": sequence, "timestep": timestep}
            tracked.append(
                {
                    **key,
                    "rotation": pose.rotation.tolist(),
                    "translation": pose.translation.tolist(),
                    "scale": pose.scale,
                    "expression": expression.tolist(),
                    "landmarks": (landmarks + move[::7]).numpy().ravel().tolist(),
                    "residual": 0.0,
                }
            )
            world = torch.from_numpy(pose.to_world((mesh.vertices + move).numpy())).float()
            for camera in cameras.values():
                seen = rasterize(world, mesh.faces, camera.K, camera.w2c, SIZE, SIZE)
                corners = torch.from_numpy(colours)[mesh.faces[seen.face_index.clamp(min=0)]]
                picture = (corners * seen.barycentric[..., None]).sum(-2).numpy()
                picture[~seen.mask.numpy()] = 0.3
                size = {"width": SIZE, "height": SIZE}
                image = encode_png((picture * 255).astype(np.uint8))
                frames.append(
                    {
                        **key, **size, "camera": camera.name, "image": image,
                        "time": 0.1 * timestep,
                        "sharpness": 1.0, "transform": np.eye(3).ravel().tolist(),
                        "source_width": SIZE, "source_height": SIZE,
                    }
                )  # fmt: skip
                matte = encode_png(seen.mask.numpy().astype(np.uint8) * 255)
                alphas.append({**key, **size, "camera": camera.name, "alpha": matte})
    write_table(folder / "ingest/frames.parquet", schemas.FRAMES, frames)
    rows = [camera.row("ball") for camera in cameras.values()]
    write_table(folder / "ingest/cameras.parquet", schemas.CAMERAS, rows)
    write_table(folder / "ingest/backgrounds.parquet", schemas.BACKGROUNDS, [])
    write_table(folder / "matting/alpha.parquet", schemas.ALPHA, alphas)
    write_json(folder / "matting/summary.json", {"licences": {"Robust Video Matting": "GPL-3.0"}})
    write_json(folder / "tracking/summary.json", {"licences": {"facemesh": "Apache-2.0"}})
    write_table(folder / "tracking/tracking.parquet", schemas.TRACKING, tracked)
    identity = {
        "identity": torch.zeros(2),
        "neutral_vertices": mesh.vertices,
        "expression_basis": basis,
        "faces": mesh.faces,
        "landmarks": landmarks.contiguous(),
        **{f"region.{name}": mask.byte() for name, mask in regions.items()},
    }
    metadata = {"expression_names": json.dumps(NAMES), "licence": "CC0-1.0"}
    save_file(identity, folder / "tracking/identity.safetensors", metadata)
    head = _ball(0.5, (0, 0, 0), 14)
    geometry = {
        "vertices": head.vertices,
        "faces": head.faces,
        "features": torch.tanh(head.vertices @ torch.linspace(-3, 3, 3 * 128).view(3, 128)),
        "colours": torch.full((len(head.vertices), 3), 0.5),
        "landmarks": landmarks.contiguous(),
    }
    save_file(geometry, folder / "geometry/geometry.safetensors")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    _make_subject(folder)
    return folder


def _inputs(subject: Path, work: Path) -> Inputs:
    work.mkdir(exist_ok=True, parents=True)
    return Inputs("ball", subject, "auto", subject, work, SPLITS, seed=3)


@pytest.fixture(scope="module")
def trained(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "out").mkdir()
    stage.run(_inputs(subject, folder / "work"), TINY, folder / "out")
    return folder / "out"


def _train_views(subject: Path) -> TrainingViews:
    dataset = Dataset(subject / "ingest", subject / "matting", subject / "tracking", SPLITS)
    return TrainingViews(dataset, 3)


def _untrained(subject: Path, params: stage.Params = TINY) -> GaussianHead:
    face, surface = TrackedFace.load(subject / "tracking"), Surface.load(subject / "geometry")
    return stage.build(face, surface, _train_views(subject), params)[0]


def _steps_run(subject: Path, work: Path, params: stage.Params, out: Path) -> int:
    """Run the stage; how many training steps it took."""
    with mock.patch.object(
        TrainingViews, "at_step", autospec=True, side_effect=TrainingViews.at_step
    ) as at_step:
        stage.run(_inputs(subject, work), params, out)
    return at_step.call_count


# Rotations ---------------------------------------------------------------------------------------

_vectors = st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@settings(deadline=None)
@given(_vectors, _vectors)
def test_multiplying_quaternions_multiplies_rotations(a: torch.Tensor, b: torch.Tensor) -> None:
    p, q = quaternions.from_rotvec(a), quaternions.from_rotvec(b)
    product = quaternions.to_matrix(p) @ quaternions.to_matrix(q)
    torch.testing.assert_close(quaternions.to_matrix(quaternions.multiply(p, q)), product)
    torch.testing.assert_close(
        quaternions.to_matrix(p), torch.from_numpy(cv2.Rodrigues(a.numpy())[0]), atol=1e-8, rtol=0
    )


def test_turning_many_quaternions_is_multiplying_each() -> None:
    random = torch.Generator().manual_seed(0)
    one, many = torch.randn(4, generator=random), torch.randn(7, 4, generator=random)
    torch.testing.assert_close(quaternions.turn(one, many), quaternions.multiply(one, many))


@settings(deadline=None)
@given(_vectors)
@example(torch.tensor([0.0, 8.5e-6, -0.5], dtype=torch.float64))
def test_facing_turns_z_to_the_direction(direction: torch.Tensor) -> None:
    if direction.norm() < 1e-3:
        return
    unit = direction / direction.norm()
    turned = quaternions.to_matrix(quaternions.facing(unit))[:, 2]
    torch.testing.assert_close(turned, unit, atol=1e-5, rtol=0)


def test_rotation_vectors_have_gradients_at_rest() -> None:
    rotvec = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(quaternions.from_rotvec, rotvec)


# The neutral Gaussians ---------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 400), st.integers(0, 5))
def test_samples_lie_on_their_triangles_and_follow_density(count: int, seed: int) -> None:
    ball = _ball(1.0, (0, 0, 0))
    density = (ball.vertices[ball.faces].mean(1)[:, 1] > 0).float()
    index, weights = sample_triangles(
        ball.vertices, ball.faces, density, count, np.random.default_rng(seed)
    )
    assert len(index) == count
    assert (density[index] == 1).all()
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(count))


def test_principal_features_survive_saturated_ones() -> None:
    features = torch.tensor([[1.0, -1.0, 0.2], [0.1, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    for size in (2, 3, 5):
        reduced = principal_features(features, size)
        assert reduced.shape == (4, size)
        assert torch.isfinite(reduced).all()
        assert reduced.square().mean().sqrt().item() == pytest.approx(1.0, abs=1e-3)


def test_gaussians_start_with_the_colours_of_the_photos(subject: Path) -> None:
    head = _untrained(subject)
    moved = head.positions.detach()
    front = (moved.norm(dim=1) - 0.5).abs() < 0.02
    front &= (moved[:, 2] > 0.3) & (moved[:, :2] - torch.tensor([0.15, 0.1])).norm(dim=1).gt(0.2)
    expected = _colours(moved[front], torch.zeros(int(front.sum()), dtype=torch.bool))
    error = (head.colours[front, :3].detach() - torch.from_numpy(expected)).abs().mean()
    assert error < 0.08


def test_an_eye_moves_with_its_own_basis_though_skin_is_as_near(subject: Path) -> None:
    head = _untrained(subject)
    views = _train_views(subject)
    rest = head.condition(views.frames[0].pose)
    with torch.no_grad():
        still = head(torch.zeros(3), rest).means
        looking = head(torch.tensor([0.0, 1.0, 0.0]), rest).means
    shift = looking - still
    distance = ((head.positions - torch.tensor([0.15, 0.1, 0.42])).norm(dim=1) - 0.12).abs()
    on_eye = shift[:, 0] > 0.05
    assert on_eye.sum() >= 0.9 * SHARES["eyes"] * TINY.gaussians
    assert (distance[on_eye] < 0.02).all()
    torch.testing.assert_close(
        shift[on_eye], torch.tensor([0.06, 0, 0]).expand(int(on_eye.sum()), 3), atol=2e-3, rtol=0
    )


def test_without_the_prior_nothing_moves_before_training(subject: Path) -> None:
    head = _untrained(subject, TINY.model_copy(update={"expression_prior": False}))
    rest = torch.zeros(6)
    with torch.no_grad():
        still, moved = head(torch.zeros(3), rest).means, head(torch.ones(3), rest).means
    torch.testing.assert_close(still, moved)


# The dynamic head --------------------------------------------------------------------------------


def _random_head(weight: torch.Tensor, pose_shading: bool = False) -> GaussianHead:
    """Every parameter random, as after training; ``weight`` falls from 1 to 0."""
    torch.manual_seed(0)
    config = HeadConfig(
        gaussians=len(weight),
        expression_gaussians=int((weight > 0).sum()),
        face_gaussians=int((weight == 1).sum()),
        expressions=3,
        channels=5,
        features=4,
        width=64,
        pose_shading=pose_shading,
    )
    head = GaussianHead(config)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        head.weight.copy_(weight)
        head.encoding.normal_()
        head.log_scales.sub_(4.0)
        head.body.fill_(-30.0)
    return head


def test_lambda_decides_which_networks_move_a_gaussian() -> None:
    head = _random_head(torch.tensor([1.0, 1.0, 0.75, 0.5, 0.0, 0.0]))
    with torch.no_grad():
        calm, tense = (head(torch.tensor(e), torch.zeros(6)) for e in ([0.0, 0, 0], [0.9, 0.5, 1]))
        turned = head(torch.zeros(3), torch.tensor([0.5, -0.3, 0.2, 0, 0, 0]))
    for name in ("means", "scales", "opacities", "channels"):
        before, by_expression, by_pose = (getattr(g, name) for g in (calm, tense, turned))
        followed = (by_expression - before).reshape(6, -1).abs().amax(1) > 1e-7
        assert followed.tolist() == [True] * 4 + [False] * 2, name
        posed = (by_pose - before).reshape(6, -1).abs().amax(1) > 1e-7
        assert posed.tolist() == [False] * 2 + [True] * 4, name


def test_blend_is_linear_in_lambda() -> None:
    expression, pose = torch.tensor([0.9, 0.5, 1.0]), torch.tensor([0.5, -0.3, 0.2, 0.1, 0, 0])
    results = []
    for value in (0.999999, 0.5, 0.000001):  # all "between", so that all go through both networks
        head = _random_head(torch.full((3,), value))
        with torch.no_grad():
            results.append(head(expression, pose).channels)
    torch.testing.assert_close(results[1], (results[0] + results[2]) / 2, atol=1e-5, rtol=1e-4)


def test_the_networks_are_the_plain_ones_of_all_points_and_all_inputs() -> None:
    """What each Gaussian is spared (the condition's part of the first layer, networks that have no
    say) changes neither values nor gradients."""
    weight = torch.tensor([1.0] * 20 + [0.9, 0.6, 0.3] + [0.0] * 30)
    expression, pose = torch.tensor([0.9, 0.1, 1.0]), torch.tensor([0.5, -0.3, 0.2, 0.1, 0, 0])

    def plain(net: ConditionedMLP, points: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x = torch.cat([points, condition.expand(len(points), -1)], -1)
        *hidden, last = net.layers
        for layer in hidden:
            x = torch.relu(layer(x))
        return last(x)

    def blend(by_expression: torch.Tensor, by_pose: torch.Tensor) -> torch.Tensor:
        return weight[:, None] * by_expression + (1 - weight[:, None]) * by_pose

    turning = positional_encoding(pose)
    for shading in (False, True):
        head = _random_head(weight, pose_shading=shading)
        found = head(expression, pose)
        if shading:
            slopes = plain(head.colour_pose, head.features, torch.zeros(0))
            by_pose = slopes.reshape(len(slopes), -1, 3) @ (3 * pose[:3])
        else:
            by_pose = plain(head.colour_pose, head.features, turning)
        by_expression = plain(head.colour_expression, head.features, expression)
        colour = by_pose + weight[:, None] * by_expression
        if not shading:
            colour = blend(by_expression, by_pose)
        attributes = 0.2 * blend(
            plain(head.attributes_expression, head.features, expression),
            plain(head.attributes_pose, head.features, turning),
        )
        torch.testing.assert_close(found.channels, head.colours + colour)
        torch.testing.assert_close(
            found.opacities, torch.sigmoid(head.opacities + attributes[:, 7])
        )
        torch.testing.assert_close(
            found.scales, (head.log_scales + attributes[:, :3]).exp().clamp(2e-4, 0.2)
        )
        own = list(head.colour_pose.parameters()) + list(head.attributes_expression.parameters())
        own.append(head.features)
        scalars = (
            found.channels.square().sum() + found.opacities.sum(),
            (head.colours + colour).square().sum()
            + torch.sigmoid(head.opacities + attributes[:, 7]).sum(),
        )
        gradients, wanted = (torch.autograd.grad(scalar, own) for scalar in scalars)
        for gradient, expected in zip(gradients, wanted, strict=True):
            size = expected.abs().max().item()
            torch.testing.assert_close(gradient, expected, atol=1e-5 * size, rtol=1e-4)


def test_networks_do_not_answer_beyond_what_training_covered() -> None:
    head = _random_head(torch.tensor([1.0, 0.5, 0.0]))
    head.expression_range[1, 2] = 0.0  # the third expression was never shown
    head.shift[2] = 0.25
    with torch.no_grad():
        still = head(torch.zeros(3), torch.zeros(6))
        shown = head(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(6))
        turned, further = (head(torch.zeros(3), torch.full((6,), v)) for v in (1.0, 1.3))
    torch.testing.assert_close(shown.channels, still.channels)
    torch.testing.assert_close(shown.means, still.means + 0.25)  # the prior still acts
    torch.testing.assert_close(turned.means, further.means)


def test_the_torso_stays_in_the_world_while_the_head_moves() -> None:
    head = _random_head(torch.zeros(4))
    with torch.no_grad():
        head.deformation_pose.layers[-1].weight.zero_()
        head.deformation_pose.layers[-1].bias.zero_()
        head.body.copy_(torch.tensor([-30.0, -30.0, 30.0, 30.0]))
    poses = [
        HeadPose(np.array([0.1, 0.4, -0.2]), np.array([0.1, 0.2, 0.9]), 0.2),
        HeadPose(np.array([0.3, -0.5, 0.1]), np.array([0.12, 0.18, 0.95]), 0.2),
    ]
    head.set_ranges(poses, np.zeros((2, 3), np.float32))
    with torch.no_grad():
        worlds = [
            pose.to_world(head(torch.zeros(3), head.condition(pose)).means.numpy())
            for pose in poses
        ]
        still = [pose.to_world(head.positions.numpy()) for pose in poses]
    np.testing.assert_allclose(worlds[0][2:], worlds[1][2:], atol=1e-5)
    for world, expected in zip(worlds, still, strict=True):
        np.testing.assert_allclose(world[:2], expected[:2], atol=1e-5)


def test_moving_gaussians_to_the_world_agrees_with_the_pose() -> None:
    head = _random_head(torch.tensor([1.0, 0.0]))
    pose = HeadPose(np.array([0.3, -0.5, 0.1]), np.array([0.1, 0.2, 0.9]), 0.2)
    with torch.no_grad():
        gaussians = head(torch.zeros(3), torch.zeros(6))
        rotation = quaternions.from_rotvec(torch.tensor(pose.rotation).float())
        moved = gaussians.moved(rotation, torch.tensor(pose.translation).float(), pose.scale)
    np.testing.assert_allclose(moved.means, pose.to_world(gaussians.means.numpy()), atol=1e-6)
    torch.testing.assert_close(moved.scales, 0.2 * gaussians.scales)
    before, after = (quaternions.to_matrix(g.quaternions) for g in (gaussians, moved))
    torch.testing.assert_close(after, torch.tensor(pose.matrix).float() @ before)


@pytest.mark.parametrize("scale", [2, 4])
def test_super_resolution_starts_as_enlargement_and_draws_parts_as_in_the_whole(scale: int) -> None:
    torch.manual_seed(0)
    network = SuperResolution(6, 8, scale)
    margin = network.margin
    padded = torch.rand(1, 6, 12 + 2 * margin, 16 + 2 * margin)
    with torch.no_grad():
        start = network(padded)
        assert start.shape == (1, 3, scale * 12, scale * 16)
        logits = torch.logit(padded[:, :3].clamp(2e-3, 1 - 2e-3))
        enlarged = torch.nn.functional.interpolate(logits, scale_factor=scale, mode="bilinear")
        inner = scale * margin
        torch.testing.assert_close(
            start, torch.sigmoid(enlarged[..., inner:-inner, inner:-inner]), atol=1e-5, rtol=0
        )
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
        whole = network(padded)
        part = network(padded[..., 3 : 3 + 6 + 2 * margin, 5 : 5 + 7 + 2 * margin])
    expected = whole[..., 3 * scale : 9 * scale, 5 * scale : 12 * scale]
    torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("zoom", [0.8, 0.93, 1.0, 1.25])
def test_a_zoomed_window_of_features_and_of_pictures_is_the_same_place(zoom: float) -> None:
    """Planes that tell where they are: bilinear sampling keeps them exactly."""
    scale, height, width, border = 4, 20, 24, 3

    def places(tall: int, wide: int, times: int, rim: int) -> torch.Tensor:
        y = (torch.arange(tall + 2 * rim) + 0.5 - rim) / times
        x = (torch.arange(wide + 2 * rim) + 0.5 - rim) / times
        return torch.stack(torch.meshgrid(y, x, indexing="ij"))[None]

    pictures = places(scale * height, scale * width, scale, 0)
    features = places(height, width, 1, border)
    for focus in ((0.0, 0.0), (50.0, 31.0), (96.0, 80.0)):
        window = Window.about([focus], 32, height, width, scale, zoom)
        assert (window.height, window.width) == (8, 8)
        shown = window.of_pictures(pictures)
        read = window.of_features(features, border)
        assert shown.shape[-2:] == (32, 32)
        assert read.shape[-2:] == (14, 14)
        step = torch.tensor(1 / zoom)
        torch.testing.assert_close(read[0, 0, 1:] - read[0, 0, :-1], step.expand(13, 14))
        small = torch.nn.functional.avg_pool2d(shown, scale)
        torch.testing.assert_close(read[..., border:-border, border:-border], small)
        corner = torch.tensor(window.places[0]) / scale / zoom
        torch.testing.assert_close(shown[0, :, 0, 0], corner + 0.5 / scale / zoom)
    whole = Window.about([(0.0, 0.0)], 800, height, width, scale, zoom)
    read, (top, left) = whole.of_features(features, border)[0], whole.corners[0]
    torch.testing.assert_close(
        read[:, border, border] - 0.5 / zoom, torch.tensor([top, left]) + 0.0
    )
    assert whole.height / zoom > height - 4


def test_a_sharp_avatar_starts_as_its_gaussians_at_full_size(trained: Path) -> None:
    avatar = replace(Avatar.load(trained), super_resolution=SuperResolution(8, 8), sharp=True)
    camera, (pose, expression) = _cameras()["left"], _motion("held", 1)
    drawn, matte = avatar.render(camera, pose, expression)
    with torch.no_grad():
        rotation = quaternions.from_rotvec(torch.tensor(pose.rotation).float())
        still = avatar.head(torch.from_numpy(expression), avatar.head.condition(pose))
        world = still.moved(rotation, torch.tensor(pose.translation).float(), pose.scale)
        splat = rasterize_gaussians(
            world.means, world.quaternions, world.scales, world.opacities,
            world.seen_from(torch.from_numpy(camera.w2c).float())[:, :3],
            torch.from_numpy(camera.K).float(), torch.from_numpy(camera.w2c).float(),
            camera.width, camera.height, torch.ones(3),
        )  # fmt: skip
    expected = splat.features.clamp(0, 1).numpy() * 255
    assert np.abs(drawn - expected).max() < 1.5
    assert np.abs(matte - splat.alpha.numpy() * 255).max() < 1
    soft, _ = replace(avatar, sharp=False).render(camera, pose, expression)
    assert np.abs(soft.astype(int) - drawn).max() > 10


@pytest.mark.parametrize("corner", [(0, 0), (6, 20)])
def test_a_part_drawn_at_full_size_is_as_in_the_whole(corner: tuple[int, int]) -> None:
    head = _random_head(torch.ones(2))
    camera = _cameras()["left"]
    K, w2c = (torch.from_numpy(m).float()[None] for m in (camera.K, camera.w2c))
    with torch.no_grad():
        gaussians = head(torch.zeros(3), torch.zeros(6))
        whole, _ = render_colours(gaussians, K, w2c, [(0, 0)], SIZE, SIZE)
        part, _ = render_colours(gaussians, K, w2c, [corner], 16, 24)
    top, left = corner
    torch.testing.assert_close(part, whole[..., top : top + 24, left : left + 16])


def test_what_shines_depends_on_the_sight_in_the_head_s_own_frame() -> None:
    still = Gaussians(
        means=torch.tensor([[0.1, 0.2, 0.3]]),
        quaternions=torch.tensor([[1.0, 0, 0, 0]]),
        scales=torch.full((1, 3), 0.1),
        opacities=torch.tensor([0.5]),
        channels=torch.tensor([[0.5, 0.4, 0.3, 7.0]]),
        harmonics=torch.tensor([[[0.1, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.3]]]),
    )
    ahead = torch.eye(4)
    ahead[:3, 3] = torch.tensor([-0.1, -0.2, 1.7])  # sees the Gaussian along +z
    expected = torch.tensor([[0.5, 0.4, 0.6, 7.0]])
    torch.testing.assert_close(still.seen_from(ahead), expected)

    half_turn = torch.tensor([0.0, 0.0, 1.0, 0.0])  # about y: +z becomes -z
    moved = still.moved(half_turn, torch.tensor([1.0, 0.0, 0.0]), 2.0)
    expected = torch.tensor([[0.5, 0.4, 0.0, 7.0]])
    ahead[:3, 3] = -moved.means[0] + torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(moved.seen_from(ahead), expected)
    plain = replace(still, harmonics=None)
    torch.testing.assert_close(plain.seen_from(ahead), still.channels)


# Training ----------------------------------------------------------------------------------------


def test_the_stage_writes_a_trained_avatar(subject: Path, trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "avatar.safetensors", "avatar.json", "history.parquet", "milestones.safetensors",
        "summary.json", "preview.jpg",
    }  # fmt: skip
    assert decode_image((trained / "preview.jpg").read_bytes()).shape[2] == 3
    rows = list(read_rows(trained / "history.parquet", schemas.HISTORY))
    picture = [row["value"] for row in rows if row["term"] == "picture"]
    assert len(picture) == 2
    assert picture[-1] < 0.8 * picture[0]
    assert {row["term"] for row in rows} == {"picture", "small", "structure", "silhouette"}
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["training_views"], summary["training_timesteps"]) == (8, 4)


def test_it_shows_held_out_frames_from_a_held_out_camera(subject: Path, trained: Path) -> None:
    avatar = Avatar.load(trained)
    dataset = Dataset(subject / "ingest", subject / "matting", subject / "tracking", SPLITS)
    untrained, learned = [], []
    for view in (v for v in dataset.test if v.part == "novel_view_and_expression"):
        truth = dataset.image(view).astype(float)
        inside = dataset.alpha(view) > 0
        image, alpha = avatar.render(dataset.cameras[view.camera], view.pose, view.expression)
        learned.append(np.abs(image - truth)[inside].mean())
        untrained.append(np.abs(128 - truth)[inside].mean())
        assert np.mean((alpha > 127) == inside) > 0.9
    assert np.mean(learned) < 0.5 * np.mean(untrained)


def test_test_rows_have_no_influence(subject: Path, trained: Path, tmp_path: Path) -> None:
    """Every held-out picture and matte is replaced by noise, every held-out timestep tracked
    elsewhere; the avatar is the same, byte for byte."""
    other = tmp_path / "other"
    shutil.copytree(subject, other)
    rng = np.random.default_rng(0)
    for name, schema, column in (
        ("ingest/frames.parquet", schemas.FRAMES, "image"),
        ("matting/alpha.parquet", schemas.ALPHA, "alpha"),
    ):
        rows = list(read_rows(other / name, schema))
        spoiled = 0
        for row in rows:
            if row["camera"] == "right" or row["sequence"] == "held":
                shape = (SIZE, SIZE, 3) if column == "image" else (SIZE, SIZE)
                row[column] = encode_png(rng.integers(0, 256, shape, dtype=np.uint8))
                spoiled += 1
        assert spoiled == 10
        write_table(other / name, schema, rows)
    rows = list(read_rows(other / "tracking/tracking.parquet", schemas.TRACKING))
    for row in rows:
        if row["sequence"] == "held":
            row["translation"] = [3.0, -2.0, 1.0]
            row["expression"] = [1.0, 1.0, 1.0]
            row["landmarks"] = [0.0] * len(row["landmarks"])
    write_table(other / "tracking/tracking.parquet", schemas.TRACKING, rows)
    out = tmp_path / "out"
    out.mkdir()
    stage.run(_inputs(other, tmp_path / "work"), TINY, out)
    for name in ("avatar.safetensors", "history.parquet", "preview.jpg"):
        assert (out / name).read_bytes() == (trained / name).read_bytes(), name


_RUN = """
import sys, torch
from pathlib import Path
from test_avatar import TINY, _inputs, stage
torch.set_num_threads(int(sys.argv[4]))
stage.run(_inputs(Path(sys.argv[1]), Path(sys.argv[2])), TINY, Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bytes(
    subject: Path, trained: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    threads = str(torch.get_num_threads())
    command = [sys.executable, "-c", _RUN, str(subject), str(work), str(out), threads]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 300
    while not (work / FILE).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert not any(out.iterdir())

    assert 0 < _steps_run(subject, work, TINY, out) < TINY.steps
    for path in trained.iterdir():
        name = path.name
        assert (out / name).read_bytes() == (trained / name).read_bytes(), name


def test_a_checkpoint_of_other_parameters_or_a_damaged_one_is_not_continued(
    subject: Path, trained: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    out.mkdir()
    short = TINY.model_copy(update={"steps": 25, "relocations": 0})
    assert _steps_run(subject, work, short, out) == 25
    assert _steps_run(subject, work, short, out) == 0
    other = short.model_copy(update={"final_rate": 0.5})
    assert _steps_run(subject, work, other, out) == 25
    (work / FILE).write_bytes((work / FILE).read_bytes()[:1000])
    assert _steps_run(subject, work, other, out) == 25


def test_a_training_that_breaks_down_names_step_and_tensor_and_keeps_the_last_good_state(
    subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SuperResolution.forward
    calls = itertools.count(1)

    def spoiled(self: SuperResolution, *inputs: torch.Tensor) -> torch.Tensor:
        picture = original(self, *inputs)
        return picture * float("nan") if next(calls) == 61 else picture

    monkeypatch.setattr(SuperResolution, "forward", spoiled)
    inputs, out = _inputs(subject, tmp_path / "work"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(StageError, match=r"step 30 \(sequence talk, timestep \d\): .*picture"):
        stage.run(inputs, TINY, out)
    header = (inputs.work / FILE).read_bytes()[:4000].decode(errors="ignore")
    assert '"step\\": 25' in header


def test_a_gradient_that_is_not_finite_never_reaches_the_parameters(
    subject: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SuperResolution.forward
    calls = itertools.count(1)

    def spoiled(self: SuperResolution, *inputs: torch.Tensor) -> torch.Tensor:
        picture = original(self, *inputs)
        # The root of zero: zero itself, but of infinite slope.
        return picture + 0 * (0 * picture).sqrt() if next(calls) == 61 else picture

    monkeypatch.setattr(SuperResolution, "forward", spoiled)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(StageError, match=r"step 30 \(sequence talk.*: the gradient of .* is NaN"):
        stage.run(_inputs(subject, tmp_path / "work"), TINY, out)
    header = (tmp_path / "work" / FILE).read_bytes()[:4000].decode(errors="ignore")
    assert '"step\\": 25' in header


def test_a_runaway_parameter_is_caught_though_the_loss_stays_finite(
    subject: Path, tmp_path: Path
) -> None:
    wild = TINY.model_copy(update={"rates": stage.LearningRates(positions=1e38)})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(StageError, match=r"step \d+.*: head\.positions is NaN or infinite"):
        stage.run(_inputs(subject, tmp_path / "work"), wild, out)
    assert read_checkpoint(tmp_path / "work", "any") is None


def test_learning_rates_rise_and_fall() -> None:
    config = TINY.model_copy(update={"warm_up": 4, "final_rate": 0.1, "steps": 10}).training()
    fall = [0.1 ** (step / 10) for step in range(10)]
    expected = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1]
    rates = [config.rate(step) for step in range(10)]
    assert rates == pytest.approx([a * b for a, b in zip(fall, expected, strict=True)])
    assert replace(config, warm_up=0).rate(3) == 0.1**0.3


# The order of frames -----------------------------------------------------------------------------


def test_rare_expressions_are_seen_more_often_and_none_is_forgotten() -> None:
    rng = np.random.default_rng(0)
    calm = 0.01 * rng.standard_normal((90, 4))
    smile = np.array([1.0, 0, 0, 0]) + 0.01 * rng.standard_normal((9, 4))
    wink = np.array([[0.0, 2.0, 0, 0]])
    expressions = np.concatenate([calm, smile, wink]).astype(np.float32)
    share = shares(expressions, 1.0)
    assert share.mean() == pytest.approx(1)
    # Each of the three looks is one third of what is not spread evenly.
    for frames in (slice(90), slice(90, 99), slice(99, 100)):
        count = len(expressions[frames])
        assert share[frames].sum() == pytest.approx(0.25 * count + 25, rel=0.02)
    passes = [seen_in_pass(number, share.cumsum()) for number in range(40)]
    assert all(len(each) == 100 for each in passes)
    times = np.stack([np.bincount(each, minlength=100) for each in passes])
    assert np.abs(times.sum(0) - 40 * share).max() < 4

    least = np.cumsum([0.25] * 8 + [7.0])
    for first in range(50):
        five = [seen_in_pass(number, least) for number in range(first, first + 5)]
        assert set(np.concatenate(five)) == set(range(9))


@given(st.integers(1, 300), st.integers(0, 1000))
def test_equal_shares_show_every_frame_once_a_pass(count: int, number: int) -> None:
    share = shares(np.random.default_rng(count).random((count, 3), np.float32), 0.0)
    np.testing.assert_array_equal(seen_in_pass(number, share.cumsum()), np.arange(count))


@given(st.lists(st.floats(0, 2, width=32), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_pass_is_as_long_as_there_are_frames(values: list[float], rare: float) -> None:
    share = shares(np.array(values, np.float32)[:, None], rare)
    assert share.min() >= 0.25
    for number in range(12):
        seen = seen_in_pass(number, share.cumsum())
        assert seen.shape == (len(values),)
        assert seen.max() < len(values)


# Relocation --------------------------------------------------------------------------------------


def test_relocation_cuts_the_worst_in_two_and_keeps_the_order() -> None:
    weight = torch.tensor([1.0, 1.0, 0.5, 0.25, 0.0, 0.0])
    head = _random_head(weight)
    optimiser = torch.optim.Adam(head.parameters())
    head(torch.rand(3), torch.rand(6)).channels.sum().backward()
    optimiser.step()
    optimiser.state[head.features]["exp_avg"].copy_(head.features)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    error = torch.tensor([0.0, 9.0, 1.0, 1.0, 8.0, 0.0])
    area = torch.tensor([5.0, 6.0, 0.1, 7.0, 9.0, 0.2])
    relocate(head, optimiser, Shown(area, error), 2)

    # 1 and 4 were worst, 2 and 5 showed least.
    source = torch.tensor([0, 1, 1, 3, 4, 4])
    for name in ("weight", "encoding", "features", "colours", "opacities"):
        torch.testing.assert_close(head.state_dict()[name], before[name][source])
    torch.testing.assert_close(head.shift, before["shift"][:, source])
    torch.testing.assert_close(optimiser.state[head.features]["exp_avg"], head.features)
    assert (head.config.expression_gaussians, head.config.face_gaussians) == (4, 3)
    halves = head.positions.detach()
    torch.testing.assert_close((halves[1] + halves[2]) / 2, before["positions"][1])
    apart = (halves[1] - halves[2]).norm()
    torch.testing.assert_close(apart, 1.4 * before["log_scales"][1].max().exp())
    torch.testing.assert_close(halves[[0, 3]], before["positions"][[0, 3]])


def test_what_a_picture_shows_of_the_gaussians_is_their_share_of_its_pixels() -> None:
    camera = _cameras()["front"]
    random = torch.Generator().manual_seed(0)
    world = Gaussians(
        means=0.1 * torch.rand(9, 3, generator=random),
        quaternions=torch.tensor([1.0, 0, 0, 0]).repeat(9, 1),
        scales=torch.full((9, 3), 0.02),
        opacities=torch.full((9,), 0.7),
        channels=torch.ones(9, 5),
    )
    K, w2c = torch.from_numpy(camera.K).float()[None], torch.from_numpy(camera.w2c).float()[None]
    black, weight = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), torch.ones(1, 1, SIZE, SIZE)
    weight[..., : SIZE // 2] = 0.0
    none = torch.zeros(0)
    batch = Batch(K, w2c, black, none, none, weight, none, [(0.0, 0.0)])
    seen = shown(world, batch)
    _, alpha = render_colours(world, K, w2c, [(0, 0)], SIZE, SIZE)
    assert float(seen.area.sum()) > 10
    torch.testing.assert_close(seen.area.sum(), (alpha * weight).sum())
    torch.testing.assert_close(seen.error, seen.area)  # white on black: wrong by 1 everywhere
    torch.testing.assert_close((seen + seen).error, 2 * seen.error)


def test_what_a_frame_is_corrected_by_is_bounded(subject: Path) -> None:
    frame = _train_views(subject).frames[1]
    corrections = Corrections(4, 3, 2)
    np.testing.assert_array_equal(corrections.expression(frame).detach(), frame.expression)
    with torch.no_grad():
        corrections.expressions[1] = torch.tensor([-50.0, 0.001, 50.0])
    change = corrections.expression(frame).detach().numpy() - frame.expression
    np.testing.assert_allclose(change, [-EXPRESSION_BOUND, 0.001, EXPRESSION_BOUND], atol=1e-4)


def test_colours_of_cameras_are_told_against_their_mean_and_leave_what_is_behind_white() -> None:
    corrections = Corrections(1, 3, 3)
    with torch.no_grad():
        corrections.colours.normal_()
    person = torch.rand(1, 3, 4, 5)
    alpha = torch.rand(1, 1, 4, 5)
    alpha[..., 0, 0] = 0
    picture = alpha * person + 1 - alpha
    seen = torch.cat([corrections.seen_by([index], picture, alpha) for index in range(3)])
    torch.testing.assert_close(seen.mean(0, keepdim=True), picture)
    torch.testing.assert_close(seen[..., 0, 0], torch.ones(3, 3))
    A, b = (corrections.colours[1] - corrections.colours.mean(0)).split([3, 1], 1)
    tinted = person + torch.einsum("ij,bjhw->bihw", A, person) + b[:, :, None]
    torch.testing.assert_close(seen[1:2], alpha * tinted + 1 - alpha)


def test_cameras_that_see_other_colours_are_found_and_do_not_colour_the_avatar(
    subject: Path, tmp_path: Path
) -> None:
    tint = {"front": np.array([1.2, 1.0, 0.8]), "left": np.array([0.8, 1.0, 1.2])}
    other = tmp_path / "other"
    shutil.copytree(subject, other)
    rows = list(read_rows(other / "ingest/frames.parquet", schemas.FRAMES))
    for row in rows:
        if row["camera"] in tint:
            seen = decode_image(row["image"]) * tint[row["camera"]]
            row["image"] = encode_png(seen.clip(0, 255).astype(np.uint8))
    write_table(other / "ingest/frames.parquet", schemas.FRAMES, rows)
    params = TINY.model_copy(
        update={"steps": 60, "super_resolution_width": 0, "crop": 48, "relocations": 0}
    )
    wrong, found = [], []
    for rate in (0.0, 0.02):
        rates = stage.LearningRates(camera_colour=rate)
        out, inputs = tmp_path / f"out{rate}", _inputs(other, tmp_path / f"work{rate}")
        out.mkdir()
        stage.run(inputs, params.model_copy(update={"rates": rates}), out)
        avatar = Avatar.load(out)
        dataset = Dataset(subject / "ingest", subject / "matting", subject / "tracking", SPLITS)
        errors = []
        for view in (each for each in dataset.test if each.camera == "right"):
            image, _ = avatar.render(dataset.cameras["right"], view.pose, view.expression)
            inside = dataset.alpha(view) > 0
            off = image.astype(float)[inside] - dataset.image(view)[inside]
            errors.append(np.abs(off[:, 0] - off[:, 2]).mean())  # too red for its blue
        wrong.append(np.mean(errors))
        colours = load_file(inputs.work / FILE)["model.corrections.colours"]
        grey = torch.tensor([0.5, 0.5, 0.5, 1.0])
        found.append(((colours[0] - colours[1]) / 2 @ grey).numpy())
    assert wrong[1] < 0.75 * wrong[0]
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1], [0.1, 0.0, -0.1], atol=0.03)


@pytest.mark.parametrize(
    "change",
    [
        {"super_resolution_width": 0, "weights": stage.LossWeights(perceptual=0.1)},
        {"geometry": False, "view_dependence": True},
        {
            "expression_networks": False, "attribute_networks": False, "sharp": False,
            "super_resolution_scale": 4, "scale_augmentation": 0.25,
        },
    ],
)  # fmt: skip
def test_every_part_can_be_left_out(
    change: dict[str, object], subject: Path, tmp_path: Path
) -> None:
    params = TINY.model_copy(update={"steps": 8, **change})
    out = tmp_path / "out"
    out.mkdir()
    stage.run(_inputs(subject, tmp_path / "work"), params, out)
    avatar = Avatar.load(out)
    weights = load_file(out / "avatar.safetensors")
    assert ("super_resolution.coarse.weight" in weights) == (params.super_resolution_width > 0)
    by_expression = any("_expression.layers" in name for name in weights)
    assert by_expression == params.expression_networks
    picture, _ = avatar.render(_cameras()["front"], *_motion("talk", 1))
    truth = decode_image(_front_picture(subject))
    assert np.abs(picture[8:-8, 8:-8].astype(float) - truth[8:-8, 8:-8]).mean() < 60
    odd, matte = avatar.render(_cameras()["front"].resized(31, 57), *_motion("talk", 1))
    assert (odd.shape, matte.shape) == ((57, 31, 3), (57, 31))


def _front_picture(subject: Path) -> bytes:
    rows = read_rows(subject / "ingest/frames.parquet", schemas.FRAMES)
    wanted = ("talk", 1, "front")
    return next(
        row["image"] for row in rows if (row["sequence"], row["timestep"], row["camera"]) == wanted
    )


# The finished avatar -----------------------------------------------------------------------------


def test_it_renders_any_size_on_white(trained: Path) -> None:
    avatar = Avatar.load(trained)
    pose, expression = _motion("talk", 1)
    camera = _cameras()["front"]
    reference, _ = avatar.render(camera, pose, expression)
    for width, height in ((31, 57), (SIZE, SIZE), (130, 64)):
        image, alpha = avatar.render(camera.resized(width, height), pose, expression)
        assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
        assert (alpha.shape, alpha.dtype) == ((height, width), np.uint8)
        assert image[0, 0].min() > 245
        assert alpha[0, 0] < 10
        assert alpha[height // 2, width // 2] > 200
    double, _ = avatar.render(camera.resized(2 * SIZE, 2 * SIZE), pose, expression)
    shrunk = cv2.resize(double, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(float) - reference).mean() < 12


def test_it_says_what_it_is_made_of(trained: Path) -> None:
    avatar = Avatar.load(trained)
    assert avatar.expression_names == NAMES
    assert avatar.licences == {
        "face model": "CC0-1.0",
        "Robust Video Matting": "GPL-3.0",
        "facemesh": "Apache-2.0",
    }
    assert set(avatar.lineage) == {f"{folder}/{name}" for folder, name in stage.LINEAGE}
    assert all(len(digest) == 64 for digest in avatar.lineage.values())


def test_saved_and_loaded_it_is_the_same(trained: Path, tmp_path: Path) -> None:
    avatar = Avatar.load(trained)
    avatar.save(tmp_path)
    for name in ("avatar.safetensors", "avatar.json"):
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_a_damaged_avatar_gets_a_sentence(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        Avatar.load(tmp_path)
    shutil.copytree(trained, tmp_path / "a")
    description = json.loads((tmp_path / "a/avatar.json").read_text())
    (tmp_path / "a/avatar.json").write_text(json.dumps({**description, "schema_version": 99}))
    with pytest.raises(ArtifactError, match="schema version 99"):
        Avatar.load(tmp_path / "a")
    shutil.copytree(trained, tmp_path / "b")
    tensors = load_file(tmp_path / "b/avatar.safetensors")
    tensors["head.positions"] = tensors["head.positions"][1:].contiguous()
    save_file(tensors, tmp_path / "b/avatar.safetensors")
    with pytest.raises(ArtifactError, match="Run the avatar stage again"):
        Avatar.load(tmp_path / "b")


def test_an_empty_mesh_or_no_training_view_gets_a_sentence(subject: Path, tmp_path: Path) -> None:
    shutil.copytree(subject / "geometry", tmp_path / "geometry")
    tensors = load_file(tmp_path / "geometry/geometry.safetensors")
    tensors["faces"] = tensors["faces"][:0].contiguous()
    save_file(tensors, tmp_path / "geometry/geometry.safetensors")
    with pytest.raises(StageError, match="no triangles"):
        Surface.load(tmp_path / "geometry")
    everything = Splits(test_every=1)
    folders = (subject / "ingest", subject / "matting", subject / "tracking")
    with pytest.raises(StageError, match="No training view"):
        TrainingViews(Dataset(*folders, everything), 0)
