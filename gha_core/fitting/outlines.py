"""The person's shape from the outlines of cheeks, nose, jaw and chin in the mattes, and the ears.

Landmarks say little about the sides of a face: few lie there, and those slide along the outline as
the head turns. The outline itself is exact. Where the model's own outline is skin of the face that
the photo shows, too, and not hair, ear or collar, the shape is moved until both coincide, within
what people look like, and with the landmarks in the middle of the face held where several cameras
see them (Gauss-Newton; each outline point moves along its normal). How high the ears sit, which no
outline shows, several cameras see together (:mod:`gha_core.fitting.ears`). The head may turn, shift
and grow with it, the same in all timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.faces import FaceModel
from gha_core.faces.portrait import vertex_normals
from gha_core.fitting import ears, rotations
from gha_core.fitting.observations import EYE_POINTS, LandmarkModel
from gha_core.fitting.pictures import Picture, lookup, seen, shrunk
from gha_core.fitting.residuals import State
from gha_core.mesh_rasterisation import Fragments, rasterize
from gha_core.progress import track

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Photos = Callable[[int], Mapping[int, Image]]
Mattes = Callable[[int], Mapping[int, NDArray[np.uint8]]]
"""Timestep -> camera -> [H, W] 8-bit alpha; both are indices. Called from several threads."""

_TIMESTEPS = 10  # whose photos are used, evenly spread
_BLURS = 4.0, 4.0, 3.0, 2.0, 2.0, 1.5  # px, of the ears' photos, one per step
_HEAD = 200.0  # px; larger heads are shrunk to it
# Head lengths:
_REACH = 0.05  # farthest that an outline is looked for
_BEHIND = 0.025  # a point so far behind what the model shows is hidden
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

    def pulled(place: int, found: Floats, blur: float) -> _Evidence:
        index = int(indices[place])
        return sculptor.evidence(place, found, photos(index), mattes(index), blur)

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for blur in track(_BLURS, "fitting the outlines"):
            parts = list(pool.map(partial(pulled, found=found, blur=blur), places))
            H, g, bare = (np.sum(each, axis=0) for each in zip(*parts, strict=True))
            counts = np.concatenate([[True], bare[:, 0] >= ears.BARE * np.maximum(bare[:, 1], 1)])
            H, g = H[counts].sum(0), g[counts].sum(0)
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
        ears: points of the left ear and beside it, and of the right; lobes: [V] the ears alone.
        front: [V] where the colour of skin is learned.
        small: the cameras of pictures in which the head is no larger than need be.
    """

    state: State
    shape: Floats
    columns: Floats
    expression: Floats
    faces: Ints
    edges: Ints
    ears: tuple[Ints, Ints]
    lobes: Bools
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
            ears_of(model),
            model.regions["ears"].numpy(),
            face,
            cameras,
            tuple(shrunk(each, state.translation, state.scale, _HEAD) for each in cameras),
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

    def evidence(
        self,
        place: int,
        found: Floats,
        photos: Mapping[int, Image],
        mattes: Mapping[int, Image],
        blur: float,
    ) -> _Evidence:
        """At one timestep, with the unknowns as ``found`` [P]."""
        shape = self.shape + self.columns @ found
        shape = shape + np.tensordot(self.state.expression[place], self.expression, 1)
        normals = vertex_normals(shape, self.faces)
        size = len(found)
        H, g, bare = np.zeros((3, size, size)), np.zeros((3, size)), np.zeros((2, 2))
        sightings: tuple[list[ears.Sighting], ...] = [], []
        for c, photo in photos.items():
            if c not in mattes:
                continue
            view = self.view(place, c, shape, normals)
            colours = seen(photo, self.cameras[c], view.camera)
            skin = _Complexion.of(colours, view.pixels[self.front & (view.facing > 0.5)])
            matte = seen(mattes[c], self.cameras[c], view.camera) / np.float32(255)
            outline = self.outline(view, matte, skin)
            J = np.einsum("nk,nkp->np", outline.slope, outline.at(self.columns))
            weight = _INDEPENDENT / _NOISE**2 / (1 + (outline.away / _ROBUST) ** 2) ** 2
            H[0] += (J * weight[:, None]).T @ J
            g[0] -= (J * weight[:, None]).T @ outline.away
            luma = cv2.GaussianBlur(colours.mean(-1), (0, 0), blur)
            for side, points in enumerate(self.ears):
                pixels, facing = view.pixels[points], view.clear(points)
                sightings[side].append(
                    ears.Sighting.of(luma, pixels, view.by_place[points], facing)
                )
                lobe = pixels[self.lobes[points] & (facing > ears.FACING)]
                bare[side] += skin.at(lobe[:, None]).sum(), len(lobe)
        for side, points in enumerate(self.ears):
            if len(sightings[side]) > 1:
                H[1 + side], g[1 + side] = ears.disagreement(sightings[side], self.columns[points])
        return _Evidence(H, g, bare)

    def view(self, place: int, c: int, shape: Floats, normals: Floats) -> _View:
        """Of ``shape`` [V, 3] with ``normals`` [V, 3] at a timestep in one camera."""
        state, camera = self.state, self.small[c]
        matrix = state.matrices[place]
        turn = camera.w2c[:3, :3] @ matrix * state.scale
        shift = camera.w2c[:3, :3] @ state.translation[place] + camera.w2c[:3, 3]
        eye = (camera.centre - state.translation[place]) @ matrix / state.scale
        ray = eye - shape
        local = shape @ turn.T + shift
        plane = local[:, :2] / np.maximum(local[:, 2:], 1e-6)
        across = (turn[None, :2] - plane[:, :, None] * turn[2]) / np.maximum(
            local[:, 2, None, None], 1e-6
        )
        outward = (normals @ turn.T)[:, :2]
        world = state.scale * shape @ matrix.T + state.translation[place]
        return _View(
            camera,
            camera.K[0, 0] * state.scale / max(shift[2], 1e-3),
            plane @ camera.K[:2, :2].T + camera.K[:2, 2],
            camera.K[:2, :2] @ across,
            outward,
            (ray * normals).sum(1) / np.linalg.norm(ray, axis=1) * (local[:, 2] > 0),
            local[:, 2],
            state.scale,
            rasterize(
                torch.from_numpy(world), torch.from_numpy(self.faces), camera.K, camera.w2c,
                camera.width, camera.height,
            ),
        )  # fmt: skip

    def outline(self, view: _View, matte: Picture, skin: _Complexion) -> _Outline:
        facing, unit, camera = view.facing, view.unit, view.camera
        ends = self.edges[facing[self.edges[:, 0]] * facing[self.edges[:, 1]] < 0]
        one, other = facing[ends].T
        share = one / (one - other)
        outward = _between(view.outward, ends, share)
        outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-9
        points = _between(view.pixels, ends, share)

        def beside(by: Floats | float) -> Floats:
            """[n, k, 2] pixels ``by`` [n or 1, k] head lengths outside of the points."""
            return points[:, None] + np.atleast_2d(by)[..., None] * unit * outward[:, None]

        own = view.drawn.mask.numpy().astype(np.float32)
        usable = (lookup(own, beside(np.array(_CLEAR))) < 0.3).all(1)
        # The matte's edge: it is left once, on the way out.
        steps = np.linspace(-_REACH, _REACH, 49)
        values = lookup(matte, beside(steps))
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
        usable &= skin.at(beside(away[:, None] - _UNDER))
        slope = np.einsum("ni,nij->nj", outward, _between(view.by_place, ends, share) / unit)
        return _Outline(ends[usable], share[usable], away[usable], slope[usable])


