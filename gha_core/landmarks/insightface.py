"""Landmarks from insightface's models: 68 points in 3D, and 106 in the image.

The first are points of the head's surface, as FaceMesh's are; the second follow what is seen and
are finer at lids and lips. Both number the 51 points of brows, eyes, nose and mouth that iBUG's
300-W data set (Sagonas et al. 2013) defines: there their mean is taken, and how far they disagree
says how far to trust a face. Irises have no points of their own: the gaze stays unobserved.

The models are for non-commercial research only; gha never downloads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.assets import ASSETS
from gha_core.errors import AssetError
from gha_core.landmarks.detection import Detection
from gha_core.landmarks.face_boxes import FaceBox, main_face
from gha_core.landmarks.points import LANDMARKS

Array = NDArray[np.float64]

PACK = "buffalo_l"
MODELS = ("detection", "landmark_2d_106", "landmark_3d_68")

JAW = 17  # of the 68, the first
POINTS_68 = (
    *(162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389),
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300),
    *(168, 6, 195, 4, 98, 97, 2, 326, 327),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
    *(78, 81, 13, 311, 308, 402, 14, 178),
)
"""FaceMesh's numbers of iBUG's 68 points, in iBUG's order: jaw, brows, nose, eyes, outer and inner
lips, each from the subject's right to left."""
INNER_106 = (
    *(43, 48, 49, 51, 50, 102, 103, 104, 105, 101),
    *(72, 73, 74, 86, 78, 79, 80, 85, 84),
    *(35, 41, 42, 39, 37, 36, 89, 95, 96, 93, 91, 90),
    *(52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55),
    *(65, 66, 62, 70, 69, 57, 60, 54),
)
"""The 106-point model's numbers of iBUG's points after the jaw, as in its published markup."""

_NOSE_TIP = 30
# Mean distance of the two models' points, in face widths, at which a third of the trust is left.
_DISAGREEMENT = 0.06


class InsightFaceDetector:
    """Finds the subject's face with insightface's FaceAnalysis, on a GPU if ONNX Runtime has one.

    Args:
        root: insightface's folder, which has ``models/buffalo_l``; default ``~/.insightface``.
        min_face_score: of the face detector, below which there is no face.

    Raises:
        AssetError: the package or its models are not there, or cannot be opened.
    """

    name = "insightface"
    licence = ASSETS["insightface_buffalo_l"].licence

    def __init__(self, root: Path | None = None, min_face_score: float = 0.5) -> None:
        self._app = _face_analysis(root or Path.home() / ".insightface", min_face_score)

    def detect(self, image: Image) -> Detection | None:
        """The landmarks of the main face in ``image`` (H x W x 3 uint8 sRGB), None without one."""
        height, width = image.shape[:2]
        faces = {
            id(box): (box, face)
            for face in self._app.get(np.ascontiguousarray(image[..., ::-1]))
            for box in [FaceBox(np.asarray(face["bbox"], float), np.zeros((6, 2)), _score(face))]
        }
        chosen = main_face([box for box, _ in faces.values()], width, height)
        return None if chosen is None else _detection(*faces[id(chosen)])


def _score(face: Any) -> float:
    return float(face["det_score"])


def _detection(box: FaceBox, face: Any) -> Detection:
    # Like OpenCV, insightface calls the centre of the first pixel (0, 0).
    surface = np.asarray(face["landmark_3d_68"], float)[:, :2] + 0.5
    seen = np.asarray(face["landmark_2d_106"], float)[list(INNER_106)] + 0.5
    apart = np.linalg.norm(surface[JAW:] - seen, axis=1).mean() / box.size
    known = np.concatenate([surface[:JAW], (surface[JAW:] + seen) / 2])
    yaw = _yaw(surface)
    points = np.full((LANDMARKS, 2), np.nan, np.float32)
    points[list(POINTS_68)] = known
    visibility = np.zeros(LANDMARKS, np.float32)
    visibility[list(POINTS_68)] = np.cos(yaw)
    # The jaw goes round the head from ear to ear; its far side is a guess.
    around = np.linspace(-np.pi / 2, np.pi / 2, JAW)
    visibility[list(POINTS_68[:JAW])] = np.clip(np.cos(around + yaw), 0, 1)
    turned = np.clip((90 - np.degrees(abs(yaw))) / 50, 0, 1)
    trust = np.exp(-((apart / _DISAGREEMENT) ** 2)) * turned
    corners = np.concatenate([known.min(axis=0), known.max(axis=0)])
    return Detection(points, box.score * float(trust), corners.astype(np.float32), visibility)


def _yaw(surface: Array) -> float:
    """Angle (rad) by which the face is turned, positive to the image's right: how far the tip of
    the nose, a radius in front of the axis between the ends of the jaw, is from their middle."""
    across = (surface[JAW - 1] - surface[0]) / 2
    away = surface[_NOSE_TIP] - (surface[0] + surface[JAW - 1]) / 2
    half = float(np.linalg.norm(across)) + 1e-9
    return float(np.arctan2(away @ across / half, half))


def _face_analysis(root: Path, min_face_score: float) -> Any:
    folder = root / "models" / PACK
    terms = f"licence: {InsightFaceDetector.licence}"
    if not any(folder.glob("*.onnx")):
        # FaceAnalysis would download now, and nobody would have seen the licence.
        raise AssetError(
            f"insightface's model pack {PACK} ({terms}) is not in {folder}, and gha does not "
            "download it. If that licence fits your use, run once with a network: python -c "
            f"\"from insightface.app import FaceAnalysis; FaceAnalysis('{PACK}')\". Otherwise "
            "set landmarks.detector: facemesh."
        )
    try:
        import onnxruntime
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise AssetError(
            f"landmarks.detector is 'insightface', but it cannot be imported ({error}). Install it "
            "with: pip install insightface onnxruntime. Or set landmarks.detector: facemesh."
        ) from error
    gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = ["CUDAExecutionProvider"] * gpu + ["CPUExecutionProvider"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # images are what is done side by side
    try:
        app = FaceAnalysis(
            name=PACK,
            root=str(root),
            allowed_modules=list(MODELS),
            providers=providers,
            sess_options=options,
        )
    # ONNX Runtime has an exception per kind of damage, and insightface asserts.
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise AssetError(
            f"insightface's models in {folder} ({terms}) cannot be opened: {why}. Remove the "
            "folder and download the pack again, or set landmarks.detector: facemesh."
        ) from error
    missing = [name for name in MODELS if name not in app.models]
    if missing:
        raise AssetError(
            f"insightface's model pack in {folder} lacks {', '.join(missing)}. Remove the folder "
            "and download the pack again, or set landmarks.detector: facemesh."
        )
    app.prepare(ctx_id=0 if gpu else -1, det_thresh=min_face_score, det_size=(640, 640))
    return app
