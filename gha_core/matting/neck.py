"""Where a matte's head ends: the neck is the waist between two wider parts of the silhouette."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_WAIST = 0.9  # a row narrower than this share of what is above and below is a neck
_HEAD = 0.1  # a head is at least this share of the image high


def neck_row(alpha: Floats) -> int | None:
    """The narrowest row of the neck in an [H, W] matte of an upright person.

    The row whose width is least in proportion to the widest above it and the widest below it.
    None without one: long hair or a high collar hides it, or no shoulders are in the picture.
    """
    width = alpha.sum(axis=1)
    smooth = cv2.GaussianBlur(width[:, None], (0, 0), max(1.0, len(width) / 100))[:, 0]
    above = np.maximum.accumulate(smooth)
    below = np.maximum.accumulate(smooth[::-1])[::-1]
    waist = smooth / np.maximum(np.minimum(above, below), 1e-6)
    occupied = np.flatnonzero(width > 1)
    if not len(occupied):
        return None
    waist[: occupied[0] + round(_HEAD * len(width))] = 1
    waist[occupied[-1] :] = 1
    row = int(waist.argmin())
    return row if waist[row] < _WAIST else None


def cut_at_neck(alpha: Floats, row: int) -> Floats:
    """The matte without what lies below ``row``, faded out over a hundredth of the height."""
    height = len(alpha)
    fade = max(1.0, height / 100)
    keep = np.clip((row - np.arange(height)) / fade + 0.5, 0, 1).astype(np.float32)
    return alpha * keep[:, None]