class _Evidence(NamedTuple):
    """What one timestep says about the P unknowns.

    Attributes:
        H: [3, P, P] and g [3, P] of the outlines, the left ear and the right.
        bare: [2, 2] of each ear the points that look like skin, and those that are in view.
    """

    H: Floats
    g: Floats
    bare: Floats


@dataclass(frozen=True)
class _View:
    """The model's vertices in one camera.

    Attributes:
        camera: of the shrunk picture; unit: its pixels per head length.
        pixels: [V, 2] and their derivatives by the place in head space by_place [V, 2, 3].
        outward: [V, 2] normals in the picture; facing: [V] cosine between normal and ray.
        depth: [V] metres; scale: metres per head length.
        drawn: the model in the picture.
    """

    camera: Camera
    unit: float
    pixels: Floats
    by_place: Floats
    outward: Floats
    facing: Floats
    depth: Floats
    scale: float
    drawn: Fragments

    def clear(self, points: Ints) -> Floats:
        """[n] the facing of points of which the model itself hides nothing, else 0."""
        nearest = self.drawn.depth.numpy()
        column, row = np.floor(self.pixels[points]).astype(int).T
        inside = (column >= 0) & (row >= 0)
        inside &= (column < self.camera.width) & (row < self.camera.height)
        front = nearest[row * inside, column * inside]
        hidden = (front > 0) & (self.depth[points] > front + _BEHIND * self.scale)
        return np.where(inside & ~hidden, self.facing[points], 0.0)


@dataclass(frozen=True)
class _Complexion:
    """What skin looks like in a photo: ``usual`` [3] levels, None where no face is in view."""

    colours: Picture
    usual: Floats | None

    @staticmethod
    def of(colours: Picture, front: Floats) -> _Complexion:
        """Learned at pixels ``front`` [n, 2] in the middle of the face."""
        colours = np.asarray(cv2.GaussianBlur(colours, (0, 0), 1), np.float32)
        usual = np.median(lookup(colours, front[:, None])[:, 0], axis=0) if len(front) else None
        return _Complexion(colours, usual)

    def at(self, pixels: Floats) -> Bools:
        """[n] whether the photo is like skin at [n, 1, 2] pixels."""
        if self.usual is None:
            return np.zeros(len(pixels), bool)
        found = lookup(self.colours, pixels)[:, 0]
        light = found.sum(1)
        tint = found / np.maximum(light[:, None], 1) - self.usual / max(self.usual.sum(), 1)
        return (light > _DARKER * self.usual.sum()) & (np.abs(tint).max(1) < _TINT)


def ears_of(model: FaceModel) -> tuple[Ints, Ints]:
    """Vertices of the left ear and of the face beside it, and of the right."""
    place = model.mean.double().numpy()
    aside = np.arctan2(place[:, 0], place[:, 2])
    lobes, face = model.regions["ears"].numpy(), model.regions["face"].numpy()
    left, right = (
        np.flatnonzero((lobes & (sign * place[:, 0] > 0)) | (face & (sign * aside > ears.BESIDE)))
        for sign in (1, -1)
    )
    return left, right


def _rigid(points: Floats) -> Floats:
    """[..., 3, 7] derivatives of points [..., 3] by a turn, a shift and growth."""
    eye = np.broadcast_to(np.eye(3), (*points.shape, 3))
    return np.concatenate([-rotations.cross(points), eye, points[..., None]], axis=-1)


def _between(values: Floats, ends: Ints, share: Floats) -> Floats:
    """[n, ...] of [V, ...] values at points between vertices."""
    part = share.reshape(-1, *(1,) * (values.ndim - 1))
    return (1 - part) * values[ends[:, 0]] + part * values[ends[:, 1]]
