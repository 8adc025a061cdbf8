"""Pinhole cameras: OpenCV axes (x right, y down, z forward), world to camera, metres.

Pixel coordinates are continuous with the first pixel's centre at (0.5, 0.5), so that the image
covers [0, width] x [0, height] and resizing by a factor f multiplies K's first two rows by f.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.errors import CaptureError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """One calibrated view.

    Attributes:
        name: the camera's id in the capture.
        K: [3, 3] intrinsics in pixels.
        w2c: [4, 4] world-to-camera rigid transform, metres.
        width, height: image size in pixels.
        distortion: [5] k1 k2 p1 p2 k3 of OpenCV.
    """

    name: str
    K: Array
    w2c: Array
    width: int
    height: int
    distortion: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.distortion is None:
            object.__setattr__(self, "distortion", np.zeros(5))

    @property
    def centre(self) -> Array:
        """[3] position of the camera in the world."""
        return -self.w2c[:3, :3].T @ self.w2c[:3, 3]

    @property
    def forward(self) -> Array:
        """[3] unit viewing direction in the world."""
        return self.w2c[2, :3]

    def project(self, points: Array) -> Array:
        """[..., 3] world points to [..., 2] pixels (no distortion); NaN behind the camera."""
        local = points @ self.w2c[:3, :3].T + self.w2c[:3, 3]
        depth = np.where(local[..., 2:] > 1e-9, local[..., 2:], np.nan)
        pixels = (local / depth) @ self.K.T
        return pixels[..., :2]

    def transformed(self, transform: Array, width: int, height: int) -> Camera:
        """The camera of an image made by the 3x3 affine pixel ``transform`` (crop and resize)."""
        return replace(self, K=transform @ self.K, width=width, height=height)

    def resized(self, width: int, height: int) -> Camera:
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return self.transformed(scale, width, height)

    def row(self, subject: str) -> dict[str, Any]:
        """The camera as a row of the ``cameras`` table."""
        return {
            "subject": subject,
            "camera": self.name,
            "K": self.K.ravel().tolist(),
            "distortion": np.asarray(self.distortion, float).tolist(),
            "w2c": self.w2c.ravel().tolist(),
            "width": self.width,
            "height": self.height,
        }

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Camera:
        return Camera(
            name=row["camera"],
            K=np.array(row["K"], float).reshape(3, 3),
            w2c=np.array(row["w2c"], float).reshape(4, 4),
            width=row["width"],
            height=row["height"],
            distortion=np.array(row["distortion"], float),
        )


def check_camera(camera: Camera, source: str) -> None:
    """Refuse a calibration that cannot be right.

    Args:
        source: the file it came from, for the sentence.

    Raises:
        CaptureError: NaN, a focal length that is not positive, a rotation that is not orthonormal
            (tolerance 1e-3) or mirrors, a principal point far outside, an empty image.
    """

    def bad(what: str) -> CaptureError:
        return CaptureError(f"Camera {camera.name} in {source}: {what}")

    if not all(np.isfinite(each).all() for each in (camera.K, camera.w2c, camera.distortion)):
        raise bad("the calibration contains NaN or infinity. Calibrate this camera again.")
    if camera.K[0, 0] <= 0 or camera.K[1, 1] <= 0:
        raise bad(
            f"the focal length is {camera.K[0, 0]:g}, {camera.K[1, 1]:g} px; it must be positive."
        )
    rotation = camera.w2c[:3, :3]
    error = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if error > 1e-3:
        raise bad(
            f"the rotation is not orthonormal (off by {error:.2g}). Give a rigid world-to-camera "
            "matrix, without scale."
        )
    if np.linalg.det(rotation) < 0:
        raise bad("the rotation mirrors (determinant -1). Convert it to OpenCV axes first.")
    if np.abs(camera.w2c[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise bad("the last row of the world-to-camera matrix is not 0 0 0 1. Is it transposed?")
    if camera.width <= 0 or camera.height <= 0:
        raise bad(f"the image size is {camera.width}x{camera.height}.")


def look_at(eye: Array, target: Array, up: Array) -> Array:
    """[4, 4] world-to-camera of a camera at ``eye`` that looks at ``target`` (OpenCV axes)."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    w2c = np.eye(4)
    w2c[:3, :3] = rotation
    w2c[:3, 3] = -rotation @ eye
    return w2c


def convergence(cameras: list[Camera]) -> Array:
    """[3] the point nearest to all optical axes (least squares): where a rig looks at.

    With fewer than two cameras, or parallel axes, it is undefined and CaptureError is raised.
    """
    normal, right = np.zeros((3, 3)), np.zeros(3)
    for camera in cameras:
        across = np.eye(3) - np.outer(camera.forward, camera.forward)
        normal += across
        right += across @ camera.centre
    if len(cameras) < 2 or np.linalg.cond(normal) > 1e6:
        raise CaptureError("The cameras do not converge: their optical axes are parallel.")
    return np.asarray(np.linalg.solve(normal, right), float)
