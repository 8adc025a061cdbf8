"""Meshes for rendering: smoothing by subdivision, normals, the T-shirt, the direction man-woman."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.spatial import cKDTree

from gha_core.faces import FaceModel
from gha_core.faces.makehuman import data_folder, read_head, read_target

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Subdivision:
    """One step of Loop's scheme (Loop 1987) as a matrix.

    Attributes:
        matrix: [V', V] new vertices = matrix @ old vertices; the first V rows are the old ones moved.
        faces: [4 F, 3]; child faces of face f are 4 f .. 4 f + 3.
    """

    matrix: csr_matrix
    faces: Ints


def subdivide(faces: Ints, count: int) -> Subdivision:
    """Loop subdivision of a mesh with ``count`` vertices; borders are cubic B-spline curves."""
    corners = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    opposite = faces[:, [2, 0, 1]].ravel()
    edges, edge_of, uses = np.unique(
        np.sort(corners, 1), axis=0, return_inverse=True, return_counts=True
    )
    edge_of = edge_of.reshape(-1)
    inner = uses == 2
    odd = count + edge_of.reshape(-1, 3)
    a, b, c = faces.T
    ab, bc, ca = odd.T
    children = np.stack(
        [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))], 1
    ).reshape(-1, 3)
    # new vertices on edges: 3/8 of the ends and 1/8 of what lies across, or midpoints on borders
    end = np.where(inner, 3 / 8, 1 / 2)
    rows = [np.repeat(count + np.arange(len(edges)), 2)]
    columns, values = [edges.ravel()], [np.repeat(end, 2)]
    across = inner[edge_of]
    rows.append(count + edge_of[across])
    columns.append(opposite[across])
    values.append(np.full(int(across.sum()), 1 / 8))
    # old vertices: 1 - n beta of themselves and beta of each of the n neighbours (Warren's beta)
    border_edges = edges[~inner]
    on_border = np.zeros(count, bool)
    on_border[border_edges] = True
    both = np.concatenate([edges, edges[:, ::-1]])
    valence = np.bincount(both[:, 0], minlength=count)
    beta = np.where(valence == 3, 3 / 16, 3 / (8 * np.maximum(valence, 1)))
    own = np.where(on_border, 3 / 4, 1 - valence * beta)
    own[valence == 0] = 1.0
    rows.append(np.arange(count))
    columns.append(np.arange(count))
    values.append(own)
    free = both[~on_border[both[:, 0]]]
    rows.append(free[:, 0])
    columns.append(free[:, 1])
    values.append(beta[free[:, 0]])
    rim = np.concatenate([border_edges, border_edges[:, ::-1]])
    rim_valence = np.bincount(rim[:, 0], minlength=count)
    rows.append(rim[:, 0])
    columns.append(rim[:, 1])
    values.append(1 / (4 * np.maximum(rim_valence[rim[:, 0]], 1)))
    matrix = coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(count + len(edges), count),
    ).tocsr()
    return Subdivision(matrix, children)


def vertex_normals(vertices: Floats, incidence: csr_matrix, faces: Ints) -> Floats:
    """[V, 3] unit normals, weighted by area; ``incidence`` from :func:`face_incidence`."""
    corner = vertices[faces]
    across = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals = incidence @ across
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def face_incidence(faces: Ints, count: int) -> csr_matrix:
    """[V, F] 1 where the face uses the vertex."""
    columns = np.repeat(np.arange(len(faces)), 3)
    ones = np.ones(faces.size, np.float32)
    return coo_matrix((ones, (faces.ravel(), columns)), (count, len(faces))).tocsr()


def neighbour_average(faces: Ints, count: int) -> csr_matrix:
    """[V, V] matrix that replaces each vertex's value by the mean of its own and its neighbours'."""
    pairs = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    pairs = np.concatenate([pairs, pairs[:, ::-1], np.repeat(np.arange(count)[:, None], 2, 1)])
    matrix = coo_matrix((np.ones(len(pairs), np.float32), pairs.T), (count, count)).tocsr()
    matrix.data[:] = 1
    return diags(1 / np.asarray(matrix.sum(1)).ravel()) @ matrix


def sex_direction(model: FaceModel) -> NDArray[np.float64]:
    """[I] identity coefficients of the step from the average man to the average woman.

    Pose and size are taken out by fitting them along with the coefficients.
    """
    data = data_folder()
    mesh = read_head(data)
    step = np.zeros_like(mesh.vertices)
    folder = data / "mpfb2/targets/macrodetails"
    for race in ("african", "asian", "caucasian"):
        for sex, sign in (("female", 1), ("male", -1)):
            step += sign / 3 * mesh.gather(read_target(folder / f"{race}-{sex}-young.target.gz"))
    for sex, sign in (("female", 1), ("male", -1)):
        name = f"universal-{sex}-young-averagemuscle-averageweight.target.gz"
        step += sign * mesh.gather(read_target(folder / name))
    unit = 10 * model.metres_per_unit  # decimetres
    face = model.regions["face"].numpy()
    points = model.mean.numpy()[face].astype(float)
    moves = [np.broadcast_to(axis, points.shape) for axis in np.eye(3)]
    moves += [points, *(np.cross(axis, points) for axis in np.eye(3))]
    basis = model.identity_basis.numpy()[:, face].astype(float)
    columns = np.stack([*basis, *moves]).reshape(len(basis) + 7, -1).T
    # a ridge keeps weak components from explaining a motion of the face by a wild shape
    ridge = 1e-3 * np.trace(columns.T @ columns) / columns.shape[1]
    system = columns.T @ columns + ridge * np.diag([1.0] * len(basis) + [0.0] * 7)
    return np.linalg.solve(system, columns.T @ (step[face].ravel() / unit))[: len(basis)]


@dataclass(frozen=True)
class Shirt:
    """A T-shirt in head space of the resting head: vertices [n, 3], faces, and shading [n]."""

    vertices: Floats
    faces: Ints
    shade: Floats


def shirt(neck: Floats, rng: np.random.Generator, rings: int = 40, spokes: int = 96) -> Shirt:
    """A collar around the lower neck and shoulders below it.

    Args:
        neck: [n, 3] vertices of the resting neck, head space.
    """
    low = neck[:, 1].min()
    base = neck[neck[:, 1] > low + 0.10]
    base = base[base[:, 1] < low + 0.20]
    centre = np.array([0.0, (base[:, 2].min() + base[:, 2].max()) / 2])
    half = np.array([np.percentile(np.abs(base[:, 0]), 97), np.ptp(base[:, 2]) / 2])
    angle = np.linspace(0, 2 * np.pi, spokes, endpoint=False)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    # profile: distance from the collar outwards (0..1) -> how far out and how far down
    t = np.linspace(0, 1, rings)
    points = []
    front = np.clip(around[:, 1], 0, 1)
    for step in t:
        rounded = np.sqrt(np.clip(step, 0, 1))
        out_x = half[0] * 1.02 + 0.92 * step
        out_z = half[1] * 1.02 + 0.26 * rounded
        drop = 0.26 * step**1.3 + 0.75 * np.clip(step - 0.7, 0, 1) ** 2 * 3
        # chest and back fall faster than the shoulders, and the collar dips in front
        fall = drop * (0.55 + 1.35 * np.abs(around[:, 1]) ** 1.2)
        y = low + 0.15 - 0.035 * front - fall
        points.append(
            np.stack([out_x * around[:, 0], y, centre[1] + out_z * around[:, 1] - 0.02], 1)
        )
    lip = points[0].copy()  # the rib of the collar stands up a little
    lip[:, 1] += 0.028
    lip[:, [0, 2]] = lip[:, [0, 2]] * 0.985 + np.array([0, centre[1] - 0.02]) * 0.015
    points.insert(0, lip)
    inside = lip * [0.97, 1, 1] - [0, 0.02, 0]
    inside[:, 2] = (lip[:, 2] - centre[1]) * 0.97 + centre[1]
    points.insert(0, inside)
    grid = np.stack(points)
    count = len(grid)
    fold = np.zeros(grid.shape[:2])
    for _ in range(6):
        waves, phase = rng.integers(2, 9), rng.uniform(0, 2 * np.pi)
        ramp = np.linspace(0, 1, count)[:, None] * rng.uniform(1, 4)
        fold += np.sin(waves * angle[None] + phase + ramp * 2)
    grid[:, :, 1] += 0.006 * fold * np.linspace(0, 1, count)[:, None]
    index = np.arange(count * spokes).reshape(count, spokes)
    right = np.roll(index, -1, 1)
    quads = np.stack([index[:-1], index[1:], right[1:], right[:-1]], -1).reshape(-1, 4)
    faces = quads[:, [[0, 2, 1], [0, 3, 2]]].reshape(-1, 3)
    shade = np.ones((count, spokes))
    shade[:3] = 0.86  # the rib is a tighter knit
    weave = rng.normal(0, 0.02, (count, spokes))
    return Shirt(grid.reshape(-1, 3), faces, (shade + weave).ravel())


def nearest(points: Floats, among: Floats) -> Ints:
    """[n] index into ``among`` of the nearest point."""
    return cKDTree(among).query(points)[1].astype(np.int64)
