"""Makes a face model of others into one that the pipeline can use: same axes and unit, ARKit's
expressions, regions, and the detector's points.

What the file does not say is carried over from the open head model. The two heads are laid over
each other by what the detector sees: portraits of both are painted from the same views, and a point
that it finds on both is a pair; what it gets wrong it gets wrong on both. A smooth warp through the
pairs, refined to the nearest surface, takes the open head to the other. An expression is carried by
warping the open head at rest and at full expression, so that lids that close there close here; each
vertex takes it, and its region, from the nearest place on the warped head that faces the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from gha_core.errors import AssetError
from gha_core.faces.correspondence import IRIS_POINTS, Detect, barycentric_grid
from gha_core.faces.drift import FEATURES
from gha_core.faces.identity_space import similarity_to
from gha_core.faces.model import FaceModel
from gha_core.faces.model_files import Shape
from gha_core.faces.portrait import portrait_camera, shaded, vertex_normals
from gha_core.landmarks import LANDMARKS
from gha_core.progress import track

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SIZE = 256
CENTRE = np.array([0.0, -0.08, 0.2])  # of the face, in head space
LIGHT = np.array([0.2, 0.5, 1.0])
VIEWS = ((0, 0), (-18, 0), (18, 0), (-36, 0), (36, 0), (0, -12), (0, 12), (-25, 10), (25, 10))
LEAST_PAIRS = 150
OUTLIER = 0.06  # head lengths between a pair, after the best similarity, that cannot be right
REFINEMENTS, ANCHORS, REACH = 3, 900, (0.08, 0.05, 0.03)  # rounds, points, head lengths
SMOOTHING = 1e-3
TURNED = 0.04  # head lengths that a normal in the opposite direction counts for, halved
INNER = ("eyes", "teeth", "tongue", "mouth_interior", "eye_sockets")
LOOSE = ("eyes", "teeth", "tongue")  # parts that models keep as pieces of their own
WHOLE = 0.8  # of a piece that must look like such a part for all of it to be one
Warp = Callable[[Floats], Floats]


def adapt(shape: Shape, head: FaceModel, detect: Detect) -> FaceModel:
    """The model of ``shape`` in head space, without correspondence to the detector's points yet
    (:func:`gha_core.faces.correspondence.fit_landmarks` measures it).

    Args:
        head: the open head model, with its landmarks.

    Raises:
        AssetError: the detector sees no face in the model, whichever way it is turned.
    """
    shape = _outward(shape)
    pairs, shape = _overlaid(shape, head, detect)
    warp = _warp(shape, head, pairs)
    places = _places(shape, head, warp)
    rest = head.mean.double().numpy()
    still = warp(rest)
    expressions = []
    for name, moves in zip(
        head.expression_names, head.expression_basis.double().numpy(), strict=True
    ):
        if name in shape.expressions:
            expressions.append(shape.expressions[name])
            continue
        carried = np.zeros_like(rest)
        moved = np.linalg.norm(moves, axis=1) > 1e-5
        carried[moved] = warp((rest + moves)[moved]) - still[moved]
        expressions.append(places.of(carried))
    flipped = cKDTree(shape.mean).query(shape.mean * [-1, 1, 1])[1]
    uv = np.empty((len(head.mean), 2))
    uv[head.faces.numpy()] = head.uv.numpy()[head.uv_faces.numpy()]
    faces = torch.from_numpy(shape.faces)
    return FaceModel(
        mean=_float(shape.mean),
        identity_basis=_float(shape.identity),
        expression_basis=_float(np.stack(expressions)),
        expression_names=head.expression_names,
        faces=faces,
        uv=_float(places.of(uv)),
        uv_faces=faces.clone(),
        mirror=torch.from_numpy(flipped.astype(np.int64)),
        regions={
            name: torch.from_numpy(mask.numpy()[places.nearest]) & places.near
            for name, mask in head.regions.items()
        },
        landmark_indices=torch.zeros(0, dtype=torch.int64),
        landmark_triangles=torch.zeros(0, dtype=torch.int64),
        landmark_weights=torch.zeros(0, 3),
        landmark_confidence=torch.zeros(0),
        landmark_drift=torch.zeros(0, 2, FEATURES),
        metres_per_unit=head.metres_per_unit,
    )


def _outward(shape: Shape) -> Shape:
    """With triangles counter-clockwise seen from outside."""
    corners = shape.mean[shape.faces]
    area = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    out = ((corners.mean(1) - shape.mean.mean(0)) * area).sum()
    return shape if out > 0 else replace(shape, faces=shape.faces[:, ::-1].copy())


def _moved(shape: Shape, scale: float, turn: Floats, shift: Floats) -> Shape:
    carry = scale * turn.T
    return Shape(
        shape.mean @ carry + shift,
        shape.faces,
        shape.identity @ carry,
        {name: moves @ carry for name, moves in shape.expressions.items()},
    )


@dataclass(frozen=True)
class _Pairs:
    """Places [n, 3] of the same points on the open head and on the other."""

    here: Floats
    there: Floats


def _overlaid(shape: Shape, head: FaceModel, detect: Detect) -> tuple[_Pairs, Shape]:
    """Pairs, and the shape moved to where they say that head space is."""
    known = _Sitter(head.mean.double().numpy(), head.faces.numpy())
    targets = head.landmarks(head.mean).double().numpy()
    # First from the front alone, wherever that is; the points found say how the head is turned.
    unit = np.ptp(shape.mean, axis=0).max() / 1.2
    middle = (shape.mean.max(0) + shape.mean.min(0)) / 2
    best: tuple[float, Shape] | None = None
    for turn in track(_quarter_turns(), "looking for the model's face", 24):
        turned = _moved(shape, 1 / unit, turn, CENTRE - turn @ middle / unit)
        seen = _Sitter(turned.mean, turned.faces).sit(detect, 0, 0)
        if seen is None or (best is not None and seen.trust <= best[0]):
            continue
        found = seen.places[head.landmark_indices.numpy()]
        usable = np.isfinite(found[:, 0])
        if usable.sum() >= LEAST_PAIRS:
            best = seen.trust, _moved(turned, *similarity_to(targets[usable], found[usable]))
    if best is None:
        raise AssetError(
            "The landmark detector finds no face in this model's mean, whichever way it is turned. "
            "The file is damaged, or of another kind of model than face_model says."
        )
    shape = best[1]
    ours = known.places(detect)
    outside = ~np.isin(np.arange(len(ours)), _inside(head))
    for _ in range(2):
        theirs = _Sitter(shape.mean, shape.faces).places(detect)
        usable = np.isfinite(ours[:, 0]) & np.isfinite(theirs[:, 0]) & outside
        for _ in range(3):
            fit = similarity_to(ours[usable], theirs[usable])
            off = np.linalg.norm(fit[0] * theirs @ fit[1].T + fit[2] - ours, axis=1)
            usable &= off < OUTLIER
        if usable.sum() < LEAST_PAIRS:
            raise AssetError(
                f"Of the landmark detector's points only {usable.sum()} fit this model's face, "
                f"fewer than {LEAST_PAIRS}. The file is damaged, or of another kind of model than "
                "face_model says."
            )
        shape = _moved(shape, *fit)
        theirs = fit[0] * theirs @ fit[1].T + fit[2]
    return _Pairs(ours[usable], theirs[usable]), shape


def _quarter_turns() -> list[Floats]:
    """The 24 rotations that take axes to axes."""
    turns = [
        np.eye(3)[list(order)] * np.array(signs)[:, None]
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
    return [turn for turn in turns if np.linalg.det(turn) > 0]


def _inside(head: FaceModel) -> Ints:
    """The detector's points that lie on parts behind the skin, where another may have none."""
    inner = np.any([head.regions[name].numpy() for name in INNER], axis=0)
    corners = head.faces[head.landmark_triangles].numpy()
    return head.landmark_indices.numpy()[inner[corners].all(1)]


