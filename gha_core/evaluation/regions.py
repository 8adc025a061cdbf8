"""Where in an image a score is taken: the whole image, the head, or mouth and eyes.

The regions come from the tracked face model and the matte, never from the rendering, so every
avatar of a subject is scored on the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.pose import HeadPose

Mask = NDArray[np.bool_]
REGIONS = ("full", "head", "mouth_eyes")

# The bare skull of the face model is widened by this factor about the head's origin before its
# hull is taken, so that hair counts as head; the matte then cuts the hull to the person.
HAIR_MARGIN = 1.35
# The hulls of lips and lids are widened by this fraction of the head's size in the image.
FEATURE_MARGIN = 0.025


@dataclass(frozen=True)
class TrackedFace:
    """The subject's face model as tracking wrote it.

    Attributes:
        neutral: [V, 3] head space; basis: [E, V, 3] expression offsets per unit coefficient.
        regions: name -> [V] bool.
    """

    neutral: NDArray[np.float32]
    basis: NDArray[np.float32]
    faces: NDArray[np.int64]
    regions: dict[str, Mask]

    @staticmethod
    def load(tracking: Path) -> TrackedFace:
        """Read ``identity.safetensors`` of a tracking artifact."""
        tensors = load_file(tracking / "identity.safetensors")
        prefix = "region."
        return TrackedFace(
            neutral=tensors["neutral_vertices"].astype(np.float32),
            basis=tensors["expression_basis"].astype(np.float32),
            faces=tensors["faces"].astype(np.int64),
            regions={
                name.removeprefix(prefix): tensor.astype(bool)
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            },
        )

    def vertices(self, expression: NDArray[np.float32]) -> NDArray[np.float32]:
        """[V, 3] head space with the [E] expression applied."""
        return self.neutral + np.tensordot(expression, self.basis, axes=1).astype(np.float32)


def region_masks(
    face: TrackedFace, camera: Camera, pose: HeadPose, expression: NDArray[np.float32], alpha: Image
) -> dict[str, Mask]:
    """The [H, W] mask of every region in one view.

    - ``full``: every pixel of the image.
    - ``head``: the matte's foreground inside the hull of the projected head without its neck.
    - ``mouth_eyes``: the hulls of the lips and of both eyes' lids, inside ``head``.
    """
    vertices = face.vertices(expression)
    shape = alpha.shape
    neck, scalp = face.regions["neck"], face.regions["scalp"]
    hair = np.concatenate([vertices[~neck], HAIR_MARGIN * vertices[scalp]])
    outline = camera.project(pose.to_world(hair))
    head = _hull(outline, shape, margin=0.0) & (alpha > 127)
    size = float(np.nanmax(outline[:, 1]) - np.nanmin(outline[:, 1]))
    lids = face.regions["eyelids"]
    left = face.neutral[:, 0] > 0
    features = np.zeros(shape, bool)
    for part in (face.regions["lips"], lids & left, lids & ~left):
        pixels = camera.project(pose.to_world(vertices[part]))
        features |= _hull(pixels, shape, FEATURE_MARGIN * size)
    return {"full": np.ones(shape, bool), "head": head, "mouth_eyes": features & head}


def _hull(pixels: NDArray[np.float64], shape: tuple[int, ...], margin: float) -> Mask:
    mask = np.zeros(shape[:2], np.uint8)
    known = pixels[np.isfinite(pixels).all(-1)]
    if len(known) >= 3:
        hull = cv2.convexHull(np.round(known - 0.5).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 1)
        if margin >= 1:
            size = 2 * round(margin) + 1
            disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
            mask = cv2.dilate(mask, disc).astype(np.uint8)
    return mask.astype(bool)
