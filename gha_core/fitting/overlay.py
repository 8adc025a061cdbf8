"""A fitted head drawn over its photo, to see at a glance whether it fits."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.faces import FaceModel
from gha_core.faces.portrait import vertex_normals
from gha_core.mesh_rasterisation import rasterize

Floats = NDArray[np.float64]

_SKIN, _LIPS, _EYES, _OPACITY = (120, 190, 255), (255, 110, 110), (255, 255, 255), 0.55
_SEEN, _FITTED = (40, 255, 60), (255, 40, 40)


def draw_overlay(
    image: Image, camera: Camera, model: FaceModel, world: Floats, seen: Floats | None
) -> Image:
    """``image`` with the shaded mesh ``world`` [V, 3] (metres) over the face, red dots where its
    landmarks are and green dots where the detector saw them ([P, 2] pixels)."""
    faces = model.faces.numpy()
    fragments = rasterize(
        torch.from_numpy(world), model.faces, camera.K, camera.w2c, camera.width, camera.height
    )
    index = fragments.face_index.numpy()
    shown = _shown(model)[faces].all(1)
    hit = (index >= 0) & shown[index]
    corners, weights = faces[index[hit]], fragments.barycentric.numpy()[hit][..., None]
    normals = (vertex_normals(world, faces)[corners] * weights).sum(1)
    shade = np.abs(normals @ camera.forward) * 0.8 + 0.2
    colour = _colours(model)[corners].mean(1) * shade[:, None]
    result = image.astype(float)
    result[hit] += _OPACITY * (colour - result[hit])
    picture = np.ascontiguousarray(result.astype(np.uint8))
    vertices = torch.from_numpy(world)
    fitted = camera.project(model.landmarks(vertices.float()).double().numpy())
    for places, tint in ((seen, _SEEN), (fitted, _FITTED)):
        if places is None:
            continue
        for x, y in np.floor(places[np.isfinite(places).all(1)]).astype(int):
            if 0 <= x < camera.width and 0 <= y < camera.height:
                picture[y, x] = tint
    return picture


def _shown(model: FaceModel) -> NDArray[np.bool_]:
    return (model.regions["face"] | model.regions["eyes"] | model.regions["ears"]).numpy() | (
        model.regions["lips"].numpy()
    )


def _colours(model: FaceModel) -> Floats:
    colours = np.tile(np.array(_SKIN, float), (len(model.mean), 1))
    colours[model.regions["lips"].numpy()] = _LIPS
    colours[model.regions["eyes"].numpy()] = _EYES
    return colours
