"""Outlines in the mattes say how wide a face is, where they are skin."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, look_at
from gha_core.faces import head_model
from gha_core.faces.portrait import Painter
from gha_core.fitting.observations import LandmarkModel
from gha_core.fitting.outlines import fit_outlines
from gha_core.fitting.residuals import State

SIZE, TIMESTEPS = 192, 2
CAMERAS = tuple(
    Camera(
        f"c{angle}",
        np.array([[900.0, 0, SIZE / 2], [0, 900.0, SIZE / 2], [0, 0, 1]]),
        look_at(
            5.0 * np.array([np.sin(np.radians(angle)), 0.05, np.cos(np.radians(angle))]),
            np.zeros(3),
            np.array([0.0, 1.0, 0.0]),
        ),
        SIZE,
        SIZE,
    )
    for angle in (-60, -35, 0, 35, 60)
)


def test_outlines_find_the_width_that_landmarks_did_not_see() -> None:
    model = head_model()
    landmarks = LandmarkModel.of(model)
    basis = model.identity_basis.double().numpy()
    face = model.regions["face"].numpy()
    # The two strongest shapes, so that the sides are off by several millimetres.
    true = np.zeros(len(basis))
    true[np.argsort(-np.linalg.norm(basis[:, face], axis=(1, 2)))[:2]] = 1.2
    still = torch.zeros(len(model.expression_names))
    head = model.vertices(torch.from_numpy(true).float(), still).double().numpy()
    painter, light = Painter(model), np.array([0.2, 0.4, 1.0])
    pictures = {c: painter.portrait(head, camera, light) for c, camera in enumerate(CAMERAS)}

    def photos(index: int) -> dict[int, Image]:
        return {c: picture.image for c, picture in pictures.items()}

    def mattes(index: int) -> dict[int, NDArray[np.uint8]]:
        assert index in (3, 8)
        return {c: np.uint8(255) * (p.face_index >= 0) for c, p in pictures.items()}

    start = State(
        reference=np.broadcast_to(np.eye(3), (TIMESTEPS, 3, 3)),
        rotation=np.zeros((TIMESTEPS, 3)),
        translation=np.zeros((TIMESTEPS, 3)),
        expression=np.zeros((TIMESTEPS, len(model.expression_names))),
        identity=np.zeros(len(basis)),
        scale=1.0,
    )
    # The landmarks in the middle lie where they lie on this head, as if well triangulated.
    indices = np.array([3, 8])
    found = fit_outlines(start, indices, model, landmarks, CAMERAS, photos, mattes)

    side = face & (np.abs(np.arctan2(head[:, 0], head[:, 2])) > np.radians(35))
    side &= head[:, 1] < 0.1  # below the brows

    def width_error(state: State) -> float:
        shape = model.mean.double().numpy() + np.tensordot(state.identity, basis, 1)
        world = state.scale * shape @ state.matrices[0].T + state.translation[0]
        return float(np.abs(world - head)[side, 0].mean())

    assert width_error(start) > 0.01  # head lengths
    assert width_error(found) < 0.5 * width_error(start)
    # Without a matte there is nothing to fit.
    none = fit_outlines(start, indices, model, landmarks, CAMERAS, photos, lambda index: {})
    assert np.abs(none.identity).max() < 1e-9
