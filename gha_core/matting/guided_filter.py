"""The guided filter (He, Sun, Tang 2010) with a colour guide and weights per pixel.

In every window the matte is fitted as a linear function of colour, by weighted least squares; each
pixel takes the mean of the functions of the windows around it. Edges of the guide become edges of
the result, at the cost of a handful of box filters.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def guided_filter(
    guide: Floats,
    values: Floats,
    weights: Floats,
    radius: int,
    epsilon: float,
    where: NDArray[np.bool_] | None = None,
) -> Floats:
    """Smooth ``values`` along the edges of ``guide``.

    Args:
        guide: [H, W, 3] colours, 0..1.
        values: [H, W] what is filtered.
        weights: [H, W] >= 0, how far each value is to be trusted.
        radius: of the windows, px.
        epsilon: variance of colour, 0..1 squared, below which a window counts as flat.
        where: [H, W] pixels of interest, the others of the result are 0; saves time if few.

    Returns:
        [H, W] float32.
    """
    size = (2 * radius + 1, 2 * radius + 1)

    def box(*channels: Floats) -> Floats:
        # Four channels at a time are what OpenCV filters fastest.
        return cv2.boxFilter(
            cv2.merge(channels), cv2.CV_32F, size, borderType=cv2.BORDER_REFLECT_101
        ).astype(np.float32, copy=False)

    if where is None:
        windows = np.ones(values.shape, bool)
    else:
        windows = cv2.dilate(where.astype(np.uint8), np.ones(size, np.uint8)).astype(bool)
    r, g, b = (np.ascontiguousarray(guide[..., k]) for k in range(3))
    w = weights + np.float32(1e-6)
    wr, wg, wb, wv = w * r, w * g, w * b, w * values
    total, r1, g1, b1 = box(w, wr, wg, wb)[windows].T
    r1, g1, b1 = r1 / total, g1 / total, b1 / total
    rr, rg, rb, gg = box(wr * r, wr * g, wr * b, wg * g)[windows].T / total
    gb, bb, v1, rv = box(wg * b, wb * b, wv, wv * r)[windows].T / total
    gv, bv = box(wv * g, wv * b)[windows].T / total
    slope = _solve_symmetric(
        (rr - r1 * r1 + epsilon, rg - r1 * g1, rb - r1 * b1),
        (gg - g1 * g1 + epsilon, gb - g1 * b1),
        bb - b1 * b1 + epsilon,
        (rv - r1 * v1, gv - g1 * v1, bv - b1 * v1),
    )
    offset = v1 - slope[0] * r1 - slope[1] * g1 - slope[2] * b1

    # Windows that know something speak louder in the second mean, too.
    planes = [np.zeros(values.shape, np.float32) for _ in range(5)]
    for plane, part in zip(planes, (*slope, offset, np.ones_like(offset)), strict=True):
        plane[windows] = part * total
    x, y, z, c = cv2.split(box(*planes[:4]))
    result = (x * r + y * g + z * b + c) / np.maximum(box(planes[4]), np.float32(1e-12))
    return (result if where is None else np.where(where, result, 0)).astype(np.float32)


def _solve_symmetric(
    first: tuple[Floats, Floats, Floats],
    second: tuple[Floats, Floats],
    zz: Floats,
    right: tuple[Floats, Floats, Floats],
) -> tuple[NDArray, NDArray, NDArray]:
    """Solve many 3 x 3 systems by cofactors; the matrix as the rows of its upper triangle.

    In double precision: where everything is grey the determinant is epsilon squared.
    """
    xx, xy, xz = (part.astype(np.float64) for part in first)
    yy, yz = (part.astype(np.float64) for part in second)
    zz = zz.astype(np.float64)
    u, v, w = right
    a, b, c = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    d, e, f = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
    inverse = 1 / (xx * a + xy * b + xz * c)
    return (
        (a * u + b * v + c * w) * inverse,
        (b * u + d * v + e * w) * inverse,
        (c * u + e * v + f * w) * inverse,
    )
