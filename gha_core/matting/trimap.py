"""From a rough mask to a trimap: one person without holes or crumbs, and a band of doubt around."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

BACKGROUND, UNKNOWN, FOREGROUND = 0, 128, 255


def band_radius(height: int, width: int) -> int:
    """Half the width, px, of the band of doubt around the mask's edge: 3 px at 256²."""
    return max(2, round(min(height, width) / 85))


def clean_mask(mask: Mask, small_hole: float = 0.01) -> Mask:
    """The largest connected piece of ``mask``, its holes filled where they are small.

    Args:
        small_hole: area of the holes to fill, as a fraction of the image; a larger one may be real
            (between an arm and the body).
    """
    rough = mask.astype(np.uint8)
    # Cut one-pixel bridges to crumbs before components are counted, and close cracks.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    closed = cv2.morphologyEx(rough, cv2.MORPH_CLOSE, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
    if count < 2:
        return np.zeros_like(mask)
    largest = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    count, holes, stats, _ = cv2.connectedComponentsWithStats(
        (~largest).astype(np.uint8), connectivity=4
    )
    height, width = mask.shape
    x, y, w, h, area = stats[:, :5].T
    touches_edge = (x == 0) | (y == 0) | (x + w == width) | (y + h == height)
    fill = ~touches_edge & (area < small_hole * mask.size)
    fill[0] = False  # label 0 is the person
    return largest | fill[holes]


def make_trimap(
    mask: Mask, doubtful: Mask, inner: int, outer: int, reach: int
) -> NDArray[np.uint8]:
    """[H, W] of BACKGROUND, UNKNOWN, FOREGROUND.

    Args:
        mask: the person, cleaned.
        doubtful: pixels that do not look like what the mask says they are: wisps of hair outside,
            gaps between them inside.
        inner, outer: how far the band of doubt reaches inside and outside the mask, px.
        reach: up to which distance from the outline doubtful pixels join the band, px.
    """
    # One distance costs as much as one dilation by a small disc, and serves for all radii.
    inside, outside = _depth(mask), _depth(~mask)
    within = inside > inner
    around = mask | (outside <= outer)
    near_outline = np.where(mask, inside, outside) <= reach
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    joining = cv2.dilate((doubtful & near_outline).astype(np.uint8), cross).astype(bool)
    trimap = np.where(within, FOREGROUND, BACKGROUND).astype(np.uint8)
    trimap[(around & ~within) | (joining & near_outline)] = UNKNOWN
    return trimap


def _depth(mask: Mask) -> NDArray[np.float32]:
    """[H, W] distance, px, to the nearest pixel that is not in the mask; the picture's edge is no
    outline."""
    if mask.all():
        return np.full(mask.shape, np.inf, np.float32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    return distance.astype(np.float32, copy=False)
