"""BackgroundMattingV2 (Lin et al. 2021): a network that knows the photo of the empty scene."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.matting.weights import Network, Published, alpha_of, open_network, planes

BACKGROUND_MATTING = Published(
    "BackgroundMattingV2",
    "MIT",
    "https://github.com/PeterL1n/BackgroundMattingV2",
    inputs=("src", "bgr"),
    outputs=("pha",),
)
# As its authors advise up to full HD; a file without these attributes has its own built in.
_SETTINGS = {"backbone_scale": 0.25, "refine_mode": "sampling", "refine_sample_pixels": 80_000}
_MULTIPLE = 4  # sides that the network takes


class BackgroundMattingNetwork:
    """The loaded network; :meth:`of_camera` gives the matting of one camera.

    Raises:
        AssetError: the file is not there or not this network.
    """

    published = BACKGROUND_MATTING

    def __init__(self, weights: Path) -> None:
        self.weights = weights
        self._network = open_network(weights, BACKGROUND_MATTING, _SETTINGS)

    def of_camera(self, plate: Image) -> BackgroundMatting:
        return BackgroundMatting(self._network, self.weights, plate)


class BackgroundMatting:
    """Alpha of one camera's frames, each by itself.

    Args:
        plate: [H, W, 3] uint8, the empty scene.
    """

    def __init__(self, network: Network, weights: Path, plate: Image) -> None:
        self._network = network
        self._weights = weights
        self._plate = planes(_padded(plate))

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """[H, W] alpha 0..1 of an [H, W, 3] uint8 frame.

        Raises:
            AssetError: the network does not do what BackgroundMattingV2 does.
        """
        (alpha,) = self._network(planes(_padded(image)), self._plate)
        return alpha_of(alpha, image, self._weights)


def _padded(image: Image) -> Image:
    down, right = (-side % _MULTIPLE for side in image.shape[:2])
    return cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REPLICATE).astype(
        np.uint8, copy=False
    )
