"""Photos say where the head is when the landmarks err together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, look_at
from gha_core.faces import FaceModel, head_model
from gha_core.faces.portrait import vertex_normals
from gha_core.fitting import rotations
from gha_core.fitting.appearance import Motion, Skin, align
from gha_core.mesh_rasterisation import rasterize

Floats = NDArray[np.float64]
SIZE, SCALE, TIMESTEPS = 160, 0.22, 8
ALL = [(np.arange(TIMESTEPS), np.arange(TIMESTEPS))]
CAMERAS = tuple(
    Camera(
        f"c{x}",
        np.array([[600.0, 0, SIZE / 2], [0, 600.0, SIZE / 2], [0, 0, 1]]),
        look_at(np.array([x, 0.05, 1.0]), np.zeros(3), np.array([0.0, 1.0, 0.0])),
        SIZE,
        SIZE,
    )
    for x in (-0.4, 0.1, 0.5)
)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return head_model()


@pytest.fixture(scope="module")
def skin(model: FaceModel) -> Skin:
    face = model.regions["face"].numpy()
    mean = model.mean.double().numpy()
    moves = model.expression_basis.double().numpy()[:, face].transpose(1, 2, 0)
    normals = vertex_normals(mean, model.faces.numpy())[face]
    return Skin(mean[face], normals, np.ascontiguousarray(moves))


def motion(model: FaceModel) -> Motion:
    time = np.arange(TIMESTEPS) / 4
    turn = 0.15 * np.stack([np.sin(3 * time), np.cos(2 * time), np.sin(time)], 1)
    expression = np.zeros((TIMESTEPS, len(model.expression_names)))
    expression[:, model.expression_names.index("jawOpen")] = np.clip(np.sin(5 * time), 0, 1) * 0.6
    return Motion(
        rotations.exponential(turn),
        0.01 * np.stack([np.sin(time), np.cos(time), np.sin(2 * time)], 1),
        expression,
        SCALE,
    )


def film(model: FaceModel, done: Motion, t: int) -> dict[int, Image]:
    """A mottled head that does what ``done`` says, as the cameras see it."""
    moved = torch.tensordot(torch.from_numpy(done.expression[t]).float(), model.expression_basis, 1)
    head = (model.mean + moved).double().numpy()
    world = torch.from_numpy(SCALE * head @ done.matrices[t].T + done.translation[t])
    x, y, z = 40 * model.mean.numpy().T
    paint = 130 + 45 * np.sin(x + 0.6 * y) * np.cos(1.3 * y - z) + 35 * np.sin(1.7 * x - 1.1 * y)
    faces = model.faces.numpy()
    photos = {}
    for c, camera in enumerate(CAMERAS):
        seen = rasterize(world, model.faces, camera.K, camera.w2c, SIZE, SIZE)
        corners = paint[faces[seen.face_index.numpy()]]
        luma = (corners * seen.barycentric.numpy()).sum(-1)
        luma = np.where(seen.face_index.numpy() >= 0, luma, 60)
        photos[c] = np.repeat(luma.astype(np.uint8)[..., None], 3, 2)
    return photos


def places(skin: Skin, done: Motion) -> Floats:
    """[T, N, 3] the face in millimetres, but for what all timesteps share."""
    head = skin.neutral + np.einsum("nke,te->tnk", skin.moves, done.expression)
    world = done.scale * head @ done.matrices.swapaxes(1, 2) + done.translation[:, None]
    return 1000 * world


def test_too_few_timesteps_say_nothing_about_looks(model: FaceModel, skin: Skin) -> None:
    truth = motion(model)
    start = replace(
        truth,
        matrices=truth.matrices[:2],
        translation=truth.translation[:2],
        expression=truth.expression[:2],
    )
    runs = [(np.arange(2), np.arange(2))]
    found = align(start, skin, CAMERAS, lambda t: film(model, truth, t), [0, 1], runs)
    np.testing.assert_allclose(found.translation, start.translation, atol=1e-12)
    np.testing.assert_allclose(found.expression, start.expression, atol=1e-12)


def test_a_nod_that_only_the_landmarks_see_is_undone(model: FaceModel, skin: Skin) -> None:
    truth = motion(model)
    nod = 0.03 * np.sin(np.arange(TIMESTEPS) * 2.5)
    slips = np.stack([nod, np.roll(nod, 2), 0 * nod], 1)
    seen = replace(
        truth,
        matrices=truth.matrices @ rotations.exponential(slips),
        translation=truth.translation + 0.06 * np.roll(slips, 1, 1),
    )
    pictures = [film(model, truth, t) for t in range(TIMESTEPS)]
    teachers = list(range(TIMESTEPS - 2))  # the last two are held out, and aligned all the same
    found = align(seen, skin, CAMERAS, pictures.__getitem__, teachers, [])

    def errors(done: Motion) -> Floats:
        wrong = (places(skin, done) - places(skin, truth)) @ np.eye(3)
        wrong = np.einsum("tij,tni->tnj", truth.matrices, wrong)  # along the axes of the head
        return np.linalg.norm(wrong - wrong[teachers].mean(0), axis=-1).mean(1)

    before, after = errors(seen), errors(found)
    assert before.mean() > 1.2
    assert after[teachers].mean() < before[teachers].mean() / 3
    assert after[-2:].mean() < before[-2:].mean() / 3


def test_without_texture_it_stays_with_the_landmarks(model: FaceModel, skin: Skin) -> None:
    done = motion(model)
    grey = {c: np.full((SIZE, SIZE, 3), 128, np.uint8) for c in range(len(CAMERAS))}
    found = align(done, skin, CAMERAS, lambda _: grey, range(TIMESTEPS), ALL)
    assert np.abs(places(skin, found) - places(skin, done)).max() < 1e-6


def test_a_camera_may_miss_timesteps(model: FaceModel, skin: Skin) -> None:
    truth = motion(model)
    pictures = [film(model, truth, t) for t in range(TIMESTEPS)]
    for t in range(0, TIMESTEPS, 2):
        del pictures[t][1]
    found = align(truth, skin, CAMERAS, pictures.__getitem__, range(TIMESTEPS), ALL)
    assert np.isfinite(found.matrices).all()
    assert np.linalg.norm(places(skin, found) - places(skin, truth), axis=-1).mean() < 1.0