@dataclass(frozen=True)
class _Seen:
    """places: [P, 3] of the detector's points on the mesh, NaN where it points beside it; facing:
    [P] cosine there; trust: the detector's confidence."""

    places: Floats
    facing: Floats
    trust: float


class _Sitter:
    """A plain mesh in head space that has its portraits taken."""

    def __init__(self, vertices: Floats, faces: Ints) -> None:
        self.vertices, self.faces = vertices, faces
        self.normals = vertex_normals(vertices, faces)

    def sit(self, detect: Detect, yaw: float, pitch: float) -> _Seen | None:
        camera = portrait_camera(yaw, pitch, SIZE, CENTRE)
        portrait = shaded(self.vertices, self.faces, camera, LIGHT)
        found = detect(portrait.image)
        if found is None:
            return None
        points, trust = found
        column, row = np.clip(np.floor(points).astype(int), 0, SIZE - 1).T
        triangle = portrait.face_index[row, column]
        share = portrait.barycentric[row, column][..., None].astype(float)
        corners = self.faces[triangle]
        places = (self.vertices[corners] * share).sum(1)
        normals = (self.normals[corners] * share).sum(1)
        ray = camera.centre - places
        facing = (normals * ray).sum(1) / np.linalg.norm(ray, axis=1)
        places[triangle < 0] = np.nan
        places[IRIS_POINTS:] = np.nan  # an unpainted eye has no iris to be found
        return _Seen(places, np.where(triangle < 0, 0.0, facing), trust)

    def places(self, detect: Detect) -> Floats:
        """[P, 3] of each point the median over the views that show it squarely, NaN if none."""
        seen = [view for yaw, pitch in VIEWS if (view := self.sit(detect, yaw, pitch)) is not None]
        if not seen:
            return np.full((LANDMARKS, 3), np.nan)
        places = np.stack([view.places for view in seen])
        places[np.stack([view.facing for view in seen]) < 0.3] = np.nan
        known = np.isfinite(places[..., 0]).any(0)
        result = np.full(places.shape[1:], np.nan)
        result[known] = np.nanmedian(places[:, known], axis=0)
        return result


