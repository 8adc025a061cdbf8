"""Where a face is in an image, point by point, and where its points are in the world."""

from gha_core.landmarks.detection import Detection, Detector
from gha_core.landmarks.face_boxes import FaceBox, FaceFinder, find_faces, main_face
from gha_core.landmarks.facemesh import DETECTOR, FaceMeshDetector
from gha_core.landmarks.insightface import InsightFaceDetector
from gha_core.landmarks.points import LANDMARKS
from gha_core.landmarks.triangulation import Triangulation, triangulate

__all__ = [
    "DETECTOR",
    "LANDMARKS",
    "Detection",
    "Detector",
    "FaceBox",
    "FaceFinder",
    "FaceMeshDetector",
    "InsightFaceDetector",
    "Triangulation",
    "find_faces",
    "main_face",
    "triangulate",
]
