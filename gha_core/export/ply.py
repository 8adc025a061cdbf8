"""3DGS as PLY, the format of the reference implementation (Kerbl et al., 2023), without its code.

Per vertex: x y z, normals (zero), f_dc (colour of degree 0), opacity as logit, log scales, and the
rotation w-x-y-z. Axes are those of the scenes that the format grew up with: y down, z away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement

from gha_core.export.splats import Splats
from gha_core.pose import HeadPose

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
# +y up, +z towards the viewer -> y down, z away: a half turn about x.
FLIP = HeadPose(np.array([np.pi, 0, 0]), np.zeros(3), 1.0)
_EDGE = 1e-6  # keeps logits finite

COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)


def write_ply(path: Path, splats: Splats) -> None:
    """Write Gaussians that stand on stage (y up)."""
    flipped = splats.visible().moved(FLIP)
    columns = torch.cat(
        [
            flipped.means,
            torch.zeros_like(flipped.means),
            (flipped.colours - 0.5) / SH_C0,
            torch.logit(flipped.opacities.clamp(_EDGE, 1 - _EDGE))[:, None],
            flipped.scales.log(),
            flipped.quaternions,
        ],
        1,
    )
    kind = np.dtype([(name, "<f4") for name in COLUMNS])
    rows = np.ascontiguousarray(columns.numpy(), "<f4").view(kind).ravel()
    PlyData([PlyElement.describe(rows, "vertex")], byte_order="<").write(str(path))
