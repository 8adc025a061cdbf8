"""The face model: a head whose shape and expression are linear in a few coefficients."""

from gha_core.faces.head_model import face_model, head_model
from gha_core.faces.model import FaceModel

__all__ = ["FaceModel", "face_model", "head_model"]
