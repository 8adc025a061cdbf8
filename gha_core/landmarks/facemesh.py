"""478 landmarks per face: MediaPipe's FaceMesh (Kartynnik et al. 2019) and iris model (Ablavatski
et al. 2020), run from their published weights.

Points 0..467 are FaceMesh's, 468..472 the subject's right iris and 473..477 the left one: centre,
then nasal, upper, temporal and lower edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.assets import ASSETS
from gha_core.landmarks import face_boxes
from gha_core.landmarks.detection import Detection
from gha_core.landmarks.face_boxes import FaceBox, FaceFinder, main_face
from gha_core.landmarks.models import Model
from gha_core.landmarks.points import LANDMARKS, LEFT_EYE, MESH_LANDMARKS, RIGHT_EYE
from gha_core.landmarks.regions import Region, sample, upright

Array = NDArray[np.float64]

DETECTOR = "facemesh"
# The iris model's eye contour in its own order: lower lid from the outer to the inner corner, upper
# lid likewise. Found, and tested, by matching the points of both models on images.
_CORNERS_RIGHT, _CORNERS_LEFT = (33, 133), (263, 362)  # outer, inner
_LIDS_RIGHT = (*RIGHT_EYE[:9], *RIGHT_EYE[:8:-1])
_LIDS_LEFT = (*LEFT_EYE[:9], *LEFT_EYE[:8:-1])

_MESH_INPUT, _IRIS_INPUT = 192, 64
_FACE_MARGIN, _EYE_MARGIN = 1.5, 2.3  # region side per extent, as the models were trained


@dataclass(frozen=True)
class _Mesh:
    points: Array  # [468, 3] image pixels; z in the same scale, away from the camera
    score: float


class FaceMeshDetector:
    """Finds the subject's face and its landmarks. One object may be used from many threads.

    Args:
        min_face_score: of the face detector and of the mesh model, below which there is no face.
    """

    name = DETECTOR
    licence = ASSETS[DETECTOR].licence

    # How the region is moved for the passes whose mean is the result: dx, dy, scale, turn (rad).
    _VARIATIONS = (
        (0.0, 0.0, 1.0, 0.0),
        (0.02, 0.01, 0.96, 0.06),
        (-0.02, 0.01, 1.04, -0.06),
    )

    def __init__(self, min_face_score: float = 0.5) -> None:
        self.min_face_score = min_face_score
        self._finder = FaceFinder(min_face_score)
        self._mesh = Model("facemesh")
        self._iris = Model("iris")

    def find_faces(self, image: Image) -> list[FaceBox]:
        """All faces in ``image`` (H x W x 3 uint8 sRGB), best score first."""
        return self._finder.find(image)

    def detect(self, image: Image) -> Detection | None:
        """The landmarks of the main face in ``image`` (H x W x 3 uint8 sRGB), None without one."""
        height, width = image.shape[:2]
        face = main_face(self._finder.find(image), width, height)
        if face is None:
            return None
        region = upright(
            face.box.reshape(2, 2),
            face.keypoints[face_boxes.RIGHT_EYE],
            face.keypoints[face_boxes.LEFT_EYE],
            _FACE_MARGIN,
        )
        # The box only says roughly where the face is; the points themselves say it well.
        first = self._run_mesh(image, region)
        if first.score < self.min_face_score:
            return None
        region = _region_of(first.points)
        passes = [self._run_mesh(image, region.moved(*move)) for move in self._VARIATIONS]
        meshes = np.stack([item.points for item in passes])
        mesh = meshes.mean(axis=0)
        score = min(item.score for item in passes)
        if score < self.min_face_score:
            return None

        points = np.concatenate([mesh[:, :2], np.zeros((LANDMARKS - MESH_LANDMARKS, 2))])
        for side, (contour, corners, mirrored) in enumerate(
            (
                (_LIDS_RIGHT, _CORNERS_RIGHT, False),
                (_LIDS_LEFT, _CORNERS_LEFT, True),
            )
        ):
            lids, iris = self._run_iris(image, mesh[list(corners), :2], mirrored)
            points[list(contour)] = lids
            points[MESH_LANDMARKS + 5 * side : MESH_LANDMARKS + 5 * side + 5] = iris

        facing, yaw = _facing(mesh)
        spread = float(np.sqrt(meshes[..., :2].var(axis=0).sum(axis=-1).mean())) / region.size
        confidence = score * _trust(spread, yaw)
        return Detection(
            points.astype(np.float32),
            confidence,
            np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float32),
            facing.astype(np.float32),
        )

    def _run_mesh(self, image: Image, region: Region) -> _Mesh:
        pixels = sample(image, region, _MESH_INPUT, replicate=True)
        outputs = self._mesh(pixels.astype(np.float32) / np.float32(255))
        logit, raw = sorted((item.ravel() for item in outputs), key=len)
        local = raw.astype(float).reshape(MESH_LANDMARKS, 3) / _MESH_INPUT
        plane = region.to_image(local[:, :2])
        points = np.concatenate([plane, local[:, 2:] * region.size], axis=1)
        return _Mesh(points, float(1 / (1 + np.exp(-float(logit[0])))))

    def _run_iris(self, image: Image, corners: Array, mirrored: bool) -> tuple[Array, Array]:
        """[16, 2] lids and [5, 2] iris. The model knows right eyes; left ones are mirrored."""
        outer, inner = corners
        start, end = (inner, outer) if mirrored else (outer, inner)
        region = upright(corners, start, end, _EYE_MARGIN)
        pixels = sample(image, region, _IRIS_INPUT, replicate=True).astype(np.float32) / np.float32(
            255
        )
        if mirrored:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        outputs = self._iris(pixels)
        iris, contour = sorted((item.ravel() for item in outputs), key=len)
        local = np.concatenate([contour.reshape(-1, 3)[:16, :2], iris.reshape(-1, 3)[:, :2]])
        local = local.astype(float) / _IRIS_INPUT
        if mirrored:
            local[:, 0] = 1 - local[:, 0]
        points = region.to_image(local)
        return points[:16], points[16:]


def _region_of(mesh: Array) -> Region:
    """The region to look at when the points are known."""
    points = mesh[:, :2]
    return upright(points, points[_CORNERS_RIGHT[0]], points[_CORNERS_LEFT[0]], _FACE_MARGIN)


# Points on the outline of the face: at the right and left ear, forehead, chin.
_RIGHT, _LEFT, _TOP, _BOTTOM = 234, 454, 10, 152


def _facing(mesh: Array) -> tuple[Array, float]:
    """[478] cosine between each point's outward direction and the direction to the camera (0 where
    turned away), and the angle (rad) between the face's forward axis and the camera's.

    The face is taken for half an ellipsoid between its outline points: coarse around the nose,
    enough to tell the hidden cheek from the seen one.
    """
    across, up = mesh[_LEFT] - mesh[_RIGHT], mesh[_TOP] - mesh[_BOTTOM]
    forward = np.cross(across, up)  # in y-down, z-away coordinates this points to the camera
    forward /= np.linalg.norm(forward)
    right_up = up / np.linalg.norm(up)
    side = np.cross(right_up, forward)
    axes = np.stack([side, right_up, forward])
    radii = np.array([np.linalg.norm(across), np.linalg.norm(up), np.linalg.norm(across)]) / 2
    centre = (mesh[_RIGHT] + mesh[_LEFT]) / 2
    normals = ((mesh - centre) @ axes.T / radii**2) @ axes
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    facing = np.clip(-normals[:, 2], 0, 1)
    irises = [facing[list(corners)].mean() for corners in (_CORNERS_RIGHT, _CORNERS_LEFT)]
    return np.concatenate([facing, np.repeat(irises, 5)]), float(np.arccos(-forward[2]))


def _trust(spread: float, yaw: float) -> float:
    """What is left of the mesh model's score, which stays near 1 as long as there is any face.

    Args:
        spread: how far the passes disagree, as a fraction of the region's side.
        yaw: angle (rad) between face and camera.
    """
    # Measured on renders, mean error of the points that are seen, in face widths: 2 % at 30 degrees
    # (trust 0.9), 3 % at 45 (0.65), 4 % at 60 (0.4), 7 % at 75 (0.2). The model's own yaw saturates
    # near 60 degrees, and there its passes begin to disagree.
    agreement = float(np.exp(-((spread / 0.011) ** 2)))
    turned = float(np.clip((np.degrees(yaw) - 42) / 33, 0, 1))
    return agreement * (1 - 0.9 * turned)
