"""Where to crop: one square per camera, fixed for the whole capture, with the head inside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, convergence
from gha_core.capture.crop import Crop, square_around
from gha_core.errors import CaptureError
from gha_core.landmarks import FaceBox, FaceFinder, main_face

# Around a detector's box (brows to chin) of side 1: how far hair, ears and the neck reach.
_HAIR, _NECK, _SIDE = 0.75, 0.35, 0.5
# Side of the crop in detector boxes, for a head that keeps still.
_FACE_MARGIN = 2.3


def frame_rig(cameras: Sequence[Camera], size: int) -> tuple[dict[str, Crop], list[str]]:
    """Squares as large as the photo's shorter side, around what all cameras look at.

    Returns:
        the crop of each camera by name, and notes about cameras that look elsewhere.

    Raises:
        CaptureError: the optical axes are parallel, or meet behind the cameras.
    """
    target = _convergence(cameras)
    behind = [
        camera.name
        for camera in cameras
        if (camera.w2c[:3, :3] @ target + camera.w2c[:3, 3])[2] <= 0
    ]
    if len(behind) * 2 > len(cameras):
        raise CaptureError(
            f"The optical axes of cameras {', '.join(behind)} meet behind them. Are the matrices "
            "camera-to-world, or in OpenGL axes? Give OpenCV world-to-camera ones."
        )
    crops, notes = {}, []
    for camera in cameras:
        centre = camera.project(target)
        inside = (centre >= 0).all() and (centre <= [camera.width, camera.height]).all()
        if not inside:  # also when NaN, i.e. behind
            notes.append(
                f"Camera {camera.name} does not see the point that the rig looks at; its crop is "
                "the middle of its photo. Check its calibration."
            )
            centre = np.array([camera.width / 2, camera.height / 2])
        side = min(camera.width, camera.height)
        crops[camera.name] = square_around(centre, side, camera.width, camera.height, size)
    return crops, notes


def frame_tracked(
    cameras: Sequence[Camera], heads: NDArray[np.float64], radius: float, size: int
) -> dict[str, Crop]:
    """Per camera the square that holds a tracked head in all timesteps, at most as large as the
    photo's shorter side.

    Args:
        heads: [N, 3] the head's centre in the world, per timestep.
        radius: of a ball that holds the head, world units.
    """
    crops = {}
    for camera in cameras:
        depth = (heads @ camera.w2c[:3, :3].T + camera.w2c[:3, 3])[:, 2]
        seen = depth > radius
        shorter = min(camera.width, camera.height)
        centre, side = np.array([camera.width, camera.height]) / 2, float(shorter)
        if seen.any():
            pixels = camera.project(heads[seen])
            reach = (camera.K[0, 0] * radius / depth[seen])[:, None]
            # Percentiles: one timestep that was tracked wrongly must not decide the framing.
            low = np.percentile(pixels - reach, 2, axis=0)
            high = np.percentile(pixels + reach, 98, axis=0)
            centre, side = (low + high) / 2, min(float((high - low).max()), shorter)
        crops[camera.name] = square_around(centre, side, camera.width, camera.height, size)
    return crops


def _convergence(cameras: Sequence[Camera]) -> NDArray[np.float64]:
    """Where the axes meet, without those that miss the point by far more than most."""
    everyone = convergence(list(cameras))
    misses = [np.linalg.norm(np.cross(each.forward, everyone - each.centre)) for each in cameras]
    limit = 2.5 * np.median(misses)
    agreeing = [each for each, miss in zip(cameras, misses, strict=True) if miss <= limit]
    return convergence(agreeing) if len(agreeing) >= 3 else everyone


def frame_face(images: Sequence[Image], size: int, what: str) -> Crop:
    """One square for a clip that holds the head, hair and chin included, wherever it moves.

    Args:
        images: samples of the clip, of one size.
        what: the clip, for the sentence.

    Raises:
        CaptureError: no image shows a face.
    """
    finder = FaceFinder()
    height, width = images[0].shape[:2]
    found = _one_person([finder.find(image) for image in images], width, height)
    if not len(found):
        raise CaptureError(
            f"No face was found in any of {len(images)} frames sampled from {what}. If there is "
            "one, say where with ingest.crop: [x, y, side]."
        )
    centre, side = _head_square(found)
    return square_around(centre, side, width, height, size)


def _one_person(faces: Sequence[Sequence[FaceBox]], width: int, height: int) -> NDArray[np.float64]:
    """[N, 4] boxes of the same person in those of the pictures that show one: in each the face that
    is nearest to the one before, from the picture with the clearest main face to both ends."""
    mains = [main_face(list(each), width, height) for each in faces]
    clearest = max(
        range(len(faces)), key=lambda n: -1.0 if (main := mains[n]) is None else main.size
    )
    start = mains[clearest]
    if start is None:
        return np.zeros((0, 4))
    boxes = [start.box]
    for order in (faces[clearest + 1 :], faces[clearest::-1][1:]):
        last = start
        for found in order:
            if found:
                last = min(found, key=partial(_apart, last))
                boxes.append(last.box)
    return np.array(boxes)


def _apart(a: FaceBox, b: FaceBox) -> float:
    """How unlike in place and size two faces are."""
    return float(np.linalg.norm(a.centre - b.centre) / a.size + abs(np.log(a.size / b.size)))


def _head_square(boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centre and side of a square around the heads of [N, 4] face boxes."""
    x0, y0, x1, y1 = boxes.T
    face = np.maximum(x1 - x0, y1 - y0)
    middle = (x0 + x1) / 2
    # Percentiles, because a single false detection must not decide the framing.
    low = np.percentile([middle - (0.5 + _SIDE) * face, y0 - _HAIR * face], 3, axis=1)
    high = np.percentile([middle + (0.5 + _SIDE) * face, y1 + _NECK * face], 97, axis=1)
    side = max(_FACE_MARGIN * float(np.median(face)), float((high - low).max()))
    return (low + high) / 2, side
