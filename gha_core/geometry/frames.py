"""What the geometry is fitted to: small training views, grouped by timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gha_core.cameras import Camera
from gha_core.dataset import Dataset, View
from gha_core.errors import StageError, locate
from gha_core.geometry.mesh import vertex_normals
from gha_core.mesh_rasterisation import exposed_faces
from gha_core.pose import HeadPose
from gha_core.tracked_face import TrackedFace

Mask = NDArray[np.bool_]

BARE = 0.4  # z of the normals of skin that hair seldom covers


def seen_from_outside(face: TrackedFace) -> TrackedFace:
    """The face with those triangles alone that are seen from outside: a lip must not ride on the
    teeth."""
    return replace(face, faces=face.faces[exposed_faces(face.vertices, face.faces)])


def bare_skin(face: TrackedFace) -> Tensor:
    """[K, 3] the face's vertices that turn to the front: temples lie under hair."""
    frontal = vertex_normals(face.vertices, face.faces)[:, 2] > BARE
    return face.vertices[face.regions["face"] & frontal]


@dataclass(frozen=True)
class Box:
    """Opposite corners [3] of an axis-aligned box in head space."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


@dataclass(frozen=True)
class TrainingView:
    """One small image.

    Attributes:
        camera: resized to the image.
        image: [H, W, 3] uint8 sRGB; matte: [H, W] uint8, 255 = foreground.
        usable: [H, W] bool, False where the photo does not reach (or, once :func:`within_box` has
            run, the box of the grid).
    """

    camera: Camera
    image: NDArray[np.uint8]
    matte: NDArray[np.uint8]
    usable: Mask


@dataclass(frozen=True)
class TrainingFrame:
    """One timestep with its tracked pose, expression [E] and landmarks [M, 3] in head space."""

    sequence: str
    timestep: int
    pose: HeadPose
    expression: Tensor
    landmarks: Tensor
    views: tuple[TrainingView, ...]

    @property
    def pose_vector(self) -> Tensor:
        """[6] axis-angle (rad) and translation (m)."""
        return torch.tensor(np.concatenate([self.pose.rotation, self.pose.translation])).float()

    def to_world(self, points: Tensor) -> Tensor:
        """[N, 3] head space to metres; differentiable."""
        rotation = torch.from_numpy(self.pose.matrix).float()
        translation = torch.as_tensor(np.asarray(self.pose.translation)).float()
        return self.pose.scale * points @ rotation.T + translation


def load_frames(dataset: Dataset, size: int, limit: int) -> list[TrainingFrame]:
    """Read at most ``limit`` training timesteps, evenly spread over all of them.

    Args:
        size: longest side of the small images, pixels.

    Raises:
        StageError: there are no training views, their mattes are empty, or no camera looks at the
            tracked head.
    """
    groups: dict[tuple[str, int], list[View]] = {}
    for view in dataset.train:
        groups.setdefault((view.sequence, view.timestep), []).append(view)
    if not groups:
        raise StageError(
            "No training view is left: every view is held out or rejected. Check splits and the "
            "rejects tables of ingest and tracking."
        )
    keys = sorted(groups)
    count = min(limit, len(keys))
    chosen = [keys[index * len(keys) // count] for index in range(count)]
    insides: dict[tuple[str, bytes], Mask] = {}  # nearly always the same in all frames of a camera
    frames = [_load_frame(dataset, groups[key], size, insides) for key in chosen]
    check_frames(frames)
    return frames


def check_frames(frames: Sequence[TrainingFrame]) -> None:
    """Refuse what no optimisation can fit, with the cause (see :func:`load_frames`)."""
    blind, empty, total = [], [], 0
    for frame in frames:
        for view in frame.views:
            total += 1
            where = locate(frame.sequence, frame.timestep, view.camera.name)
            x, y = view.camera.project(np.asarray(frame.pose.translation))
            if not (0 <= x <= view.camera.width and 0 <= y <= view.camera.height):
                blind.append(where)
            if not (view.matte >= 128).any():
                empty.append(where)
    if len(empty) > total / 2:
        raise StageError(
            f"{len(empty)} of {total} training mattes are empty, e.g. {empty[0]}. Look at the "
            "preview of the matting stage."
        )
    if len(blind) > total / 2:
        raise StageError(
            f"In {len(blind)} of {total} training views the tracked head lies outside the image or "
            f"behind the camera, e.g. {blind[0]}. Check the calibration (OpenCV world-to-camera, "
            "metres) and the preview of the tracking stage."
        )


def subject_box(
    frames: Sequence[TrainingFrame], face: TrackedFace, margin: float, reach: float
) -> Box:
    """The box of the grid, head space: the tracked head with ``margin`` around it, and beyond that,
    up to ``reach`` from it, whatever the mattes show at the distance of the head (hair, shoulders).
    """
    low, high = face.vertices.amin(0).numpy(), face.vertices.amax(0).numpy()
    seen = [_seen_extent(frame.pose, view) for frame in frames for view in frame.views]
    points = np.concatenate([low[None], high[None], *seen])
    return Box(
        np.clip(points.min(0), low - reach, low - margin),
        np.clip(points.max(0), high + margin, high + reach),
    )


def within_box(frames: Sequence[TrainingFrame], box: Box) -> list[TrainingFrame]:
    """The frames with the pixels that the grid cannot explain marked unusable."""
    return [
        replace(
            frame,
            views=tuple(
                replace(view, usable=view.usable & usable_pixels(view.camera, frame.pose, box))
                for view in frame.views
            ),
        )
        for frame in frames
    ]


def usable_pixels(camera: Camera, pose: HeadPose, box: Box) -> Mask:
    """[H, W]: the ray meets the box, and does not pass its floor, below which the matte shows a
    torso that the grid cannot hold."""
    x, y, z = np.stack([box.lower, box.upper], 1)
    corners = np.array([[i, j, k] for j in y for i in x for k in z])  # the floor first
    pixels = camera.project(pose.to_world(corners))
    if not np.isfinite(pixels).all():
        return np.ones((camera.height, camera.width), bool)
    return _hull(camera, pixels) & ~_hull(camera, pixels[:4])


def _seen_extent(pose: HeadPose, view: TrainingView) -> NDArray[np.float64]:
    """[4, 3] corners of the matte's bounding box, in the plane through the head that faces the
    camera; head space. [0, 3] if the matte is empty."""
    camera = view.camera
    foreground = (view.matte >= 128) & view.usable
    if not foreground.any():
        return np.zeros((0, 3))
    rows, columns = (np.flatnonzero(foreground.any(axis)) for axis in (1, 0))
    corners = np.array(
        [[x, y, 1.0] for x in (columns[0], columns[-1] + 1) for y in (rows[0], rows[-1] + 1)]
    )
    depth = camera.w2c[2, :3] @ pose.translation + camera.w2c[2, 3]
    local = corners @ np.linalg.inv(camera.K).T * depth
    return pose.to_head((local - camera.w2c[:3, 3]) @ camera.w2c[:3, :3])


def _hull(camera: Camera, pixels: NDArray) -> NDArray:
    canvas = np.zeros((camera.height, camera.width), np.uint8)
    hull = cv2.convexHull(np.clip(pixels, -1e4, 1e4).astype(np.float32))
    cv2.fillConvexPoly(canvas, np.round(hull - 0.5).astype(np.int32), 1)
    return canvas.astype(bool)


def _load_frame(
    dataset: Dataset, views: list[View], size: int, insides: dict[tuple[str, bytes], Mask]
) -> TrainingFrame:
    pose, expression = views[0].motion
    small = []
    for view in views:
        camera = dataset.cameras[view.camera]
        factor = size / max(camera.width, camera.height)
        camera = camera.resized(round(camera.width * factor), round(camera.height * factor))
        shape = (camera.width, camera.height)
        crop = (view.camera, view.transform.tobytes())
        if crop not in insides:
            inside = dataset.inside(view).astype(np.uint8)
            insides[crop] = cv2.resize(inside, shape, interpolation=cv2.INTER_NEAREST).astype(bool)
        small.append(
            TrainingView(
                camera,
                _shrink(dataset.image(view), shape),
                _shrink(dataset.alpha(view), shape),
                insides[crop],
            )
        )
    return TrainingFrame(
        views[0].sequence,
        views[0].timestep,
        pose,
        torch.from_numpy(expression),
        torch.from_numpy(views[0].landmarks),
        tuple(small),
    )


def _shrink(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
