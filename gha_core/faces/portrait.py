"""Plain portraits of the head model: enough of a face for a detector, and known pixel by pixel.

Colours are painted in the space of the mean head, so that they stick to the surface whatever shape
and expression the head has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, look_at
from gha_core.faces.model import FaceModel
from gha_core.mesh_rasterisation import rasterize

Floats = NDArray[np.float64]

SKIN, LIPS, BROWS = (0.80, 0.62, 0.53), (0.66, 0.36, 0.34), (0.26, 0.18, 0.14)
EYE_WHITE, IRIS, PUPIL = (0.92, 0.91, 0.90), (0.34, 0.24, 0.16), (0.05, 0.05, 0.05)
TEETH, TONGUE, MOUTH, HAIR = (0.88, 0.86, 0.80), (0.66, 0.34, 0.34), (0.24, 0.08, 0.08), (0.2,) * 3
BACKDROP = 0.72
IRIS_ANGLE, PUPIL_ANGLE = np.radians(23.5), np.radians(9.5)
SOFTNESS = 0.6  # px; stands in for antialiasing, which costs four times as much


@dataclass(frozen=True)
class Portrait:
    """A picture of a head and what each of its pixels shows.

    Attributes:
        image: [H, W, 3] uint8 sRGB.
        face_index: [H, W] triangle seen by each pixel, -1 = none; barycentric: [H, W, 3].
        camera: of the picture, in head-space units.
    """

    image: Image
    face_index: NDArray[np.int64]
    barycentric: NDArray[np.float32]
    camera: Camera


class Painter:
    """Paints portraits of one face model; of parts that it lacks there is nothing to paint."""

    def __init__(self, model: FaceModel) -> None:
        self.model = model
        self.faces = model.faces.numpy()
        self.rest = model.mean.double().numpy()
        self.regions = {name: mask.numpy() for name, mask in model.regions.items()}

    def portrait(self, vertices: Floats, camera: Camera, light: Floats) -> Portrait:
        """``vertices`` [V, 3] seen by ``camera`` (both in head space), lit from ``light`` [3]."""

        def paint(corners: NDArray[np.int64], share: Floats) -> Floats:
            return self._paint((self.rest[corners] * share).sum(1), corners, share)

        return shaded(vertices, self.faces, camera, light, paint)

    def _paint(self, place: Floats, corners: NDArray[np.int64], share: Floats) -> Floats:
        """[n, 3] colours at ``place`` [n, 3] on the mean head."""

        names = ("scalp", "lips", "mouth_interior", "tongue", "teeth", "eye_sockets", "eyes")
        masks = np.stack([self.regions[name] for name in names], 1).astype(np.float32)
        amounts = np.einsum("nkr,nk->nr", masks[corners], share[..., 0].astype(np.float32))

        def amount(region: str) -> Floats:
            return amounts[:, names.index(region), None]

        colour = np.tile(np.array(SKIN), (len(place), 1))
        scalp = np.clip(amount("scalp") * 2 - 0.5, 0, 1)
        colour += scalp * (np.array(HAIR) - colour)
        brow = self._brow_density(place)[:, None]
        colour += brow * (np.array(BROWS) - colour)
        for region, tint in (("lips", LIPS), ("mouth_interior", MOUTH), ("tongue", TONGUE)):
            colour += np.clip(amount(region) * 1.5, 0, 1) * (np.array(tint) - colour)
        colour[amount("teeth")[:, 0] > 0.5] = TEETH
        socket = (amount("eye_sockets")[:, 0] > 0.5) & (amount("eyes")[:, 0] < 0.5)
        colour[socket] = LIPS
        on_eye = amount("eyes")[:, 0] > 0.5
        colour[on_eye] = EYE_WHITE
        for centre in self.eye_centres:
            ray = place - centre
            angle = np.arctan2(np.hypot(ray[:, 0], ray[:, 1]), ray[:, 2])
            near = on_eye & (np.sign(place[:, 0]) == np.sign(centre[0]))
            colour[near & (angle < IRIS_ANGLE)] = IRIS
            colour[near & (angle < PUPIL_ANGLE)] = PUPIL
        return colour

    @cached_property
    def eye_centres(self) -> Floats:
        """[2, 3] centres of the left and the right eyeball of the mean head; [0, 3] if none."""
        balls = self.rest[self.regions["eyes"]]
        sides = [balls[balls[:, 0] * sign > 0] for sign in (1, -1)]
        centres = [(side.min(0) + side.max(0)) / 2 for side in sides if len(side)]
        return np.array(centres).reshape(-1, 3)

    @cached_property
    def _brow_line(self) -> tuple[Floats, Floats]:
        """|x| and y along the brow: where lowering the brows moves the skin most."""
        names = self.model.expression_names
        down = [names.index(f"browDown{side}") for side in ("Left", "Right")]
        moved = self.model.expression_basis[down].double().norm(dim=-1).sum(0).numpy()
        moved = moved * self.regions["face"] * (self.rest[:, 1] > self.eye_centres[0, 1] + 0.045)
        across = np.abs(self.rest[:, 0])
        eye = abs(self.eye_centres[0, 0])
        xs: Floats = np.linspace(0.45 * eye, 1.65 * eye, 9)
        weights = moved[None] ** 2 * np.exp(-(((across[None] - xs[:, None]) / (0.12 * eye)) ** 2))
        # Brow hair grows on the ridge, a little below the middle of the skin that moves.
        heights = (weights * self.rest[:, 1]).sum(1) / (weights.sum(1) + 1e-12) - 0.012
        return xs, np.asarray(np.polyval(np.polyfit(xs, heights, 2), xs), float)

    def _brow_density(self, place: Floats) -> Floats:
        """[n] 0..1, soft-edged and thinning outwards."""
        if not len(self.eye_centres):
            return np.zeros(len(place))
        xs, ys = self._brow_line
        across = np.abs(place[:, 0])
        along = (across - xs[0]) / (xs[-1] - xs[0])
        thick = 0.016 * np.clip(1.25 - 0.8 * along, 0.2, 1.2)
        height = np.abs(place[:, 1] - np.interp(across, xs, ys))
        edge = np.clip((thick - height) / 0.006 + 0.5, 0, 1)
        ends = np.clip(along / 0.06 + 0.5, 0, 1) * np.clip((1 - along) / 0.06 + 0.5, 0, 1)
        return 0.85 * edge * ends * (place[:, 2] > 0)


def shaded(
    vertices: Floats,
    faces: NDArray[np.int64],
    camera: Camera,
    light: Floats,
    paint: Callable[[NDArray[np.int64], Floats], Floats] | None = None,
) -> Portrait:
    """A mesh seen by ``camera``, lit from ``light`` [3].

    Args:
        paint: corners [n, 3] and shares [n, 3, 1] of places to their colours [n, 3]; by default all
            is skin.
    """
    height, width = camera.height, camera.width
    seen = rasterize(
        torch.from_numpy(vertices), torch.from_numpy(faces), camera.K, camera.w2c, width, height
    )
    index, weights = seen.face_index.numpy(), seen.barycentric.numpy()
    hit = index >= 0
    corners, share = faces[index[hit]], weights[hit][..., None].astype(float)
    normals = (vertex_normals(vertices, faces)[corners] * share).sum(1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    colour = np.array(SKIN) if paint is None else paint(corners, share)
    shade = 0.42 + 0.5 * np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)
    picture = np.full((height, width, 3), BACKDROP)
    picture[hit] = colour * shade[:, None]
    picture = cv2.GaussianBlur(picture, (0, 0), SOFTNESS)
    image = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    return Portrait(image, index, weights, camera)


def portrait_camera(yaw: float, pitch: float, size: int, centre: Floats) -> Camera:
    """A camera in head space that sees the face from ``yaw`` (towards the subject's left) and
    ``pitch`` (from above), degrees, about three head lengths away."""
    yaw, pitch, distance = np.radians(yaw), np.radians(pitch), 3.2
    direction = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    focal = 0.92 * size * distance
    K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    w2c = look_at(centre + distance * direction, centre, np.array([0.0, 1.0, 0.0]))
    return Camera("portrait", K, w2c, size, size)


def vertex_normals(vertices: Floats, faces: NDArray[np.int64]) -> Floats:
    """[..., V, 3] unit normals, area-weighted means over the triangles at each vertex."""
    corners = vertices[..., faces, :]
    across = np.cross(
        corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    )
    normals = np.zeros_like(vertices)
    for corner in range(3):
        for axis in range(3):
            flat = across[..., axis].reshape(-1, len(faces))
            target = normals[..., axis].reshape(-1, vertices.shape[-2])
            for row, values in zip(target, flat, strict=True):
                row += np.bincount(faces[:, corner], values, minlength=len(row))
            normals[..., axis] = target.reshape(normals.shape[:-1])
    return normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + 1e-12)
