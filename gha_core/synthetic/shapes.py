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
        matrix: [V', V] new = matrix @ old; the first V rows are the old vertices, moved.
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


def face_normals(vertices: Floats, faces: Ints) -> Floats:
    """[F, 3] normals as long as twice the face's area."""
    a, b, c = (vertices.take(corner, 0) for corner in faces.T)
    return np.cross(b - a, c - a)


def vertex_normals(across: Floats, incidence: csr_matrix) -> Floats:
    """[V, 3] unit normals from :func:`face_normals` and :func:`face_incidence`."""
    normals = incidence @ across
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def face_incidence(faces: Ints, count: int) -> csr_matrix:
    """[V, F] 1 where the face uses the vertex."""
    columns = np.repeat(np.arange(len(faces)), 3)
    ones = np.ones(faces.size, np.float32)
    return coo_matrix((ones, (faces.ravel(), columns)), (count, len(faces))).tocsr()


def neighbour_average(faces: Ints, count: int) -> csr_matrix:
    """[V, V] matrix that puts the mean of a vertex and its neighbours in its place."""
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
    """A T-shirt in head space of the resting head: vertices [n, 3], faces, shade [n], and the
    height of the ``collar``, below which it hides the neck."""

    vertices: Floats
    faces: Ints
    shade: Floats
    collar: float


def shirt(neck: Floats, rng: np.random.Generator, rings: int = 40, spokes: int = 96) -> Shirt:
    """A collar around the lower neck and shoulders below it.

    Args:
        neck: [n, 3] vertices of the resting neck, head space.
    """
    collar = float(neck[:, 1].min() + 0.27)
    ring = neck[np.abs(neck[:, 1] - collar) < 0.05]
    centre = np.array([0.0, (ring[:, 2].min() + ring[:, 2].max()) / 2])
    angle = np.linspace(0, 2 * np.pi, spokes, endpoint=False)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    # the neck's outline at the collar, by direction
    away = ring[:, [0, 2]] - centre
    towards = np.arctan2(away[:, 1], away[:, 0])
    apart = np.abs((angle[:, None] - towards + np.pi) % (2 * np.pi) - np.pi)
    reach = np.where(apart < 0.35, np.linalg.norm(away, axis=1), 0).max(1)
    reach = np.real(np.fft.ifft(np.fft.fft(reach) * (np.abs(np.fft.fftfreq(spokes)) < 0.05)))
    reach = reach + 0.020
    front, sides = np.clip(around[:, 1], 0, 1), np.abs(around[:, 0])
    rows = [(-0.02, 0.0, 0.97), (0.03, 0.0, 0.99), (0.03, 0.0, 1.03), (0.0, 0.012, 1.03)]
    grid = []
    for up, out, factor in rows:  # the rib: inside, upper edge, outside
        radius = reach * factor + out
        y = collar + up - 0.05 * front**2
        grid.append(np.stack([radius * around[:, 0], y, centre[1] + radius * around[:, 1]], 1))
    for t in np.linspace(0, 1, rings)[1:]:
        # shoulders slope by a quarter and round off; chest and back fall away steeply
        wide, deep = 0.95 * t, 0.36 * t**0.6
        drop = sides**1.5 * (0.22 * t + 0.9 * np.clip(t - 0.62, 0, 1) ** 1.6)
        drop = drop + (1 - sides**1.5) * (0.10 * t + 1.15 * t**1.7)
        x = (reach * 1.03 + 0.012 + wide) * around[:, 0]
        z = (reach * 1.03 + 0.012 + deep) * around[:, 1] - 0.06 * t
        y = collar - 0.05 * front**2 * (1 - t) - drop
        grid.append(np.stack([x, y, centre[1] + z], 1))
    points = np.stack(grid)
    count = len(points)
    fold, t = np.zeros(points.shape[:2]), np.linspace(0, 1, count)[:, None]
    for _ in range(7):
        waves, phase, twist = rng.integers(2, 9), rng.uniform(0, 2 * np.pi), rng.uniform(2, 7)
        fold += np.sin(waves * angle[None] + phase + twist * t)
    points[..., 1] += 0.006 * fold * np.clip(3 * t - 0.3, 0, 1)
    index = np.arange(count * spokes).reshape(count, spokes)
    right = np.roll(index, -1, 1)
    quads = np.stack([index[:-1], index[1:], right[1:], right[:-1]], -1).reshape(-1, 4)
    faces = quads[:, [[0, 2, 1], [0, 3, 2]]].reshape(-1, 3)
    shade = np.ones((count, spokes))
    shade[:4] = 0.84 + 0.06 * (np.arange(spokes) % 2)  # the rib is a tighter knit
    weave = rng.normal(0, 0.025, (count, spokes))
    return Shirt(points.reshape(-1, 3), faces, (shade + weave).ravel(), collar)


def nearest(points: Floats, among: Floats) -> Ints:
    """[n] index into ``among`` of the nearest point."""
    return cKDTree(among).query(points)[1].astype(np.int64)
