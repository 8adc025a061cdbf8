"""sRGB and the light it stands for (IEC 61966-2-1).

Light adds up in half-covered pixels, sRGB values do not: half a strand of black hair before a grey
wall is far brighter in sRGB than the mean of both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def to_light(srgb: NDArray[np.floating]) -> Floats:
    """sRGB 0..1, any shape, to linear light 0..1."""
    low, high = srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
    return np.where(srgb <= 0.04045, low, high).astype(np.float32)


def to_srgb(light: NDArray[np.floating]) -> Floats:
    """Linear light >= 0, any shape, to sRGB."""
    low, high = 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
    return np.where(light <= 0.0031308, low, high).astype(np.float32)


def light_per_level(srgb: NDArray[np.floating]) -> Floats:
    """Derivative of :func:`to_light`."""
    high = (2.4 / 1.055) * ((srgb + 0.055) / 1.055) ** 1.4
    return np.where(srgb <= 0.04045, 1 / 12.92, high).astype(np.float32)
