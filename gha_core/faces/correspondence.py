"""Where on the head model the detector's points lie, measured rather than typed in.

We paint portraits of many heads, expressions and views, run the detector on them, and look up what
surface each found point shows. A point of the detector then is the one place of the surface whose
projections lie nearest to what was found in all portraits; how far off they stay says how much the
point can be trusted. Open mouths settle whether a point belongs to the upper or the lower lip,
which a closed one cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.errors import AssetError
from gha_core.faces.drift import fit_drift, view_features
from gha_core.faces.model import FaceModel
from gha_core.faces.portrait import (
    Painter,
    Portrait,
    portrait_camera,
    vertex_normals,
)
from gha_core.progress import track

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Detect = Callable[[Image], tuple[Floats, float] | None]

IRIS_POINTS = 468  # from here on the detector's points lie on the eyeballs
PORTRAITS, SIZE, SEED = 140, 256, 7
MAX_YAW, MAX_PITCH = 48.0, 16.0  # degrees
MIN_CONFIDENCE, MIN_SEEN, MIN_FACING = 0.5, 0.15, 0.25
SNAP = 0.03  # furthest step to the nearest surface that may carry the point, head lengths
NEAR = 0.035  # radius of the final search around the best place found, head lengths
OUTLIER = 0.06  # errors count no more than this, head lengths
SPREAD = 0.012  # residual at which a point's confidence has fallen to a half, head lengths
EXPRESSIONS: tuple[dict[str, float], ...] = (
    {},
    {"jawOpen": 0.6},
    {"mouthSmile": 0.6, "jawOpen": 0.25},
    {"mouthLowerDown": 0.7, "mouthUpperUp": 0.7, "jawOpen": 0.2},
    {"browInnerUp": 0.6, "browOuterUp": 0.6, "mouthFunnel": 0.4},
    {"browDown": 0.6, "eyeBlink": 0.5, "mouthPucker": 0.4},
    {"eyeBlink": 1.0},
    {"eyeBlink": 0.9, "jawOpen": 0.4},
)


@dataclass(frozen=True)
class Sighting:
    """One portrait with its detection; lengths in head-space units.

    Attributes:
        screen: [V, 3] vertices as homogeneous pixels, so that a place on a triangle is the weighted
            sum of its corners here, too.
        facing: [F] cosine between a triangle's normal and the direction to the camera.
        points: [L, 2] found, pixels.
        triangles: [L] seen there (-1 = nothing usable); weights: [L, 3] barycentric.
        unit: pixels per head length at the head's distance.
        view: [6] features of the view (:func:`gha_core.faces.drift.view_features`).
        trust: the detector's confidence.
    """

    screen: Floats
    facing: Floats
    points: Floats
    triangles: Ints
    weights: Floats
    unit: float
    view: Floats
    trust: float


def fit_landmarks(model: FaceModel, detect: Detect, portraits: int = PORTRAITS) -> FaceModel:
    """The model with its correspondence to the points of ``detect``.

    Args:
        detect: thread-safe; image -> ([L, 2] pixels, confidence 0..1), or None without a face.

    Raises:
        AssetError: the detector does not find the face in enough portraits.
    """
    painter = Painter(model)
    rng = np.random.default_rng(SEED)
    draws = [_draw(model, number, rng) for number in range(portraits)]

    def sit(draw: tuple[Floats, float, float, Floats]) -> Sighting | None:
        vertices, yaw, pitch, light = draw
        camera = portrait_camera(yaw, pitch, SIZE, np.array([0.0, -0.08, 0.2]))
        portrait = painter.portrait(vertices, camera, light)
        found = detect(portrait.image)
        if found is None or found[1] < MIN_CONFIDENCE:
            return None
        return _lift(painter, portrait, vertices, *found)

    with ThreadPoolExecutor(2) as pool:
        results = track(pool.map(sit, draws), "locating landmarks on the head", len(draws))
        sightings = [sighting for sighting in results if sighting is not None]
    if len(sightings) < portraits // 3:
        raise AssetError(
            f"The landmark detector found the head model's face in {len(sightings)} of {portraits} "
            "portraits only; the head model or the detector's weights are damaged."
        )
    locate = _Locator(model, sightings)
    places = [locate(point) for point in range(len(sightings[0].points))]
    kept = [(index, place) for index, place in enumerate(places) if place is not None]
    indices = np.array([index for index, _ in kept])
    triangles = np.array([place.triangle for _, place in kept])
    weights = np.stack([place.weights for _, place in kept])
    confidence = np.array([place.confidence for _, place in kept])
    drift = _drift(sightings, indices, locate.project(triangles, weights))
    return model.with_landmarks(
        torch.from_numpy(indices),
        torch.from_numpy(triangles),
        torch.from_numpy(weights).float(),
        torch.from_numpy(confidence).float(),
        torch.from_numpy(drift).float(),
    )


def _drift(sightings: list[Sighting], indices: Ints, places: Floats) -> Floats:
    """[L, 2, 6] from what was found and the projected places [R, L, 2]."""
    units = np.array([sighting.unit for sighting in sightings])
    found = np.stack([sighting.points[indices] for sighting in sightings])
    errors = (found - places) / units[:, None, None]
    size = np.linalg.norm(errors, axis=-1, keepdims=True)
    errors *= np.minimum(1, OUTLIER / np.maximum(size, 1e-9))
    views = np.stack([sighting.view for sighting in sightings])
    return fit_drift(views, errors, np.array([sighting.trust for sighting in sightings]))


def _draw(
    model: FaceModel, number: int, rng: np.random.Generator
) -> tuple[Floats, float, float, Floats]:
    """Vertices, yaw, pitch and light of one portrait; the first ones are of the mean head."""
    spread = 0.0 if number < 10 else 0.8
    identity = rng.normal(0, spread, len(model.identity_basis))
    recipe = EXPRESSIONS[number % len(EXPRESSIONS)]
    amounts = np.zeros(len(model.expression_names))
    for index, name in enumerate(model.expression_names):
        base = name.removesuffix("Left").removesuffix("Right")
        amounts[index] = recipe.get(base, 0.0)
    vertices = model.vertices(
        torch.tensor(identity, dtype=torch.float32), torch.tensor(amounts, dtype=torch.float32)
    )
    yaw = float(((number * 7) % 13 - 6) / 6 * MAX_YAW + rng.uniform(-3, 3))
    pitch = float(rng.uniform(-MAX_PITCH, MAX_PITCH))
    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(0.1, 0.9), 1.0])
    return vertices.double().numpy(), yaw, pitch, light


def _lift(
    painter: Painter, portrait: Portrait, vertices: Floats, points: Floats, trust: float
) -> Sighting:
    """What surface the detector's points show. A point may sit just beside the surface that it
    means (an inner lip on the teeth, the jaw line on the backdrop): take the nearest that can."""
    camera, faces = portrait.camera, painter.faces
    unit = float(camera.K[0, 0] / np.linalg.norm(camera.centre))
    skin, eyes = _surfaces(painter.model)
    pixels = np.floor(points).astype(int)
    size = portrait.face_index.shape[0]
    column, row = np.clip(pixels, 0, size - 1).T
    triangles = np.full(len(points), -1)
    weights = np.zeros((len(points), 3))
    on_iris = np.arange(len(points)) >= IRIS_POINTS
    for surface, mine in ((skin, ~on_iris), (eyes, on_iris)):
        usable = (portrait.face_index >= 0) & surface[portrait.face_index]
        if not usable.any():
            continue
        distance, labels = cv2.distanceTransformWithLabels(
            (~usable).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        rows, columns = np.nonzero(usable)
        nearest = np.zeros(labels.max() + 1, int)
        nearest[labels[rows, columns]] = np.arange(len(rows))
        near = mine & (distance[row, column] <= SNAP * unit)
        at = nearest[labels[row[near], column[near]]]
        triangles[near] = portrait.face_index[rows[at], columns[at]]
        weights[near] = portrait.barycentric[rows[at], columns[at]]
    ray = camera.centre - vertices
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    return Sighting(
        screen=(vertices @ camera.w2c[:3, :3].T + camera.w2c[:3, 3]) @ camera.K.T,
        facing=(vertex_normals(vertices, faces) * ray).sum(1)[faces].mean(1),
        points=points,
        triangles=triangles,
        weights=weights,
        unit=unit,
        view=view_features(camera.centre),
        trust=trust,
    )


def _surfaces(model: FaceModel) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[F] triangles of the outer skin, and of the eyeballs."""
    inner = ("eyes", "mouth_interior", "eye_sockets", "teeth", "tongue", "neck")
    inside = np.any([model.regions[name].numpy() for name in inner], axis=0)
    faces = model.faces.numpy()
    return ~inside[faces].any(1), model.regions["eyes"].numpy()[faces].all(1)


