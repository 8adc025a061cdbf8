"""Where in an image a score is taken: the whole image, the head, or mouth and eyes.

The regions come from the tracked face model and the matte, never from the rendering, so every
avatar of a subject is scored on the same pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.pose import HeadPose
from gha_core.tracked_face import TrackedFace

Mask = NDArray[np.bool_]
REGIONS = ("full", "head", "mouth_eyes")

# The bare skull of the face model is widened by this factor about the head's origin before its
# hull is taken, so that hair counts as head; the matte then cuts the hull to the person.
HAIR_MARGIN = 1.35
# The hulls of lips and lids are widened by this fraction of the head's size in the image.
FEATURE_MARGIN = 0.025


def region_masks(
    face: TrackedFace, camera: Camera, pose: HeadPose, expression: NDArray[np.float32], alpha: Image
) -> dict[str, Mask]:
    """The [H, W] mask of every region in one view.

    - ``full``: every pixel of the image.
    - ``head``: the matte's foreground inside the hull of the projected head without its neck.
    - ``mouth_eyes``: the hulls of the lips and of both eyes' lids, inside ``head``.
    """
    vertices = face.deformed(torch.from_numpy(expression)).numpy()
    parts = {name: inside.numpy() for name, inside in face.regions.items()}
    shape = alpha.shape
    neck, scalp = parts["neck"], parts["scalp"]
    hair = np.concatenate([vertices[~neck], HAIR_MARGIN * vertices[scalp]])
    outline = camera.project(pose.to_world(hair))
    head = _hull(outline, shape, margin=0.0) & (alpha > 127)
    size = float(np.nanmax(outline[:, 1]) - np.nanmin(outline[:, 1]))
    lids = parts["eyelids"]
    left = face.vertices[:, 0].numpy() > 0
    features = np.zeros(shape, bool)
    for part in (parts["lips"], lids & left, lids & ~left):
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
