"""Robust Video Matting (Lin et al. 2022): a recurrent network that remembers the frames before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.matting.weights import Network, Published, alpha_of, open_network, planes

ROBUST_VIDEO = Published(
    "Robust Video Matting",
    "GPL-3.0",
    "https://github.com/PeterL1n/RobustVideoMatting",
    inputs=("src", "r1i", "r2i", "r3i", "r4i", "downsample_ratio"),
    outputs=("fgr", "pha", "r1o", "r2o", "r3o", "r4o"),
)
_COARSE = 512  # px, the longer side at which the network's first stage looks at most


class RobustVideoNetwork:
    """The loaded network; :meth:`of_video` gives the matting of one camera's one sequence.

    Raises:
        AssetError: the file is not there or not this network.
    """

    published = ROBUST_VIDEO

    def __init__(self, weights: Path) -> None:
        self.weights = weights
        self._network = open_network(weights, ROBUST_VIDEO, {})

    def of_video(self) -> RobustVideoMatting:
        return RobustVideoMatting(self._network, self.weights)


class RobustVideoMatting:
    """Alpha of the frames of one camera and sequence, to be called in the order of time."""

    def __init__(self, network: Network, weights: Path) -> None:
        self._network = network
        self._weights = weights
        self._memory: list[NDArray[np.float32] | None] = [None] * 4

    def __call__(self, image: Image) -> NDArray[np.float32]:
        """[H, W] alpha 0..1 of an [H, W, 3] uint8 frame.

        Raises:
            AssetError: the network does not do what Robust Video Matting does.
        """
        ratio = min(1.0, _COARSE / max(image.shape[:2]))
        _, alpha, *memory = self._network(planes(image), *self._memory, ratio)
        self._memory = list(memory)
        return alpha_of(alpha, image, self._weights)
