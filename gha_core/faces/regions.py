"""Named regions of the head, read off the mesh's parts and off which vertices a shape moves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gha_core.faces.makehuman import Floats, HeadMesh, read_target

Mask = NDArray[np.bool_]
LIP_TARGETS = ("mouth/mouth-upperlip-volume-incr", "mouth/mouth-lowerlip-volume-incr")
EAR_TARGETS = ("ears/l-ear-rot-backward", "ears/r-ear-rot-backward")


def head_regions(
    data: Path, mesh: HeadMesh, shape: Floats, expressions: Mapping[str, Floats]
) -> dict[str, Mask]:
    """[V] masks: face, lips, mouth_interior, eyes, eyelids, ears, scalp, neck, tongue, teeth.

    ``face`` is the skin in front, from chin to hairline and to the ears, lips and eyelids included;
    the scalp is the skin behind it.

    Args:
        shape: [V, 3] the mean head in head space.
        expressions: displacements [V, 3] in head space, by ARKit name.
    """
    skin, neck = mesh.part("skin"), mesh.part("neck")
    eyes, tongue, teeth = mesh.part("eyes"), mesh.part("tongue"), mesh.part("teeth")
    socket = mesh.part("eye_cavity") & ~skin
    mouth = mesh.part("mouth_cavity") & ~skin

    def moved(targets: tuple[str, ...], share: float) -> Mask:
        mask = np.zeros(len(shape), bool)
        for name in targets:
            offsets = mesh.gather(read_target(data / f"mpfb2/targets/{name}.target.gz"))
            distance = np.linalg.norm(offsets, axis=1)
            mask |= distance > share * distance.max()
        return mask

    lips = moved(LIP_TARGETS, 0.25) & (skin | mouth) & ~teeth & ~tongue
    ears = moved(EAR_TARGETS, 0.3) & skin
    blink = np.maximum(
        *(np.linalg.norm(expressions[f"eyeBlink{side}"], axis=1) for side in ("Left", "Right"))
    )
    eyelids = (blink > 0.15 * blink.max()) & (skin | socket) & ~eyes

    # Seen from the middle of the head, the hairline falls from above the forehead to the temples,
    # and the jaw line rises from under the chin to the ear lobes: face, scalp and neck meet there.
    azimuth = np.degrees(np.arctan2(np.abs(shape[:, 0]), shape[:, 2]))
    elevation = np.degrees(np.arctan2(shape[:, 1], np.hypot(shape[:, 0], shape[:, 2])))
    hairline = np.interp(azimuth, [0, 25, 45, 60, 75, 80], [58, 56, 48, 36, 12, -20])
    jawline = np.interp(azimuth, [0, 30, 60, 75, 180], [-49, -49, -47, -42, -25])
    below = skin & ~ears & (elevation < jawline)
    face = skin & ~ears & ~below & (azimuth < 80) & (elevation < hairline)
    scalp = skin & ~face & ~ears & ~below
    return {
        "face": face | ((eyelids | lips) & skin),
        "lips": lips,
        "mouth_interior": mouth & ~lips,
        "eyes": eyes,
        "eyelids": eyelids,
        "ears": ears,
        "scalp": scalp,
        "neck": (neck | below) & ~lips,
        "tongue": tongue,
        "teeth": teeth,
        "eye_sockets": socket & ~eyelids,
    }
