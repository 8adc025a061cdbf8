"""Metrics whose models cannot always be had. Each is a function, or the reason why it is missing.

A missing metric is reported with its reason, never as a blank or a zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.errors import GhaError
from gha_core.losses import PerceptualDistance
from gha_core.losses.lpips import Lpips

ImageMetric = Callable[[Image, Image], float]
"""(truth, image) -> score; NaN where it is undefined (for example no face found)."""
VideoMetric = Callable[[NDArray[np.uint8], NDArray[np.uint8], float], float]
"""(truth, images, frames per second) -> score; both [T, H, W, 3]."""
Embedding = Callable[[Image], NDArray[np.float32] | None]
"""The unit vector of the main face's identity, None without a face."""


@dataclass(frozen=True)
class Optional:
    """What this machine can score beside PSNR, SSIM and AKD.

    Attributes:
        images, videos: metrics by name.
        missing: name -> reason, a sentence without a full stop.
        licences: model -> licence, of what is used and may not be shipped freely, or has to be
            named.
    """

    images: dict[str, ImageMetric]
    videos: dict[str, VideoMetric]
    missing: dict[str, str]
    licences: dict[str, str]


class Unavailable(Exception):
    """Carries the reason."""


def optional_metrics() -> Optional:
    """All that can be had. LPIPS with AlexNet is only missed by nobody if VGG's is there."""
    found = Optional({}, {}, {}, {})
    loaders: dict[str, Callable[[], tuple[Any, dict[str, str]]]] = {
        "lpips_vgg": partial(_lpips, "vgg"),
        "lpips_alex": partial(_lpips, "alex"),
        "perceptual": _perceptual,
        "csim": _csim,
        "jod": _jod,
    }
    for name, load in loaders.items():
        try:
            metric, licences = load()
        except (Unavailable, GhaError) as reason:
            found.missing[name] = str(reason).rstrip(".")
            continue
        (found.videos if name == "jod" else found.images)[name] = metric
        found.licences.update(licences)
    return found


def _lpips(backbone: Any) -> tuple[ImageMetric, dict[str, str]]:
    distance = Lpips(backbone)
    return partial(_distance, distance), {f"torchvision {backbone}": "BSD-3-Clause"}


def _perceptual() -> tuple[ImageMetric, dict[str, str]]:
    distance = PerceptualDistance()
    return partial(_distance, distance), {PerceptualDistance.NAME: PerceptualDistance.LICENCE}


@torch.no_grad()
def _distance(network: torch.nn.Module, truth: Image, image: Image) -> float:
    pair = torch.from_numpy(np.stack([image, truth])).permute(0, 3, 1, 2).float() / 255
    return float(network(pair[:1], pair[1:]))


def _csim() -> tuple[ImageMetric, dict[str, str]]:
    embed, licences = identity_embedding()

    def score(truth: Image, image: Image) -> float:
        a, b = embed(truth), embed(image)
        return float(a @ b) if a is not None and b is not None else float("nan")

    return score, licences


def identity_embedding(root: Path | None = None) -> tuple[Embedding, dict[str, str]]:
    """insightface's ArcFace, and its licence.

    Args:
        root: insightface's folder, which has ``models/buffalo_l``; default ``~/.insightface``.

    Raises:
        Unavailable: the package or its models are not there, or cannot be opened.
    """
    root = root or Path.home() / ".insightface"
    pack = root / "models" / "buffalo_l"
    if not (pack / "w600k_r50.onnx").is_file():
        raise Unavailable(
            f"insightface's ArcFace model buffalo_l is not in {_short(pack)}; it is for "
            "non-commercial research only, and gha does not download it"
        )
    try:
        from insightface.app import FaceAnalysis

        app = FaceAnalysis(
            name="buffalo_l", root=str(root), allowed_modules=["detection", "recognition"]
        )
        app.prepare(ctx_id=-1)
    # ONNX Runtime has an exception per kind of damage, and insightface asserts.
    except Exception as error:
        raise Unavailable(f"insightface cannot be used ({_first_line(error)})") from None

    def embed(image: Image) -> NDArray[np.float32] | None:
        faces = app.get(np.ascontiguousarray(image[..., ::-1]))
        if not faces:
            return None
        return max(faces, key=lambda face: _area(face["bbox"])).normed_embedding

    return embed, {"insightface buffalo_l": "non-commercial research only"}


def _jod() -> tuple[VideoMetric, dict[str, str]]:
    try:
        import pycvvdp
    except Exception as error:  # also of torchvision, which it imports
        raise Unavailable(
            f"ColorVideoVDP cannot be imported ({_first_line(error)}); to have it: pip install "
            "cvvdp"
        ) from None
    meter = pycvvdp.cvvdp(display_name="standard_4k")

    def score(truth: NDArray[np.uint8], images: NDArray[np.uint8], rate: float) -> float:
        quality, _ = meter.predict(images, truth, dim_order="FHWC", frames_per_second=rate)
        return float(quality)

    return score, {"ColorVideoVDP": "MIT"}


def _area(box: Any) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _short(path: Path) -> str:
    """Without the name of whoever's home it is in: reports are passed on."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