@dataclass(frozen=True)
class _Place:
    triangle: int
    weights: Floats
    confidence: float


class _Locator:
    """Finds the place on the surface that explains what was found of one point in all portraits."""

    def __init__(self, model: FaceModel, sightings: list[Sighting]) -> None:
        self.faces = model.faces.numpy()
        self.rest = model.mean.double().numpy()[self.faces]
        self.surfaces = _surfaces(model)
        self.screen = np.stack([sighting.screen for sighting in sightings])
        self.unit = np.array([sighting.unit for sighting in sightings])
        self.points = np.stack([sighting.points for sighting in sightings])
        self.triangles = np.stack([sighting.triangles for sighting in sightings])
        self.weights = np.stack([sighting.weights for sighting in sightings])
        facing = np.stack([sighting.facing for sighting in sightings])
        facing = np.take_along_axis(facing, self.triangles.clip(0), 1)
        self.share = np.where((self.triangles >= 0) & (facing > MIN_FACING), facing, 0.0)

    def project(self, triangles: Ints, weights: Floats) -> Floats:
        """[R, L, 2] pixels of places ``weights`` [L, 3] on ``triangles`` [L] in all portraits."""
        corners = self.screen[:, self.faces[triangles]]
        places = np.einsum("lk,rlki->rli", weights, corners)
        return places[..., :2] / places[..., 2:]

    def __call__(self, point: int) -> _Place | None:
        useful = np.flatnonzero(self.share[:, point])
        if len(useful) < MIN_SEEN * len(self.share):
            return None
        # First the best of the places that were seen, then a finer search around it. Neighbours on
        # the other lip are near at rest; they lose on the open mouths.
        triangles, weights = self.triangles[useful, point], self.weights[useful, point]
        best = int(self._cost(point, useful, triangles, weights[:, None]).argmin())
        start = (self.rest[triangles[best]] * weights[best][:, None]).sum(0)
        surface = self.surfaces[1 if point >= IRIS_POINTS else 0]
        near = surface & (np.linalg.norm(self.rest.mean(1) - start, axis=1) < NEAR)
        close = np.union1d(np.flatnonzero(near), triangles[best : best + 1])
        grid = np.broadcast_to(_GRID, (len(close), *_GRID.shape))
        costs = self._cost(point, useful, close, grid)
        row, column = np.unravel_index(int(costs.argmin()), costs.shape)
        confidence = 1 / (1 + (costs[row, column] / SPREAD) ** 2)
        return _Place(int(close[row]), _GRID[column], float(confidence))

    def _cost(self, point: int, useful: Ints, triangles: Ints, weights: Floats) -> Floats:
        """[C, G] mean distance (head lengths) between the found points and the projected places
        ``weights`` [C, G, 3] on ``triangles`` [C], each portrait counted by how squarely it shows
        the point; distances are not squared, so that a few bad finds do not pull."""
        corners = self.screen[useful[:, None, None], self.faces[triangles]]
        places = np.einsum("cgk,rcki->rcgi", weights, corners, optimize=True)
        off = places[..., :2] / places[..., 2:] - self.points[useful, point][:, None, None]
        squared = (off**2).sum(-1) / self.unit[useful, None, None] ** 2
        return np.average(np.sqrt(squared + 0.002**2), axis=0, weights=self.share[useful, point])


def barycentric_grid(steps: int) -> Floats:
    """[n, 3] even barycentric samples inside a triangle."""
    corners = [(a, b, steps - a - b) for a in range(steps + 1) for b in range(steps + 1 - a)]
    inside = np.array(corners, float) + 0.1
    return inside / inside.sum(1, keepdims=True)


_GRID = barycentric_grid(4)
