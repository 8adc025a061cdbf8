"""The few 3D landmarks of a tracked head that later stages anchor to.

They are classic facial landmarks (brows, eyes, nose, lips, jaw) at their measured places on the
head, plus every hundredth vertex of the face, so that cheeks and forehead have some, too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gha_core.faces import FaceModel
from gha_core.landmarks import points

# Bridge and tip, then along the base of the nose from the subject's right to left.
NOSE = (168, 6, 195, 4, 98, 97, 2, 326, 327)
LANDMARKS = (
    *points.RIGHT_BROW[:5],
    *points.LEFT_BROW[:5],
    *NOSE,
    *points.RIGHT_EYE[::2],
    *points.LEFT_EYE[::2],
    *points.LIPS_OUTER[::2],
    *points.LIPS_INNER[::2],
    *points.FACE_OVAL[6:31:2],  # from ear to ear along the jaw
)
VERTEX_STEP = 100


def tracked_points(model: FaceModel, vertices: Tensor) -> Tensor:
    """[..., V, 3] to the [..., M, 3] landmarks."""
    order = {int(point): place for place, point in enumerate(model.landmark_indices)}
    chosen = torch.tensor([order[point] for point in LANDMARKS if point in order])
    face = torch.from_numpy(np.flatnonzero(model.regions["face"].numpy())[::VERTEX_STEP])
    return torch.cat([model.landmarks(vertices)[..., chosen, :], vertices[..., face, :]], -2)
