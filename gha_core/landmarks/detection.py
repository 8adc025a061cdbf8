"""What every landmark detector finds, in one form: FaceMesh's 478 points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image


@dataclass(frozen=True)
class Detection:
    """One face.

    Attributes:
        points: [478, 2] float32, pixels of the image, first pixel centre at (0.5, 0.5); NaN where
            the detector knows no such point.
        confidence: 0..1, low where the face is doubtful or turned too far to be trusted.
        box: [4] float32 x0 y0 x1 y1 around the points.
        visibility: [478] float32 0..1, how squarely each point faces the camera (0: turned away,
            so that its position is a guess of the model).
    """

    points: NDArray[np.float32]
    confidence: float
    box: NDArray[np.float32]
    visibility: NDArray[np.float32]


class Detector(Protocol):
    """Finds the subject's face; may be used from many threads."""

    @property
    def name(self) -> str: ...

    @property
    def licence(self) -> str:
        """Of the models that it runs."""
        ...

    def detect(self, image: Image) -> Detection | None:
        """The landmarks of the main face in ``image`` (H x W x 3 uint8 sRGB), None without one."""
        ...
