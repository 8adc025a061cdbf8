"""What every backend is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scene:
    """N Gaussians of C channels, and V cameras; all of one float type on one device.

    Attributes:
        means: [N, 3] world, m.
        quaternions: [N, 4] w-x-y-z, need not be of unit length.
        scales: [N, 3] standard deviations, m.
        opacities: [N] 0..1.
        features: [N, C].
        background: [C].
        K: [V, 3, 3] px.
        w2c: [V, 4, 4] OpenCV.
        width, height: of the images, px.
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    background: Tensor
    K: Tensor
    w2c: Tensor
    width: int
    height: int

    @property
    def work(self) -> str:
        """What is to be done, for messages."""
        return (
            f"Splatting {len(self.means)} Gaussians into {len(self.K)} views of "
            f"{self.width}x{self.height} px"
        )
