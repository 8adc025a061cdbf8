"""3DGS as PLY, the format of the reference implementation (Kerbl et al., 2023), without its code.

Per vertex: x y z, normals (zero), f_dc (colour of degree 0), f_rest where colours change with the
sight (degree 1), opacity as logit, log scales, and the rotation w-x-y-z. Axes are those of the
scenes that the format grew up with: y down, z away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement
from torch import Tensor

from gha_core.export.splats import Splats
from gha_core.pose import HeadPose

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
SH_C1 = 0.4886025119029199  # those of degree 1 are -C1 y, C1 z and -C1 x; C1 = sqrt(3 / (4 pi))
# +y up, +z towards the viewer -> y down, z away: a half turn about x.
FLIP = HeadPose(np.array([np.pi, 0, 0]), np.zeros(3), 1.0)
_EDGE = 1e-6  # keeps logits finite

BEFORE = ("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2")
REST = tuple(f"f_rest_{index}" for index in range(9))
AFTER = ("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3")


def write_ply(path: Path, splats: Splats) -> None:
    """Write Gaussians that stand on stage (y up)."""
    flipped = splats.visible().moved(FLIP)
    rest = [] if flipped.harmonics is None else [degree_one(flipped.harmonics).flatten(1)]
    columns = torch.cat(
        [
            flipped.means,
            torch.zeros_like(flipped.means),
            (flipped.colours - 0.5) / SH_C0,
            *rest,
            torch.logit(flipped.opacities.clamp(_EDGE, 1 - _EDGE))[:, None],
            flipped.scales.log(),
            flipped.quaternions,
        ],
        1,
    )
    names = (*BEFORE, *(REST if rest else ()), *AFTER)
    kind = np.dtype([(name, "<f4") for name in names])
    rows = np.ascontiguousarray(columns.numpy(), "<f4").view(kind).ravel()
    PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(str(path))


def degree_one(harmonics: Tensor) -> Tensor:
    """[N, 3, 3] coefficients of each colour, from our vectors [N, 3, 3]."""
    return torch.stack([-harmonics[..., 1], harmonics[..., 2], -harmonics[..., 0]], -1) / SH_C1
