"""Mattes: which part of a frame is the person, in 0..1 per pixel."""

from gha_core.matting.plate import PlateMatting
from gha_core.matting.refinement import Refinement
from gha_core.matting.selfie import SelfieMatting

__all__ = ["PlateMatting", "Refinement", "SelfieMatting"]
