"""The person's shape from the outlines of cheeks, nose, jaw and chin in the mattes.

Landmarks say little about the sides of a face: few lie there, and those slide along the outline as
the head turns. The outline itself is exact. Where the model's own outline is skin of the face that
the photo shows, too, and not hair, ear or collar, the shape is moved until both coincide, within
what people look like, and with the landmarks in the middle of the face held where several cameras
see them (Gauss-Newton; each outline point moves along its normal). The head may turn, shift and
grow with it, the same in all timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.faces import FaceModel
from gha_core.faces.portrait import vertex_normals
from gha_core.fitting import rotations
from gha_core.fitting.observations import EYE_POINTS, LandmarkModel
from gha_core.fitting.residuals import State
from gha_core.mesh_rasterisation import rasterize
from gha_core.progress import track

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Picture = NDArray[np.float32]
Photos = Callable[[int], Mapping[int, Image]]
Mattes = Callable[[int], Mapping[int, NDArray[np.uint8]]]
"""Timestep -> camera -> [H, W] 8-bit alpha; both are indices. Called from several threads."""

_ROUNDS, _TIMESTEPS = 5, 10  # steps; timesteps whose photos are used, evenly spread
_HEAD = 200.0  # px; larger heads are shrunk to it
# Head lengths:
_REACH = 0.05  # farthest that an outline is looked for
_CLEAR = 0.02, 0.04  # so far outside of the model's outline no part of it may be
_UNDER = 0.018  # inside of the matte's edge, where the colour must be that of skin
_BROW = 0.09  # above the eyes; higher up hair begins
_NOISE = 0.008  # of an outline point
_ROBUST = 0.02  # beyond which it counts as something else
_FIRM = 0.006  # of a landmark that is held
_INDEPENDENT, _HELD = 0.05, 0.1  # outlines and landmarks err together; these shares count
_MIDDLE = np.radians(30)  # landmarks up to this angle from straight ahead are held
# Standard deviations: rad, head lengths, relative.
_TURN, _MOVE, _GROW = 0.02, 0.03, 0.03
_DARKER, _TINT = 0.55, 0.03  # skin is not darker than this share, nor its colour's shares farther


def fit_outlines(
    state: State,
    indices: Ints,
    model: FaceModel,
    landmarks: LandmarkModel,
    cameras: tuple[Camera, ...],
    photos: Photos,
    mattes: Mattes,
) -> State:
    """The state with the shape whose outlines are those of the mattes.

    Args:
        indices: [T] what the state's timesteps are to photos and mattes.
        landmarks: of ``model``.
    """
    sculptor = _Sculptor.of(state, model, landmarks, cameras)
    columns = sculptor.columns
    hold, wanted = sculptor.hold(landmarks)
    found = np.zeros(columns.shape[2])
    count = min(len(indices), _TIMESTEPS)
    places = np.linspace(0, len(indices) - 1, count).round().astype(int).tolist()

    def pulled(place: int) -> tuple[Floats, Floats]:
        index = int(indices[place])
        alphas = mattes(index)
        shape = sculptor.shape + columns @ found
        shape = shape + np.tensordot(state.expression[place], sculptor.expression, 1)
        normals = vertex_normals(shape, sculptor.faces)
        H, g = np.zeros_like(hold), np.zeros_like(found)
        for c, photo in photos(index).items():
            if c in alphas:
                outline = sculptor.outline(place, c, shape, normals, photo, alphas[c])
                J = np.einsum("nk,nkp->np", outline.slope, outline.at(columns))
                weight = _INDEPENDENT / _NOISE**2 / (1 + (outline.away / _ROBUST) ** 2) ** 2
                H += (J * weight[:, None]).T @ J
                g -= (J * weight[:, None]).T @ outline.away
        return H, g

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in track(range(_ROUNDS), "fitting the outlines"):
            parts = list(pool.map(pulled, places))
            H, g = (np.sum(each, axis=0) for each in zip(*parts, strict=True))
            found = found - np.linalg.solve(H + hold, g + hold @ found - wanted)
    turn, shift, growth = found[:3], found[3:6], 1 + float(found[6])
    matrices = state.matrices @ rotations.exponential(turn)
    return replace(
        state,
        rotation=rotations.logarithm(matrices @ state.reference.swapaxes(-1, -2)),
        translation=state.translation + state.scale * state.matrices @ shift,
        scale=state.scale * growth,
        identity=state.identity + found[7:],
    )


@dataclass(frozen=True)
class _Outline:
    """Where the model ends in a photo.

    Attributes:
        ends: [n, 2] vertices between which a point lies; share: [n] how near to the second one.
        away: [n] along the normal to the matte's edge, head lengths.
        slope: [n, 3] derivative of the point's place along the normal by that in head space.
    """

    ends: Ints
    share: Floats
    away: Floats
    slope: Floats

    def at(self, values: Floats) -> Floats:
        """[n, ...] of [V, ...] values at the vertices."""
        return _between(values, self.ends, self.share)


@dataclass(frozen=True)
class _Sculptor:
    """What does not change from step to step.

    Attributes:
        shape: [V, 3] the neutral head; columns: [V, 3, 7 + I] its derivatives by turn, shift,
            growth and identity; expression: [E, V, 3]; faces: [F, 3].
        edges: [n, 2] of the skin whose outline counts.
        front: [V] where the colour of skin is learned.
        small: the cameras of pictures in which the head is no larger than need be.
    """

    state: State
    shape: Floats
    columns: Floats
    expression: Floats
    faces: Ints
    edges: Ints
    front: Bools
    cameras: tuple[Camera, ...]
    small: tuple[Camera, ...]

    @staticmethod
    def of(
        state: State, model: FaceModel, landmarks: LandmarkModel, cameras: tuple[Camera, ...]
    ) -> _Sculptor:
        basis = model.identity_basis.double().numpy()
        shape = model.mean.double().numpy() + np.tensordot(state.identity, basis, 1)
        faces = model.faces.numpy()
        face = model.regions["face"].numpy()
        eyes = landmarks.mean[np.isin(landmarks.points, EYE_POINTS), 1]
        low = shape[:, 1] < (eyes.mean() if len(eyes) else 0.0) + _BROW
        # Ears would slide along themselves, and are under hair more often than not.
        skin = face & low & ~model.regions["eyelids"].numpy()
        edges = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)
        return _Sculptor(
            state,
            shape,
            np.concatenate([_rigid(shape), basis.transpose(1, 2, 0)], axis=2),
            model.expression_basis.double().numpy(),
            faces,
            edges[skin[edges].all(1)],
            face,
            cameras,
            tuple(_shrunk(camera, state) for camera in cameras),
        )

    def hold(self, landmarks: LandmarkModel) -> tuple[Floats, Floats]:
        """H and g of what holds the unknowns: landmarks, and what people look like."""
        identity = self.state.identity
        place = landmarks.mean + landmarks.identity @ identity
        middle = np.abs(np.arctan2(landmarks.mean[:, 0], landmarks.mean[:, 2])) < _MIDDLE
        columns = np.concatenate([_rigid(place), landmarks.identity], axis=2)[middle]
        weight = _HELD / _FIRM**2 * landmarks.weights[middle].clip(0, 1)
        rigid = np.repeat([_TURN, _MOVE, _GROW], [3, 3, 1]) ** -2.0
        prior = np.concatenate([rigid, np.ones(len(identity))])
        H = np.einsum("l,lki,lkj->ij", weight, columns, columns, optimize=True) + np.diag(prior)
        return H, prior * np.concatenate([np.zeros(7), -identity])

    def outline(
        self, place: int, c: int, shape: Floats, normals: Floats, photo: Image, alpha: Image
    ) -> _Outline:
        """Of ``shape`` [V, 3] with ``normals`` [V, 3] at a timestep in one camera."""
        state, camera = self.state, self.small[c]
        matrix = state.matrices[place]
        turn = camera.w2c[:3, :3] @ matrix * state.scale
        shift = camera.w2c[:3, :3] @ state.translation[place] + camera.w2c[:3, 3]
        unit = camera.K[0, 0] * state.scale / max(shift[2], 1e-3)
        eye = (camera.centre - state.translation[place]) @ matrix / state.scale
        ray = eye - shape
        facing = (ray * normals).sum(1) / np.linalg.norm(ray, axis=1)
        ends = self.edges[facing[self.edges[:, 0]] * facing[self.edges[:, 1]] < 0]
        one, other = facing[ends].T
        share = one / (one - other)

        local = shape @ turn.T + shift
        plane = local[:, :2] / np.maximum(local[:, 2:], 1e-6)
        pixels = plane @ camera.K[:2, :2].T + camera.K[:2, 2]
        outward = (_between(normals, ends, share) @ turn.T)[:, :2]
        outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9
        points = _between(pixels, ends, share)

        def beside(picture: Picture, by: Floats | float) -> Floats:
            """[n, ...] values ``by`` [n or 1, k] head lengths outside of the points."""
            by = np.atleast_2d(by)[..., None]
            return _lookup(picture, points[:, None] + by * unit * outward[:, None])

        matte = _seen(alpha, self.cameras[c], camera) / np.float32(255)
        world = state.scale * shape @ matrix.T + state.translation[place]
        own = rasterize(
            torch.from_numpy(world), torch.from_numpy(self.faces), camera.K, camera.w2c,
            camera.width, camera.height,
        ).face_index.numpy()  # fmt: skip
        usable = (beside((own >= 0).astype(np.float32), np.array(_CLEAR)) < 0.3).all(1)
        # The matte's edge: it is left once, on the way out.
        steps = np.linspace(-_REACH, _REACH, 49)
        values = beside(matte, steps)
        inside = values > 0.5
        leaves = inside[:, :-1] & ~inside[:, 1:]
        usable &= (leaves.sum(1) == 1) & inside[:, 0] & ~inside[:, -1]
        last = leaves.argmax(1)[:, None]
        before, after = (np.take_along_axis(values, last + k, 1)[:, 0] for k in range(2))
        part = (before - 0.5) / np.maximum(before - after, 1e-6)
        away = steps[last[:, 0]] + part * (steps[1] - steps[0])
        margin = _REACH * unit
        size = np.array([camera.width, camera.height])
        usable &= ((points > margin) & (points < size - margin)).all(1)

        colours = _seen(photo, self.cameras[c], camera)
        colours = np.asarray(cv2.GaussianBlur(colours, (0, 0), 1), np.float32)
        front = self.front & (facing > 0.5) & (local[:, 2] > 0)
        usable &= front.any()
        usable &= _is_skin(beside(colours, away[:, None] - _UNDER)[:, 0],
                           _lookup(colours, pixels[front][:, None])[:, 0])  # fmt: skip
        flat = _between(plane, ends, share)
        depth = _between(local, ends, share)[:, 2, None, None]
        across = (turn[None, :2] - flat[:, :, None] * turn[2]) / depth
        slope = np.einsum("ni,nij->nj", outward, camera.K[:2, :2] @ across / unit)
        return _Outline(ends[usable], share[usable], away[usable], slope[usable])


def _is_skin(colours: Floats, front: Floats) -> Bools:
    """[n] whether colours [n, 3] are like those in the middle of the face [m, 3]."""
    if not len(front):
        return np.zeros(len(colours), bool)
    usual = np.median(front, axis=0)
    light = colours.sum(1)
    tint = colours / np.maximum(light[:, None], 1) - usual / max(usual.sum(), 1)
    return (light > _DARKER * usual.sum()) & (np.abs(tint).max(1) < _TINT)


def _rigid(points: Floats) -> Floats:
    """[..., 3, 7] derivatives of points [..., 3] by a turn, a shift and growth."""
    eye = np.broadcast_to(np.eye(3), (*points.shape, 3))
    return np.concatenate([-rotations.cross(points), eye, points[..., None]], axis=-1)


def _between(values: Floats, ends: Ints, share: Floats) -> Floats:
    """[n, ...] of [V, ...] values at points between vertices."""
    part = share.reshape(-1, *(1,) * (values.ndim - 1))
    return (1 - part) * values[ends[:, 0]] + part * values[ends[:, 1]]


def _shrunk(camera: Camera, state: State) -> Camera:
    depth = (state.translation @ camera.w2c[2, :3] + camera.w2c[2, 3]).clip(1e-3)
    factor = min(1.0, _HEAD * float(np.median(depth)) / (camera.K[0, 0] * state.scale))
    return camera.resized(*(max(8, round(n * factor)) for n in (camera.width, camera.height)))


def _seen(picture: Image, full: Camera, small: Camera) -> Picture:
    """A picture of the camera ``full``, undistorted and of the size of ``small``."""
    if np.any(full.distortion):
        picture = np.asarray(cv2.undistort(picture, full.K, full.distortion), np.uint8)
    size = small.width, small.height
    resized = cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.float32)


def _lookup(picture: Picture, pixels: Floats) -> Floats:
    """[n, k, ...] values at [n, k, 2] pixels, interpolated."""
    # OpenCV's coordinates are 0 at the centre of the first pixel.
    x, y = np.moveaxis((pixels - 0.5).astype(np.float32), -1, 0)
    found = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, float)
