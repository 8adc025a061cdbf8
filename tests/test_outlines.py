"""Outlines in the mattes say how wide a face is, where they are skin."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, look_at
from gha_core.faces import FaceModel, head_model
from gha_core.faces.portrait import Painter
from gha_core.fitting import ears
from gha_core.fitting.observations import LandmarkModel
from gha_core.fitting.outlines import fit_outlines
from gha_core.fitting.pictures import lookup
from gha_core.fitting.residuals import State

SIZE, TIMESTEPS = 192, 4


def ring(*angles: float) -> tuple[Camera, ...]:
    """Cameras around the head, degrees from straight ahead."""
    K = np.array([[900.0, 0, SIZE / 2], [0, 900.0, SIZE / 2], [0, 0, 1]])
    turns = np.radians(angles)
    places = 5.0 * np.stack([np.sin(turns), 0.01 + 0 * turns, np.cos(turns)], 1)
    up = np.array([0.0, 1.0, 0.0])
    return tuple(
        Camera(f"c{c}", K, look_at(place, np.zeros(3), up), SIZE, SIZE)
        for c, place in enumerate(places)
    )


Photos = dict[int, Image]


def filmed(
    model: FaceModel, identity: NDArray[np.float64], cameras: tuple[Camera, ...]
) -> tuple[Photos, Photos]:
    """Photos and mattes by camera of the head of ``identity``, at rest."""
    head = shape(model, identity)
    light = np.array([0.2, 0.4, 1.0])
    painter = Painter(model)
    pictures = {c: painter.portrait(head, each, light) for c, each in enumerate(cameras)}
    mattes = {c: np.uint8(255) * (each.face_index >= 0) for c, each in pictures.items()}
    return {c: each.image for c, each in pictures.items()}, mattes


def shape(model: FaceModel, identity: NDArray[np.float64]) -> NDArray[np.float64]:
    basis = model.identity_basis.double().numpy()
    return np.asarray(model.mean.double().numpy() + np.tensordot(identity, basis, 1))


def world(model: FaceModel, state: State) -> NDArray[np.float64]:
    head = shape(model, state.identity)
    return np.asarray(state.scale * head @ state.matrices[0].T + state.translation[0])


def mean_head(model: FaceModel) -> State:
    """The state that well triangulated landmarks in the middle of the face would leave."""
    return State(
        reference=np.broadcast_to(np.eye(3), (TIMESTEPS, 3, 3)),
        rotation=np.zeros((TIMESTEPS, 3)),
        translation=np.zeros((TIMESTEPS, 3)),
        expression=np.zeros((TIMESTEPS, len(model.expression_names))),
        identity=np.zeros(len(model.identity_basis)),
        scale=1.0,
    )


def test_outlines_find_the_width_that_landmarks_did_not_see() -> None:
    model = head_model()
    landmarks = LandmarkModel.of(model)
    basis = model.identity_basis.double().numpy()
    face = model.regions["face"].numpy()
    # The two strongest shapes, so that the sides are off by several millimetres.
    true = np.zeros(len(basis))
    true[np.argsort(-np.linalg.norm(basis[:, face], axis=(1, 2)))[:2]] = 1.2
    head = shape(model, true)
    cameras = ring(-60, -35, 0, 35, 60)
    pictures, alphas = filmed(model, true, cameras)
    start, indices = mean_head(model), np.array([3, 8, 9, 12])

    def mattes(index: int) -> dict[int, NDArray[np.uint8]]:
        assert index in indices
        return alphas

    found = fit_outlines(start, indices, model, landmarks, cameras, lambda _: pictures, mattes)

    side = face & (np.abs(np.arctan2(head[:, 0], head[:, 2])) > np.radians(35))
    side &= head[:, 1] < 0.1  # below the brows

    def width_error(state: State) -> float:
        return float(np.abs(world(model, state) - head)[side, 0].mean())

    assert width_error(start) > 0.01  # head lengths
    assert width_error(found) < 0.5 * width_error(start)
    # Without a matte there is nothing to fit.
    none = fit_outlines(start, indices, model, landmarks, cameras, lambda _: pictures, lambda _: {})
    assert np.abs(none.identity).max() < 1e-9


def test_ears_that_sit_lower_than_the_face_lets_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head_model()
    landmarks = LandmarkModel.of(model)
    basis = model.identity_basis.double().numpy()
    lobes = model.regions["ears"].numpy()
    middle = np.abs(np.arctan2(landmarks.mean[:, 0], landmarks.mean[:, 2])) < np.radians(30)
    # The likeliest head with ears 6 mm lower and the same face in the middle.
    lower = basis[:, lobes, 1].mean(1)
    same = landmarks.identity[middle].reshape(-1, len(basis))
    likely = np.linalg.solve(np.eye(len(basis)) + 1e4 * same.T @ same, lower)
    true = -0.027 * likely / (lower @ likely)
    cameras = ring(-80, -60, -40, -20, 20, 40, 60, 80)
    pictures, mattes = filmed(model, true, cameras)
    start, indices = mean_head(model), np.arange(TIMESTEPS)

    def height_error() -> float:
        found = fit_outlines(
            start, indices, model, landmarks, cameras, lambda _: pictures, lambda _: mattes
        )
        return float((world(model, found) - shape(model, true))[lobes, 1].mean())

    seen = height_error()
    monkeypatch.setattr(ears, "BARE", 2.0)  # as if hair covered them
    covered = height_error()
    assert covered > 0.015
    assert abs(seen) < 0.65 * covered


def test_a_lookup_at_no_place_finds_nothing() -> None:
    picture = np.zeros((4, 5, 3), np.float32)
    assert lookup(picture, np.zeros((0, 7, 2))).shape == (0, 7, 3)
