"""What a detector would see of a head that is known: for tests and timings of the tracker.

No pictures are made; the points are the head model's landmarks in the cameras, off by what the
detector's habits (:mod:`gha_core.faces.drift`) and some noise make of them.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.cameras import Camera, look_at
from gha_core.faces import FaceModel
from gha_core.faces.drift import expected_drift
from gha_core.fitting import Observations
from gha_core.landmarks import LANDMARKS
from gha_core.pose import HeadPose

Floats = NDArray[np.float64]
SIZE, DISTANCE, SCALE = 256, 1.1, 0.22  # px; m; metres per unit of head space


def rig(count: int) -> tuple[Camera, ...]:
    """Cameras in an arc of 70 degrees before the head, in the order from its right."""
    cameras = []
    focal = 0.55 * SIZE * DISTANCE / SCALE
    K = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    for index in range(count):
        angle = np.radians(-35 + 70 * index / (count - 1)) if count > 1 else 0.0
        eye = DISTANCE * np.array([np.sin(angle), 0.1 * (-1) ** index, np.cos(angle)])
        w2c = look_at(eye, np.zeros(3), np.array([0.0, 1.0, 0.0]))
        cameras.append(Camera(f"c{index}", K, w2c, SIZE, SIZE))
    return tuple(cameras)


class Actor:
    """A known head that moves smoothly about the origin.

    Attributes:
        identity: [I]; rotation, translation: [T, 3]; expression: [T, E]; scale: as of a Track.
    """

    def __init__(self, model: FaceModel, timesteps: int, scale: float = SCALE) -> None:
        rng = np.random.default_rng(5)
        time = np.arange(timesteps) / 12
        self.model, self.scale = model, scale
        self.identity = rng.normal(0, 0.7, len(model.identity_basis))
        self.rotation = 0.15 * np.stack([np.sin(3 * time), np.cos(2 * time), np.sin(time)], 1)
        self.translation = 0.02 * np.stack([np.sin(time), np.cos(time), np.sin(2 * time)], 1)
        self.expression = np.zeros((timesteps, len(model.expression_names)))
        for name, amount in (("jawOpen", 0.7), ("mouthSmileLeft", 0.8), ("eyeBlinkRight", 0.9)):
            phase = rng.uniform(0, 6)
            wave = amount * np.clip(np.sin(5 * time + phase), 0, 1)
            self.expression[:, model.expression_names.index(name)] = wave

    def world(self, index: int) -> Floats:
        """[V, 3] metres, of one timestep."""
        vertices = self.model.vertices(
            torch.from_numpy(self.identity).float(),
            torch.from_numpy(self.expression[index]).float(),
        )
        pose = HeadPose(self.rotation[index], self.translation[index], self.scale)
        return pose.to_world(vertices.numpy())

    def seen(self, cameras: tuple[Camera, ...], noise: float = 0.4) -> Observations:
        """The points in ``cameras`` with a standard deviation of ``noise`` pixels."""
        rng = np.random.default_rng(6)
        count = len(self.rotation)
        points = np.full((count, len(cameras), LANDMARKS, 2), np.nan)
        extrinsics = np.stack([camera.w2c[:3] for camera in cameras])
        for index in range(count):
            pose = HeadPose(self.rotation[index], self.translation[index], self.scale)
            drift = expected_drift(
                self.model.landmark_drift.double().numpy(),
                pose.matrix[None],
                pose.translation[None],
                extrinsics,
            )[0]
            places = self.model.landmarks(torch.from_numpy(self.world(index)).float())
            for view, camera in enumerate(cameras):
                exact = camera.project(places.double().numpy())
                depth = (camera.w2c[:3, :3] @ pose.translation + camera.w2c[:3, 3])[2]
                unit = camera.K[0, 0] * self.scale / depth
                jitter = rng.normal(0, noise, exact.shape)
                points[index, view, self.model.landmark_indices] = (
                    exact + drift[view] * unit + jitter
                )
        return Observations(
            sequences=("talk",) * count,
            timesteps=tuple(range(count)),
            cameras=cameras,
            points=points,
            confidence=np.ones((count, len(cameras))),
            is_train=np.ones(count, bool),
        )
