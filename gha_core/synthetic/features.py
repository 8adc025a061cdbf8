"""Eyes and teeth, coloured per pixel from the place on the mean head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from gha_core.synthetic.person import Person
from gha_core.synthetic.skin import Anatomy

Floats = NDArray[np.floating]

IRIS, PUPIL = 0.43, 0.155  # sine of the angle from the eye's axis
SCLERA = np.array([0.60, 0.555, 0.53], np.float32)


def eye_colour(place: Floats, anatomy: Anatomy, person: Person) -> tuple[Floats, Floats]:
    """Albedo [n, 3] and cornea (1) or white (0) [n] at ``place`` [n, 3] of the mean head."""
    left = place[:, 0] > 0
    centre = np.where(left[:, None], anatomy.eyes[0], anatomy.eyes[1]).astype(np.float32)
    ray = place - centre
    ray /= np.maximum(np.sqrt((ray * ray).sum(1, keepdims=True)), 1e-6)
    # the axis of an eye points outwards a little less than straight ahead
    x, y = ray[:, 0], ray[:, 1]
    radius = np.where(ray[:, 2] > 0, np.sqrt(x * x + y * y), 2.0)
    angle = np.arctan2(y, x)
    fibres = sum(
        a * np.sin(n * angle + p + 3 * radius)
        for n, a, p in ((7, 0.05, 0.3), (17, 0.07, 1.1), (31, 0.06, 2.3), (47, 0.05, 0.7))
    )
    inner = np.clip((radius - PUPIL) / (IRIS - PUPIL), 0, 1)
    tone = (0.75 + 0.55 * np.sin(np.pi * np.clip(inner, 0, 1)) + fibres)[:, None]
    iris = person.iris.astype(np.float32) * tone * 0.85
    warm = np.clip(1 - inner * 2.2, 0, 1)[:, None]  # a ring of amber around the pupil
    iris = iris * (1 + warm * np.array([0.35, 0.12, -0.1], np.float32))
    limbus = np.clip((radius - 0.86 * IRIS) / (0.14 * IRIS), 0, 1)[:, None]
    iris = iris * (1 - 0.75 * limbus)
    pupil = _step(radius, PUPIL, 0.03)[:, None]
    iris = iris * pupil + (1 - pupil) * np.float32(0.006)
    corner = np.clip((np.abs(x) - 0.5) / 0.5, 0, 1)[:, None]
    veins = 0.5 + 0.5 * np.sin(26 * y + 9 * np.sin(13 * x + 5 * y))[:, None]
    white = SCLERA * (1 - corner * (0.10 + 0.10 * veins) * np.array([0.4, 1.5, 1.4], np.float32))
    edge = _step(radius, IRIS, 0.045)[:, None]
    return iris + (white - iris) * edge, 1 - edge[:, 0]


def _step(value: Floats, at: float, width: float) -> Floats:
    t = np.clip((value - at) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def teeth_colour(place: Floats, arch: Arch) -> Floats:
    """Albedo [n, 3]: ivory teeth with dark gaps, gums at their roots."""
    upper = place[:, 1] > arch.middle(place[:, 2])
    along = np.arctan2(place[:, 0], place[:, 2] - arch.back) * 9.0
    along = np.where(upper, along, along * 1.25)
    cell = along - np.floor(along)
    gap = np.minimum(cell, 1 - cell)
    tooth = np.floor(along)
    shade = 0.96 + 0.05 * np.sin(tooth * 12.9898) - 0.02 * np.abs(tooth)
    relief = 0.55 + 0.45 * np.clip(gap / 0.12, 0, 1) ** 0.7
    ivory = np.array([0.74, 0.69, 0.58], np.float32) * (shade * relief)[:, None]
    root = np.where(upper, place[:, 1] - arch.upper_root, arch.lower_root - place[:, 1])
    scallop = root + 0.010 * (np.clip(gap * 2, 0, 1) - 0.5)
    gum = np.clip(scallop / 0.006 + 0.5, 0, 1)[:, None]
    return ivory + gum * (np.array([0.42, 0.15, 0.14], np.float32) - ivory)


class Arch:
    """Where the rows of teeth are on the mean head."""

    def __init__(self, teeth: Floats, faces: NDArray[np.int64]) -> None:
        label = _components(len(teeth), faces)
        rows = sorted(
            (teeth[label == name] for name in np.unique(label)), key=lambda r: r[:, 1].mean()
        )
        lower, upper = rows[0], rows[-1]
        self.back = float(teeth[:, 2].min() + 0.25 * np.ptp(teeth[:, 2]))
        front = teeth[:, 2].max() - 0.35 * np.ptp(teeth[:, 2])
        self._low = np.polyfit(lower[:, 2], lower[:, 1], 1)
        self._high = np.polyfit(upper[:, 2], upper[:, 1], 1)
        tall = np.ptp(upper[upper[:, 2] > front][:, 1])
        self.upper_root = float(upper[upper[:, 2] > front][:, 1].max() - 0.25 * tall)
        self.lower_root = float(lower[lower[:, 2] > front][:, 1].min() + 0.25 * tall)

    def middle(self, z: Floats) -> Floats:
        """Height that separates upper from lower teeth at depth ``z``."""
        return 0.5 * (np.polyval(self._low, z) + np.polyval(self._high, z))


def _components(count: int, faces: NDArray[np.int64]) -> NDArray[np.int64]:
    pairs = faces[:, [[0, 1], [1, 2]]].reshape(-1, 2)
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), (count, count))
    return np.asarray(connected_components(graph, directed=False)[1])
