"""Finding faces: the BlazeFace detectors (Bazarevsky et al. 2019), short and full range.

A single-shot detector: for each anchor, a point of a regular grid, the network gives a score and,
relative to the anchor and in pixels of its input, a box and six key points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.landmarks.models import Model
from gha_core.landmarks.regions import Region, sample

Array = NDArray[np.float64]

RIGHT_EYE, LEFT_EYE, NOSE_TIP, MOUTH, RIGHT_EAR, LEFT_EAR = range(6)
"""Order of the key points; right and left are the subject's."""


@dataclass(frozen=True)
class FaceBox:
    """One face: ``box`` [4] x0 y0 x1 y1 (brows to chin) and ``keypoints`` [6, 2] in pixels."""

    box: Array
    keypoints: Array
    score: float

    @property
    def size(self) -> float:
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def centre(self) -> Array:
        return (self.box[:2] + self.box[2:]) / 2


@dataclass(frozen=True)
class _Network:
    model: Model
    input_size: int
    grids: tuple[tuple[int, int], ...]
    """(cells per side, anchors per cell) of each layer of anchors, in the order of the outputs."""

    def anchors(self) -> Array:
        """[A, 2] in units of the input's side."""
        layers = []
        for cells, count in self.grids:
            centres = (np.arange(cells) + 0.5) / cells
            y, x = np.meshgrid(centres, centres, indexing="ij")
            layers.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2), count, axis=0))
        return np.concatenate(layers)


class FaceFinder:
    """Finds faces of any size, from a few dozen pixels to larger than the image.

    Args:
        min_score: of the detector, 0..1.
    """

    def __init__(self, min_score: float = 0.5) -> None:
        self.min_score = min_score
        # Input 128 px: stride 8 with 2 anchors per cell, then three layers of stride 16 with 2.
        self._short = _Network(Model("face_detector_short"), 128, ((16, 2), (8, 6)))
        # Input 192 px: stride 4, one anchor per cell.
        self._full = _Network(Model("face_detector_full"), 192, ((48, 1),))

    def find(self, image: Image) -> list[FaceBox]:
        """Faces in ``image`` (H x W x 3 uint8 sRGB), best score first."""
        height, width = image.shape[:2]
        whole = Region(width / 2, height / 2, max(width, height))
        faces = self._detect(self._short, image, whole)
        if not faces:
            # A face that fills the image is found once there is room around it.
            faces = self._detect(self._short, image, whole.moved(0, 0, 1.6, 0))
        if not faces:
            faces = self._detect(self._full, image, whole)
        if not faces:
            faces = self._in_tiles(image)
        return faces

    def _in_tiles(self, image: Image) -> list[FaceBox]:
        """Small faces, searched in overlapping squares of half the longer side, not below the
        detector's input size."""
        height, width = image.shape[:2]
        side = max(width, height) / 2
        if side < self._full.input_size:
            return []
        found = []
        for y in _starts(height, side):
            for x in _starts(width, side):
                region = Region(x + side / 2, y + side / 2, side)
                found += self._detect(self._full, image, region)
        return _merge(found)

    def _detect(self, network: _Network, image: Image, region: Region) -> list[FaceBox]:
        pixels = sample(image, region, network.input_size)
        outputs = network.model(pixels.astype(np.float32) / 127.5 - 1)
        raw, logits = sorted(outputs, key=lambda item: -item.shape[-1])
        scores = 1 / (1 + np.exp(-np.clip(logits[:, 0].astype(float), -50, 50)))
        keep = np.flatnonzero(scores >= self.min_score)
        if not len(keep):
            return []
        anchors = network.anchors()[keep]
        values = raw[keep].astype(float).reshape(len(keep), 8, 2) / network.input_size
        centres, sizes = values[:, 0] + anchors, values[:, 1]
        corners = np.stack([centres - sizes / 2, centres + sizes / 2], axis=1)
        corners = region.to_image(corners).reshape(-1, 4)
        keypoints = region.to_image(values[:, 2:] + anchors[:, None])
        return _merge(
            [
                FaceBox(box, points, float(score))
                for box, points, score in zip(corners, keypoints, scores[keep], strict=True)
            ]
        )


def find_faces(image: Image, min_score: float = 0.5) -> list[FaceBox]:
    """Faces in ``image`` (H x W x 3 uint8 sRGB), best score first.

    Loads the models; for many images make one :class:`FaceFinder`.
    """
    return FaceFinder(min_score).find(image)


def main_face(faces: list[FaceBox], width: int, height: int) -> FaceBox | None:
    """The subject among several faces: large, and near the middle of the image."""

    def weight(face: FaceBox) -> float:
        away = np.linalg.norm((face.centre - [width / 2, height / 2]) / max(width, height))
        return face.size * float(np.exp(-2 * away)) * face.score

    return max(faces, key=weight, default=None)


def _starts(length: int, side: float) -> list[float]:
    """Offsets of windows of ``side`` that cover ``length`` and overlap by a half or more."""
    if length <= side:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return np.linspace(0, length - side, count).tolist()


def _merge(faces: list[FaceBox], min_overlap: float = 0.3) -> list[FaceBox]:
    """Overlapping finds are one face: their mean, weighted by score, which jitters less than the
    best alone."""
    faces = sorted(faces, key=lambda face: -face.score)
    merged = []
    while faces:
        overlap = [_overlap(faces[0].box, face.box) for face in faces]
        same = [
            face
            for face, o in zip(faces, overlap, strict=True)
            if o > min_overlap or face is faces[0]
        ]
        faces = [face for face in faces if not any(face is other for other in same)]
        weights = np.array([face.score for face in same])
        merged.append(
            FaceBox(
                np.average([face.box for face in same], axis=0, weights=weights),
                np.average([face.keypoints for face in same], axis=0, weights=weights),
                same[0].score,
            )
        )
    return merged


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common
    return common / union if union > 0 else 0.0
