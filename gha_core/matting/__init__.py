"""Mattes: which part of a frame is the person, in 0..1 per pixel."""

from gha_core.matting.background_matting import BackgroundMattingNetwork
from gha_core.matting.neck import cut_at_neck, neck_row
from gha_core.matting.plate import PlateMatting
from gha_core.matting.refinement import Refinement
from gha_core.matting.robust_video import RobustVideoNetwork
from gha_core.matting.selfie import SelfieMatting

__all__ = [
    "BackgroundMattingNetwork",
    "PlateMatting",
    "Refinement",
    "RobustVideoNetwork",
    "SelfieMatting",
    "cut_at_neck",
    "neck_row",
]
