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
from gha_core.matting.refinement import Background, Refinement, refine, to_floats
from gha_core.matting.trimap import band_radius, clean_mask, make_trimap

Floats = NDArray[np.float32]

# Squared distances in units of the noise, summed over three channels. Pure noise has mean 3, and
# stays below 12 in 99 % of the pixels; averaged over 3 x 3 pixels its standard deviation is 0.8.
_SURE, _POSSIBLE, _ALIKE = 20.0, 7.0, 12.0
_STRIDE = 4  # noise and gain are measured on every fourth pixel of every fourth line
_LEAST_NOISE = 0.5 / 255  # half a level: the rounding of 8 bits


@dataclass(frozen=True)
class Difference:
    """How a frame differs from its plate.

    Attributes:
        gain: [3] exposure of the frame relative to the plate.
        noise: [3] standard deviation on the background, 0..1 of the range.
        distance: [H, W] squared distance from the plate in units of the noise, shadows forgiven.
        smooth_distance: [H, W] its mean over 3 x 3 pixels.
        background: [H, W, 3] the plate at the frame's exposure and in its shadows, 0..1.
    """

    gain: Floats
    noise: Floats
    distance: Floats
    smooth_distance: Floats
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
        mask = clean_mask(found.smooth_distance > _SURE)
        radius = band_radius(*mask.shape)
        # Wisps are fainter than the noise of one pixel, gaps between them are one pixel wide.
        doubtful = np.where(mask, found.distance < _ALIKE, found.smooth_distance > _POSSIBLE)
        trimap = make_trimap(mask, doubtful, 2 * radius, radius, 5 * radius)
        # Where the person has the colour of the wall, the outline is the only opinion left.
        rough = cv2.blur(mask.astype(np.float32), (3, 3)).astype(np.float32)
        trust = np.full(mask.shape, 0.01, np.float32)
        behind = Background(found.background, found.noise)
        return refine(frame, trimap, rough, trust, self._refinement, behind)


def difference(frame: Floats, plate: Floats, shadow: float = 0.2) -> Difference:
    """Compare a frame with its plate, both [H, W, 3] 0..1.

    Gain and noise come from sigma clipping: start with everything that is roughly like the plate,
    measure, keep what is within 2.5 standard deviations, and repeat.
    """
    gain, noise = _gain_and_noise(frame[::_STRIDE, ::_STRIDE], plate[::_STRIDE, ::_STRIDE])
    background = np.clip(gain * plate, 0, 1).astype(np.float32)
    # |f - k b|² = ff - 2 k fb + k² bb, in units of the noise. A shadow scales all channels alike:
    # take the best factor k in the range that is allowed.
    weights = (1 / noise**2).astype(np.float32)
    ff, fb, bb = ((a * b) @ weights for a, b in _pairs(frame, background))
    factor = np.clip(fb / np.maximum(bb, 1e-6), 1 - shadow, 1).astype(np.float32)
    distance = np.maximum(ff - 2 * factor * fb + factor**2 * bb, 0).astype(np.float32)
    smooth = cv2.blur(distance, (3, 3)).astype(np.float32)
    background *= _shade(factor.astype(np.float32), distance < _ALIKE)[..., None]
    return Difference(gain, noise, distance, smooth, background)


def _shade(factor: Floats, seen: NDArray[np.bool_]) -> Floats:
    """[H, W] how dark the background is, also where it is not ``seen``: shadows are soft."""
    size = 8 * band_radius(*seen.shape) + 1
    weight = seen.astype(np.float32)
    total = cv2.blur(weight * (1 - factor), (size, size)) / (cv2.blur(weight, (size, size)) + 0.02)
    return (1 - total).astype(np.float32)


def _pairs(frame: Floats, background: Floats) -> list[tuple[Floats, Floats]]:
    return [(frame, frame), (frame, background), (background, background)]


def _gain_and_noise(frame: Floats, plate: Floats) -> tuple[Floats, Floats]:
    gain = np.ones(3, np.float32)
    noise = np.full(3, 0.08, np.float32)
    bright_enough = plate.mean(-1) > 0.05
    before = -1
    for _ in range(8):
        similar = (np.abs(frame - gain * plate) < 2.5 * noise).all(-1)
        count = int(similar.sum())
        if count < 0.02 * similar.size or count == before:
            break
        before = count
        seen, empty = frame[similar], plate[similar]
        bright = bright_enough[similar]
        if bright.mean() > 0.2:
            gain = np.median(seen[bright] / np.maximum(empty[bright], 0.02), axis=0)
            gain = np.clip(gain, 0.7, 1.4).astype(np.float32)
        spread = 1.4826 * np.median(np.abs(seen - gain * empty), axis=0)
        noise = np.clip(spread, _LEAST_NOISE, 0.08).astype(np.float32)
    return gain, noise
