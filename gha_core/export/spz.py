"""3DGS as SPZ (Niantic's open format), version 2: the one that all readers know.

A gzip stream of a 16-byte header and, for all Gaussians, positions (24-bit fixed point), alphas,
colours, log scales, rotations and the harmonics of degree 1, if any, a byte each. Axes: x right,
y up, z towards the viewer.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gha_core.errors import ParameterError
from gha_core.export.ply import SH_C0, degree_one
from gha_core.export.splats import Splats

MAGIC, VERSION = b"NGSP", 2
# Of the position's 24 bits, how many follow the point: 1/65536 m, up to 128 m away.
FRACTION_BITS = 16
LIMIT = 2.0 ** (23 - FRACTION_BITS)  # m
COLOUR_SCALE = 0.15  # f_dc is stored as 0.5 + 0.15 f_dc
HARMONIC_SCALE = 128  # and coefficients of degree 1 as 128 + 128 f


def write_spz(path: Path, splats: Splats) -> None:
    """Write Gaussians that stand on stage (y up).

    Raises:
        ParameterError: a Gaussian is farther than ``LIMIT`` from the origin.
    """
    # x, y, z of a rotation are stored and w recomputed: exact enough only where w is large.
    kept = splats.visible().upright()
    if len(kept) and float(kept.means.abs().max()) >= LIMIT:
        raise ParameterError(
            f"SPZ: a Gaussian lies {float(kept.means.abs().max()):.3g} m from the head; the file "
            f"reaches {LIMIT:g} m. Look at the capture's unit of length."
        )
    fixed = (kept.means.double() * 2**FRACTION_BITS).round().to(torch.int32).numpy()
    positions = np.ascontiguousarray(fixed, "<i4").view(np.uint8).reshape(-1, 4)[:, :3]
    parts = [
        positions,
        _bytes(255 * kept.opacities),
        _bytes(255 * (0.5 + COLOUR_SCALE * (kept.colours - 0.5) / SH_C0)),
        _bytes(16 * (kept.scales.log() + 10)),
        _bytes(127.5 * kept.quaternions[:, 1:] + 127.5),
    ]
    degree = 0
    if kept.harmonics is not None:
        degree = 1
        coefficients = degree_one(kept.harmonics).transpose(1, 2)  # the colours vary fastest
        parts.append(_bytes(HARMONIC_SCALE * (1 + coefficients)))
    header = struct.pack("<4sIIBBBB", MAGIC, VERSION, len(kept), degree, FRACTION_BITS, 0, 0)
    content = header + b"".join(part.tobytes() for part in parts)
    path.write_bytes(gzip.compress(content, mtime=0))


def _bytes(values: Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
