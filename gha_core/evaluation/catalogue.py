"""Every score by name: what people call it, how it is taken, and which way is better.

The one place for this: the protocol, the report, ``gha compare`` and docs/metrics.md say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from gha_core.evaluation.regions import FEATURE_MARGIN, HAIR_MARGIN


@dataclass(frozen=True)
class Metric:
    """One kind of score.

    Attributes:
        title: with its unit.
        protocol: how it is taken, in a sentence without a full stop.
        better: "higher" or "lower"; "" for what is only there to compare with.
        digits: after the decimal point.
    """

    title: str
    protocol: str
    better: str
    digits: int = 2


TASKS = {
    "novel_view_and_expression": "New view, new expression",
    "novel_expression": "New expression (self-reenactment)",
    "novel_view": "New view",
}
"""From the hardest to the easiest; the first one that has views is the headline."""

TASK_PROTOCOLS = {
    "novel_view_and_expression": "held-out sequences or timesteps, seen by held-out cameras",
    "novel_expression": "held-out sequences or timesteps, seen by the training cameras",
    "novel_view": "training timesteps, seen by held-out cameras",
}

REGIONS = {"head": "head", "mouth_eyes": "mouth and eyes", "full": "full image"}

REGION_PROTOCOLS = {
    "full": "every pixel of the photo, the background being white in both",
    "head": (
        "the matte inside the outline of the tracked head without neck, its scalp widened "
        f"{HAIR_MARGIN}x for hair"
    ),
    "mouth_eyes": (
        f"the outlines of lips and lids, widened by {FEATURE_MARGIN} of the head's height, "
        "inside the head"
    ),
}

METRICS = {
    "psnr": Metric("PSNR (dB)", "of the mean squared error over the region, 8-bit sRGB", "higher"),
    "ssim": Metric(
        "SSIM",
        "Wang et al. 2004: 11x11 Gaussian window, sigma 1.5, mean of RGB, its map averaged over "
        "the region",
        "higher",
        4,
    ),
    "lpips_vgg": Metric(
        "LPIPS (VGG)",
        "Zhang et al. 2018, version 0.1, torchvision's VGG16, at the images' own size",
        "lower",
        4,
    ),
    "lpips_alex": Metric(
        "LPIPS (AlexNet)",
        "Zhang et al. 2018, version 0.1, torchvision's AlexNet, at the images' own size",
        "lower",
        4,
    ),
    "perceptual": Metric(
        "Perceptual (EfficientNet)",
        "distance of unit features as LPIPS, of EfficientNet-Lite0's first blocks and without "
        "learned weights: not LPIPS, and not to be compared with it",
        "lower",
        4,
    ),
    "akd": Metric(
        "AKD (px)",
        "mean distance of MediaPipe FaceMesh's 478 points, detected in photo and rendering alike",
        "lower",
    ),
    "csim": Metric(
        "CSIM",
        "cosine of ArcFace embeddings (insightface buffalo_l) of photo and rendering",
        "higher",
        3,
    ),
    "jod": Metric(
        "JOD",
        "ColorVideoVDP, display standard_4k, of photos and renderings as a video at its true "
        "frame rate; 10 = no visible difference",
        "higher",
    ),
    "flicker": Metric(
        "Flicker (levels)",
        "root mean square change of the error from one frame to the next, 8-bit levels, "
        "consecutive frames of one camera",
        "lower",
    ),
    "jitter": Metric(
        "Jitter (px)",
        "mean second difference in time of FaceMesh's points, rendering minus photo, consecutive "
        "frames of one camera; the detector's own noise included",
        "lower",
    ),
    "psnr_expression_frozen": Metric(
        "PSNR, expression frozen (dB)",
        "the same with the neutral expression: what driving it must beat",
        "",
    ),
    "psnr_mean_image": Metric(
        "PSNR, mean image (dB)",
        "of the camera's mean training image: what any avatar must beat",
        "",
    ),
}
