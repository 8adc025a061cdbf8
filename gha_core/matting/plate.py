"""Matting against a photo of the empty scene.

A pixel is foreground when it differs from the plate by much more than the noise. The noise is not a
parameter: it is measured per channel in every frame, on the pixels that turn out to be background,
together with the exposure of the frame relative to the plate.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.matting.refinement import Refinement, refine, to_floats
from gha_core.matting.trimap import band_radius, clean_mask, make_trimap

Floats = NDArray[np.float32]

# Squared distances in units of the noise, summed over three channels and averaged over 3 x 3
# pixels. Pure noise has mean 3 and standard deviation ~0.8.
_SURE, _POSSIBLE = 20.0, 7.0


@dataclass(frozen=True)
class Difference:
    """How a frame differs from its plate.

    Attributes:
        gain: [3] exposure of the frame relative to the plate.
        noise: [3] standard deviation on the background, 0..1 of the range.
        distance: [H, W] squared distance from the plate in units of the noise, shadows forgiven.
        background: [H, W, 3] the plate at the frame's exposure, 0..1.
    """

    gain: Floats
    noise: Floats
    distance: Floats
    background: Floats


class PlateMatting:
    """Alpha of one camera's frames.

    Args:
        plate: [H, W, 3] uint8, the empty scene.
        refinement: of the band around the outline.
        shadow: how much darker, as a fraction, the background may be in a frame.
    """

    def __init__(
        self, plate: Image, refinement: Refinement = "guided", shadow: float = 0.2
    ) -> None:
        self._plate = to_floats(plate)
        self._refinement: Refinement = refinement
        self._shadow = shadow

    def __call__(self, image: Image) -> Floats:
        """[H, W] alpha 0..1 of an [H, W, 3] uint8 frame."""
        frame = to_floats(image)
        found = difference(frame, self._plate, self._shadow)
        mask = clean_mask(found.distance > _SURE)
        trimap = make_trimap(mask, found.distance > _POSSIBLE, band_radius(*mask.shape))
        # Distance tells that there is something, not how much of it: only a weak opinion.
        rough = np.clip((found.distance - _POSSIBLE) / (2 * _SURE), 0, 1).astype(np.float32)
        trust = np.full(mask.shape, 0.02, np.float32)
        return refine(frame, trimap, rough, trust, self._refinement, found.background)


def difference(frame: Floats, plate: Floats, shadow: float = 0.2) -> Difference:
    """Compare a frame with its plate, both [H, W, 3] 0..1.

    Gain and noise come from sigma clipping: start with everything that is roughly like the plate,
    measure, keep what is within 2.5 standard deviations, and repeat.
    """
    gain = np.ones(3, np.float32)
    noise = np.full(3, 0.08, np.float32)
    for _ in range(8):
        apart = np.abs(frame - gain * plate) / noise
        background = (apart < 2.5).all(-1)
        if background.mean() < 0.02:
            break
        seen, empty = frame[background], plate[background]
        bright = empty.mean(-1) > 0.05
        if bright.mean() > 0.2:
            gain = np.median(seen[bright] / np.maximum(empty[bright], 0.02), axis=0)
            gain = np.clip(gain, 0.7, 1.4).astype(np.float32)
        spread = 1.4826 * np.median(np.abs(seen - gain * empty), axis=0)
        # Half a level: the rounding of 8 bits.
        noise = np.clip(spread, 0.5 / 255, 0.08).astype(np.float32)
    background_image = np.clip(gain * plate, 0, 1).astype(np.float32)
    weights = 1 / noise**2
    away = frame - background_image
    distance = (away**2 * weights).sum(-1)
    # A shadow scales all channels alike: take the best factor in the range that is allowed.
    along = (frame * background_image * weights).sum(-1)
    norm = (background_image**2 * weights).sum(-1)
    factor = np.clip(along / np.maximum(norm, 1e-6), 1 - shadow, 1)
    shaded = ((frame - factor[..., None] * background_image) ** 2 * weights).sum(-1)
    # Shadows are soft: what has an edge against its surroundings is an object.
    distance = np.minimum(distance, shaded)
    distance = cv2.blur(distance.astype(np.float32), (3, 3)).astype(np.float32)
    return Difference(gain, noise, distance, background_image)
