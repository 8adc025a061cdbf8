"""Which faces of a mesh can be seen from outside it."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from gha_core.cameras import look_at
from gha_core.mesh_rasterisation.visibility import rasterize

_SIDE = 384  # px of each picture
_DISTANCE = 20.0  # radii, far enough that nothing comes near the lens


def exposed_faces(vertices: Tensor, faces: Tensor) -> Tensor:
    """[F] bool: the face fills at least one pixel in pictures from 26 directions all around.

    Faces inside cavities (a closed mouth) and those smaller than 1/400 of the mesh may be missed.

    Args:
        vertices: [V, 3] in any unit; faces: [F, 3] int64.
    """
    low, high = vertices.amin(0), vertices.amax(0)
    centre, radius = (low + high) / 2, float((high - low).norm()) / 2
    centred = (vertices - centre) / radius
    focal = 0.48 * _SIDE * _DISTANCE
    K = np.array([[focal, 0, _SIDE / 2], [0, focal, _SIDE / 2], [0, 0, 1]])
    seen = torch.zeros(len(faces), dtype=torch.bool)
    for direction in itertools.product((-1, 0, 1), repeat=3):
        if any(direction):
            eye = _DISTANCE * np.array(direction) / np.linalg.norm(direction)
            w2c = look_at(eye, np.zeros(3), np.array([0.13, 1.0, 0.21]))
            index = rasterize(centred, faces, K, w2c, _SIDE, _SIDE).face_index
            seen[index[index >= 0]] = True
    return seen
