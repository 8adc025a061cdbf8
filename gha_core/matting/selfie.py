"""Matting without a plate: MediaPipe's selfie segmentation, refined at the outline."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.landmarks.models import Model
from gha_core.matting.refinement import Refinement, refine, to_floats
from gha_core.matting.trimap import band_radius, clean_mask, make_trimap

Floats = NDArray[np.float32]

_INPUT = 256


class SelfieMatting:
    """Alpha of any frame that shows one person near the camera. May be used from many threads.

    Args:
        refinement: of the band around the outline.
    """

    def __init__(self, refinement: Refinement = "guided") -> None:
        self._model = Model("selfie_segmentation")
        self._refinement: Refinement = refinement

    def __call__(self, image: Image) -> Floats:
        """[H, W] alpha 0..1 of an [H, W, 3] uint8 frame."""
        probability = self.probability(image)
        mask = clean_mask(probability > 0.5)
        radius = band_radius(*mask.shape)
        doubtful = (probability > 0.1) & ~mask
        trimap = make_trimap(mask, doubtful, radius, radius, 4 * radius)
        trust = np.full(mask.shape, 0.5, np.float32)
        rough = _settled(probability, radius)
        return refine(to_floats(image), trimap, rough, trust, self._refinement)

    def probability(self, image: Image) -> Floats:
        """[H, W] that a pixel belongs to a person, 0..1."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (_INPUT, _INPUT), interpolation=cv2.INTER_AREA)
        (output,) = self._model(to_floats(small.astype(np.uint8, copy=False)))
        resized = cv2.resize(output[..., 0], (width, height), interpolation=cv2.INTER_CUBIC)
        return np.clip(resized, 0, 1).astype(np.float32)


def _settled(probability: Floats, radius: int) -> Floats:
    """The network dithers where it is undecided; make that one edge instead of a fuzz."""
    smooth = cv2.GaussianBlur(probability, (0, 0), 0.5 * radius)
    return np.clip((smooth - 0.35) / 0.3, 0, 1).astype(np.float32)
