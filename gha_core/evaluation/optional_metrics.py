"""Metrics whose models cannot always be had. Each is a function, or the reason why it is missing.

A missing metric is reported with its reason, never as a blank or a zero.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from gha_core.artifacts.images import Image

Metric = Callable[[Image, Image], float]
"""(truth, image) -> score; NaN where it is undefined (for example no face found)."""


def optional_metrics() -> tuple[dict[str, Metric], dict[str, str]]:
    """The available metrics by name, and the reason for each that is not available."""
    available: dict[str, Metric] = {}
    missing: dict[str, str] = {}
    for name, load in (("lpips_alex", _lpips), ("csim", _csim)):
        try:
            available[name] = load()
        except _Unavailable as reason:
            missing[name] = str(reason)
    return available, missing


class _Unavailable(Exception):
    """Carries the reason."""


def _lpips() -> Metric:
    try:
        import torchvision
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    except (ImportError, RuntimeError) as error:
        raise _Unavailable(f"torchvision cannot be imported ({_first_line(error)})") from None
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not weights.is_file():
        raise _Unavailable(
            f"the AlexNet weights of torchvision {torchvision.__version__} are not in {weights}; "
            "they download once from the network"
        )

    def score(truth: Image, image: Image) -> float:
        pair = torch.from_numpy(np.stack([truth, image]).astype(np.float32) / 255.0)
        pair = pair.permute(0, 3, 1, 2)
        with torch.no_grad():
            value = learned_perceptual_image_patch_similarity(
                pair[:1], pair[1:], net_type="alex", normalize=True
            )
        return float(value)

    return score


def _csim() -> Metric:
    root = Path.home() / ".insightface"
    if not (root / "models" / "buffalo_l" / "w600k_r50.onnx").is_file():
        raise _Unavailable(
            "insightface's ArcFace model buffalo_l is not in ~/.insightface/models; it downloads "
            "on request and is for non-commercial research only"
        )
    from insightface.app import FaceAnalysis

    app = FaceAnalysis(
        name="buffalo_l", root=str(root), allowed_modules=["detection", "recognition"]
    )
    app.prepare(ctx_id=-1)

    def embedding(image: Image) -> np.ndarray | None:
        faces = app.get(np.ascontiguousarray(image[..., ::-1]))
        return faces[0].normed_embedding if faces else None

    def score(truth: Image, image: Image) -> float:
        a, b = embedding(truth), embedding(image)
        return float(a @ b) if a is not None and b is not None else float("nan")

    return score


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
