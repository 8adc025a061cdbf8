"""Colour correction by a polynomial of linear RGB (Cheung et al. 2004), as NeRSemble calibrates it.

sRGB decode -> all products of R, G and B that the matrix has columns for -> matrix -> sRGB encode.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.errors import CaptureError

# Products of the linear channels in the published order: "rrg" is R²G, "" the constant 1. A matrix
# of n columns uses the row of n products.
_LINEAR, _MIXED, _SQUARES, _CUBES = "r g b", "rg rb gb", "rr gg bb", "rrr ggg bbb"
_CYCLE, _OTHER_CYCLE, _MIXED_FOURTH = "rrg ggb bbr", "rrb ggr bbg", "rrgb rggb rgbb"
_QUADRATIC = f"{_LINEAR} {_MIXED} {_SQUARES} rgb"
_CUBIC = f"{_QUADRATIC} {_CYCLE} {_OTHER_CYCLE} {_CUBES}"
_FOURTH = f"rrrg rrrb gggr gggb bbbr bbbg {_MIXED_FOURTH} rrgg rrbb ggbb rrrr gggg bbbb"
_EXPANSIONS: dict[int, list[str]] = {
    3: _LINEAR.split(),
    4: [*_LINEAR.split(), ""],
    5: [*f"{_LINEAR} rgb".split(), ""],
    7: [*f"{_LINEAR} {_MIXED}".split(), ""],
    8: [*f"{_LINEAR} {_MIXED} rgb".split(), ""],
    10: [*f"{_LINEAR} {_MIXED} {_SQUARES}".split(), ""],
    11: [*_QUADRATIC.split(), ""],
    14: [*f"{_QUADRATIC} {_CUBES}".split(), ""],
    16: f"{_QUADRATIC} {_CYCLE} {_CUBES}".split(),
    17: [*f"{_QUADRATIC} {_CYCLE} {_CUBES}".split(), ""],
    19: _CUBIC.split(),
    20: [*_CUBIC.split(), ""],
    22: f"{_CUBIC} {_MIXED_FOURTH}".split(),
    35: [*f"{_CUBIC} {_FOURTH}".split(), ""],
}


def srgb_to_linear(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Encoded sRGB 0..1 to linear light 0..1 (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Linear light to encoded sRGB, both clipped to 0..1 (IEC 61966-2-1)."""
    values = np.clip(values, 0.0, 1.0)
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def polynomial_expansion(rgb: NDArray[np.floating], terms: int) -> NDArray[np.floating]:
    """[..., 3] linear RGB to its [..., terms] products.

    Raises:
        CaptureError: there is no expansion with that many terms.
    """
    if terms not in _EXPANSIONS:
        raise CaptureError(
            f"A colour correction matrix of {terms} columns is unknown; Cheung's polynomials have "
            f"{', '.join(map(str, _EXPANSIONS))} terms."
        )
    channel = {"r": rgb[..., 0], "g": rgb[..., 1], "b": rgb[..., 2]}
    products: dict[str, NDArray[np.floating]] = {"": np.ones_like(rgb[..., 0])}

    def product(name: str) -> NDArray[np.floating]:
        if name not in products:
            products[name] = product(name[:-1]) * channel[name[-1]]
        return products[name]

    return np.stack([product(name) for name in _EXPANSIONS[terms]], -1)


def correct_colour(image: Image, matrix: NDArray[np.floating]) -> Image:
    """Apply a [3, terms] colour correction matrix to an [H, W, 3] uint8 sRGB image."""
    linear = _DECODED[image]
    expanded = polynomial_expansion(linear, matrix.shape[-1])
    corrected = expanded @ matrix.T.astype(np.float32)
    return _ENCODED[(np.clip(corrected, 0, 1) * _LEVELS + 0.5).astype(np.int32)]


# Tables for the two transfer curves: the powers would cost ten times what the polynomial does. The
# steepest part of the encoding is 12.92 levels per level, far below one of 2^14 steps.
_LEVELS = (1 << 14) - 1
_DECODED = srgb_to_linear(np.arange(256) / 255).astype(np.float32)
_ENCODED = np.rint(linear_to_srgb(np.arange(_LEVELS + 1) / _LEVELS) * 255).astype(np.uint8)