def _warp(shape: Shape, head: FaceModel, pairs: _Pairs) -> Warp:
    """Takes head space of the open head to that of the other."""
    rest, faces = head.mean.double().numpy(), head.faces.numpy()
    inner = np.any([head.regions[name].numpy() for name in INNER], axis=0)
    skin = np.flatnonzero(~inner)
    skin = skin[:: max(1, len(skin) // ANCHORS)]
    there = cKDTree(shape.mean)
    normals_there = vertex_normals(shape.mean, shape.faces)
    warp = _smooth(pairs.here, pairs.there)
    for reach in REACH[:REFINEMENTS]:
        warped = warp(rest)
        normals = vertex_normals(warped, faces)[skin]
        distance, nearest = there.query(warped[skin])
        agrees = (normals * normals_there[nearest]).sum(1) > 0.7
        # Along the normal alone: where on the surface a vertex belongs, the pairs know better.
        offset = ((shape.mean[nearest] - warped[skin]) * normals).sum(1, keepdims=True) * normals
        used = (distance < reach) & agrees
        warp = _smooth(
            np.concatenate([pairs.here, rest[skin[used]]]),
            np.concatenate([pairs.there, (warped[skin] + offset)[used]]),
        )
    return warp


def _smooth(here: Floats, there: Floats) -> Warp:
    """A smooth map through most of the pairs, which contradict each other a little."""
    here, first = np.unique(here.round(9), axis=0, return_index=True)
    field = RBFInterpolator(
        here, there[first] - here, smoothing=SMOOTHING, kernel="linear", degree=0
    )
    return lambda points: np.asarray(points + field(points), float)


@dataclass(frozen=True)
class _Places:
    """Where on the open head each of the other's V vertices has its like.

    Attributes:
        corners: [V, 3] vertices of the open head and weights [V, 3].
        nearest: [V] the corner that weighs most; near: [V] whether the heads agree there at all.
    """

    corners: Ints
    weights: Floats
    near: torch.Tensor

    @property
    def nearest(self) -> Ints:
        return np.take_along_axis(self.corners, self.weights.argmax(1)[:, None], 1)[:, 0]

    def of(self, values: Floats) -> Floats:
        """[open head's vertices, n] to [V, n]."""
        return np.asarray((values[self.corners] * self.weights[..., None]).sum(1))


def _places(shape: Shape, head: FaceModel, warp: Warp) -> _Places:
    faces = head.faces.numpy()
    warped = warp(head.mean.double().numpy())
    grid = barycentric_grid(4)
    corners = np.repeat(faces, len(grid), axis=0)
    weights = np.tile(grid, (len(faces), 1))
    samples = _oriented(warped, vertex_normals(warped, faces))
    samples = (samples[corners] * weights[..., None]).sum(1)
    wanted = _oriented(shape.mean, vertex_normals(shape.mean, shape.faces))
    found = cKDTree(samples).query(wanted)[1]
    # A ball or a tooth that is a piece of its own is that all over, its hidden back included.
    piece = _pieces(shape)
    for part in LOOSE:
        mine = head.regions[part].numpy()[faces].all(1).repeat(len(grid))
        share = np.bincount(piece, mine[found]) / np.bincount(piece)
        whole = (share > WHOLE) & (np.arange(len(share)) != np.bincount(piece).argmax())
        again = np.flatnonzero(whole[piece])
        if len(again):
            found[again] = np.flatnonzero(mine)[cKDTree(samples[mine]).query(wanted[again])[1]]
    distance = np.linalg.norm(samples[found, :3] - shape.mean, axis=1)
    return _Places(corners[found], weights[found], torch.from_numpy(distance < 0.25))


def _oriented(points: Floats, normals: Floats) -> Floats:
    return np.concatenate([points, TURNED * normals], axis=1)


def _pieces(shape: Shape) -> Ints:
    """[V] the connected piece of the mesh that a vertex belongs to."""
    start, end = shape.faces.ravel(), shape.faces[:, [1, 2, 0]].ravel()
    links = coo_array((np.ones(len(start), bool), (start, end)), shape=(len(shape.mean),) * 2)
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def _float(values: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
