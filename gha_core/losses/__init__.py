"""Losses between images, all weighted by a mask of the pixels that count."""

from gha_core.losses.perceptual import PerceptualDistance
from gha_core.losses.photometric import l1, soft_iou, structural_dissimilarity

__all__ = ["PerceptualDistance", "l1", "soft_iou", "structural_dissimilarity"]
