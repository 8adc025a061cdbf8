"""Where the ears are, from what several cameras see of them at once.

Nothing else tells: a detector puts its points beside the ears where most people's are, the skin
there shows no outline, and of how far below the eyes the ears sit a face says little. But an ear
stands out from the head. Where the model has it too high, cameras that look at the same point of it
see different things: here the ear, there the hair or the neck behind it. So the shape is moved to
where they agree. An ear that hair covers is left out: strands agree nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gha_core.fitting.pictures import Picture, lookup, slope

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BARE = 0.6  # an ear counts if this share of what the cameras see of it is skin
BESIDE = np.radians(45)  # so far from straight ahead the face counts with the ears
FACING = 0.2  # cosine between normal and ray from which on a point is seen
_INDEPENDENT = 0.005  # points err together; this share of them counts as independent
_USUAL = 4.0  # levels of 0..255 that cameras differ by at least
_ROBUST = 2.0  # usual differences beyond which something else is in front


@dataclass(frozen=True)
class Sighting:
    """What one camera sees at points of the head.

    Attributes:
        light: [n] 0..255; slope: [n, 3] its derivatives by the points' places in head space.
        trust: [n] 0..1, 0 where the head hides the point.
    """

    light: Floats
    slope: Floats
    trust: Floats

    @staticmethod
    def of(luma: Picture, pixels: Floats, by_place: Floats, facing: Floats) -> Sighting:
        """At ``pixels`` [n, 2] whose derivatives by the place are ``by_place`` [n, 2, 3];
        ``facing`` [n] is the cosine between normal and ray, 0 where the head is in front."""
        light = lookup(luma, pixels[:, None])[:, 0]
        along = np.einsum("ni,nij->nj", slope(luma, pixels), by_place)
        return Sighting(light, along, np.clip((facing - FACING) / (1 - FACING), 0, 1))


def disagreement(sightings: Sequence[Sighting], columns: Floats) -> tuple[Floats, Floats]:
    """H [P, P] and g [P] of what the cameras' sightings of the same points differ by, where the
    unknowns move the points by ``columns`` [n, 3, P]."""
    light, along, trust = (
        np.stack([getattr(each, name) for each in sightings])
        for name in ("light", "slope", "trust")
    )
    share = trust / np.maximum(trust.sum(0), 1e-9)
    # Cameras differ in brightness; one that is brighter everywhere does not disagree.
    for _ in range(2):
        off = light - (share * light).sum(0)
        light = light - (trust * off).sum(1, keepdims=True) / (trust.sum(1, keepdims=True) + 1e-9)
    error = light - (share * light).sum(0)
    along = along - (share[..., None] * along).sum(0)
    known = trust > 0
    usual = max(1.5 * float(np.median(np.abs(error[known]))), _USUAL) if known.any() else _USUAL
    weight = _INDEPENDENT * trust / usual**2 / (1 + (error / (usual * _ROBUST)) ** 2) ** 2
    # Over cameras first: a point couples to the unknowns through its place alone.
    H = np.einsum("cn,cni,cnj->nij", weight, along, along, optimize=True)
    g = np.einsum("cn,cni->ni", weight * error, along)
    flat = columns.reshape(-1, columns.shape[2])
    return flat.T @ (H @ columns).reshape(flat.shape), g.ravel() @ flat
