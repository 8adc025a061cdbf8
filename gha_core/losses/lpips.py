"""LPIPS (Zhang et al. 2018, version 0.1), from weights that the user has.

The backbones are torchvision's, whose files are not fetched by gha (VGG16 has 528 MB); torchvision
itself is not needed. The learned weights of the distance come with torchmetrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gha_core.assets import asset_folder
from gha_core.errors import AssetError

Backbone = Literal["vgg", "alex"]

FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
"""As torchvision names them: before the suffix, the beginning of their SHA-256."""
_ADDRESS = "https://download.pytorch.org/models/"

# Of each convolution: its number in torchvision's `features`, stride, padding, and whether its
# output is read. A max pooling ("pool") precedes some.
_VGG: Sequence[tuple[int, int, int, bool, bool]] = tuple(
    (index, 1, 1, pool, tap)
    for index, pool, tap in (
        *((0, False, False), (2, False, True), (5, True, False), (7, False, True)),
        *((10, True, False), (12, False, False), (14, False, True)),
        *((17, True, False), (19, False, False), (21, False, True)),
        *((24, True, False), (26, False, False), (28, False, True)),
    )
)
_ALEX = (
    (0, 4, 2, False, True),
    (3, 1, 2, True, True),
    (6, 1, 1, True, True),
    (8, 1, 1, False, True),
    (10, 1, 1, False, True),
)
_LAYERS = {"vgg": (_VGG, 2), "alex": (_ALEX, 3)}  # and the side of the pooling's window
# ImageNet's mean and standard deviation, for images in -1..1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Distance of images [B, 3, H, W] in 0..1, mean over the batch; gradients flow to the images.

    Raises:
        AssetError: the weights are absent, or not torchvision's; the text says where they belong.
    """

    def __init__(self, backbone: Backbone, weights: Path | None = None) -> None:
        super().__init__()
        path = weights or find_weights(backbone)
        self.backbone = backbone
        features = torch.load(path, map_location="cpu", weights_only=True)
        learned = torch.load(_learned(backbone), map_location="cpu", weights_only=True)
        try:
            for place, (index, *_) in enumerate(_LAYERS[backbone][0]):
                self._keep(f"weight{place}", features[f"features.{index}.weight"])
                self._keep(f"bias{place}", features[f"features.{index}.bias"])
            for place in range(5):
                self._keep(f"learned{place}", learned[f"lin{place}.model.1.weight"])
        except KeyError as error:
            raise AssetError(
                f"{path} has no tensor {error}; it is not {FILES[backbone]}."
            ) from None
        self._keep("shift", torch.tensor(_SHIFT)[:, None, None])
        self._keep("scale", torch.tensor(_SCALE)[:, None, None])

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.float(), persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Five feature maps [B, C, h, w], each position scaled to unit length, finest first."""
        layers, window = _LAYERS[self.backbone]
        x = (2 * images - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        taps = []
        for place, (_, stride, padding, pool, tap) in enumerate(layers):
            if pool:
                x = F.max_pool2d(x, window, 2)
            weight, bias = self.get_buffer(f"weight{place}"), self.get_buffer(f"bias{place}")
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            if tap:
                taps.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.features(targets)
        pairs = zip(self.features(images), wanted, strict=True)
        distances = [
            F.conv2d((a - b).square(), self.get_buffer(f"learned{place}")).mean()
            for place, (a, b) in enumerate(pairs)
        ]
        return torch.stack(distances).sum()


def find_weights(backbone: Backbone) -> Path:
    """torchvision's file, in gha's folder of models or where torch.hub keeps its downloads.

    Raises:
        AssetError: it is in neither, or not the file that its name says.
    """
    name = FILES[backbone]
    places = [asset_folder() / name, Path(torch.hub.get_dir()) / "checkpoints" / name]
    for path in places:
        if path.is_file():
            if not _sha256(path, path.stat().st_mtime_ns).startswith(name[-12:-4]):
                raise AssetError(
                    f"{path} is damaged: its SHA-256 does not begin with {name[-12:-4]}"
                )
            return path
    raise AssetError(
        f"{name} (torchvision's weights, trained on ImageNet; BSD-3-Clause) is not in gha's folder "
        f"of models, which `gha assets` names; to have it, put {_ADDRESS}{name} there"
    )


def _learned(backbone: Backbone) -> Path:
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise AssetError("torchmetrics, which has LPIPS' learned weights, is not installed")
    path = Path(found.origin).parent / "functional/image/lpips_models" / f"{backbone}.pth"
    if not path.is_file():
        raise AssetError(f"this version of torchmetrics has no {path.name} with LPIPS' weights")
    return path


@cache
def _sha256(path: Path, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
