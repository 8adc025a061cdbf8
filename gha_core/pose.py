"""The pose of the head: a similarity transform from head space to the world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeadPose:
    """``x_world = scale * R(rotation) @ x_head + translation``.

    Attributes:
        rotation: [3] axis-angle, radians.
        translation: [3] metres.
        scale: metres per unit of head space (1 unit = head length, chin to crown).
    """

    rotation: Array
    translation: Array
    scale: float

    @cached_property
    def matrix(self) -> Array:
        """[3, 3] rotation matrix."""
        return np.asarray(cv2.Rodrigues(np.asarray(self.rotation, float))[0], float)

    def to_world(self, points: ArrayLike) -> Array:
        """[..., 3] head space to [..., 3] metres."""
        return self.scale * np.asarray(points, float) @ self.matrix.T + self.translation

    def to_head(self, points: ArrayLike) -> Array:
        """[..., 3] metres to [..., 3] head space; the inverse of :meth:`to_world`."""
        return (np.asarray(points, float) - self.translation) @ self.matrix / self.scale
