"""Where the Gaussians start: on the tracked face model where that is exact, else on the geometry.

Eyeballs, lids, lips, mouth, teeth and tongue slide past each other within millimetres. There each
Gaussian is put on the face model itself and takes its triangle's expression basis, because the
nearest point of the surface would often be that of a neighbour that moves differently. All else
(skin, hair, ears, neck, clothes) starts on the geometry stage's mesh, and is carried by the face
model as far as that reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from gha_core.artifacts.images import Image
from gha_core.artifacts.tensors import read_tensors
from gha_core.avatar import quaternions
from gha_core.avatar.head import Neutral, mean_pose
from gha_core.cameras import Camera
from gha_core.errors import StageError
from gha_core.geometry.expression_prior import CarriedExpressions, carry
from gha_core.geometry.networks import control_weight, positional_encoding
from gha_core.mesh_rasterisation import rasterize
from gha_core.pose import HeadPose
from gha_core.tracked_face import TrackedFace

# Share of all Gaussians that starts on each part of the face model: much detail on little area.
SHARES = {
    "eyes": 0.06,
    "eyelids": 0.06,
    "lips": 0.07,
    "mouth_interior": 0.05,
    "teeth": 0.03,
    "tongue": 0.02,
}
# Geometry points this near (head lengths) to one of those parts are left to it.
CLEARANCE = 0.05
# How densely the mesh is sampled, relative to hair: the face more, clothes less, and what no
# photo sees (the back of the head in most rigs) hardly.
FACE_DENSITY, BODY_DENSITY, UNSEEN_DENSITY = 2.0, 0.35, 0.1
# Standard deviations along the surface as a share of the distance between neighbours, and across it
# as a share of that: flat discs, since lids and lips lie on each other.
SPREAD, FLATNESS = 0.55, 0.3
OPACITY = 0.8
HIDDEN_COLOUR = (0.25, 0.12, 0.11)  # the inside of a mouth that no picture shows
# Depth (head lengths) by which a point may lie behind the mesh and still count as seen.
DEPTH_TOLERANCE = 0.04
# Most of all Gaussians that start beyond the mesh, and the share of the pictures whose matte must
# agree that there is something.
BEYOND, AGREEMENT = 0.12, 0.9


@dataclass(frozen=True)
class Surface:
    """The geometry stage's neutral mesh; head space.

    Attributes:
        vertices: [V, 3]; faces: [F, 3]; features: [V, 128]; colours: [V, 3] sRGB 0..1.
    """

    vertices: Tensor
    faces: Tensor
    features: Tensor
    colours: Tensor

    @staticmethod
    def load(geometry: Path) -> Surface:
        """Read ``geometry.safetensors`` of a geometry artifact.

        Raises:
            ArtifactError: the file is absent or damaged.
            StageError: the mesh is empty.
        """
        tensors, _ = read_tensors(geometry / "geometry.safetensors")
        faces = tensors["faces"].long()
        if not len(faces):
            raise StageError(
                f"The mesh in {geometry} has no triangles. Look at the preview of the geometry "
                "stage and run it again."
            )
        return Surface(
            tensors["vertices"].float(), faces,
            tensors["features"].float(), tensors["colours"].float(),
        )  # fmt: skip

    @staticmethod
    def of_face(face: TrackedFace) -> Surface:
        """The face model itself, in gray, in the place of a mesh that was learned."""
        return Surface(
            face.vertices, face.faces, torch.tanh(positional_encoding(face.vertices)),
            torch.full_like(face.vertices, 0.5),
        )  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """Points on a triangle mesh: [N, 3] positions, unit normals, sRGB colours, [N, F] features, and
    how the face model carries them."""

    positions: Tensor
    normals: Tensor
    features: Tensor
    colours: Tensor
    carried: CarriedExpressions


@dataclass(frozen=True)
class Photo:
    """One training picture for the first colours: image [H, W, 3] uint8 and matte [H, W] uint8."""

    image: Image
    alpha: Image
    camera: Camera
    pose: HeadPose
    expression: NDArray[np.float32]


def neutral_gaussians(
    face: TrackedFace,
    surface: Surface,
    count: int,
    feature_size: int,
    reach: tuple[float, float],
    prior: bool,
    photos: list[Photo],
    seed: int,
) -> Neutral:
    """About ``count`` Gaussians on face and surface, coloured from the photos.

    Args:
        reach: t1 and t2, distances from the landmarks (head lengths) where λ is 1 and 0.
        prior: whether the face model's expressions carry the Gaussians.
    """
    rng = np.random.default_rng((seed, 1))
    features = principal_features(surface.features, feature_size)
    parts = _on_face(face, surface, features, count, rng)
    parts += _beyond_surface(face, surface, features, round(BEYOND * count), photos, rng)
    rest = count - sum(len(part.positions) for part in parts)
    parts.append(_on_surface(face, surface, features, rest, photos, rng))
    positions = torch.cat([part.positions for part in parts])
    weight = control_weight(positions, face.landmarks, *reach)
    order = torch.argsort(weight, descending=True, stable=True)

    normals = torch.cat([part.normals for part in parts])
    spacing = torch.cat([_spacing(part.positions) for part in parts])
    carried = CarriedExpressions(
        torch.cat([part.carried.corners for part in parts]),
        torch.cat([part.carried.weights for part in parts]),
        face.basis,
    )
    shift = carried.dense()
    turn = CarriedExpressions(
        carried.corners, carried.weights, vertex_turns(face.vertices, face.faces, face.basis)
    ).dense()
    colours = torch.cat([part.colours for part in parts])
    if photos:
        colours = _seen_colours(positions, normals, shift, colours, surface, face, photos)
    flat = torch.tensor([1.0, 1.0, FLATNESS])
    if not prior:
        shift, turn = torch.zeros_like(shift), torch.zeros_like(turn)
    return Neutral(
        positions=positions[order],
        log_scales=torch.log(SPREAD * spacing[:, None] * flat)[order],
        quaternions=quaternions.facing(normals)[order],
        opacities=torch.logit(torch.full((len(order),), OPACITY)),
        colours=colours[order],
        features=torch.cat([part.features for part in parts])[order],
        weight=weight[order],
        shift=shift[:, order].contiguous(),
        turn=turn[:, order].contiguous(),
        body=_body(positions, face)[order],
    )


def sample_triangles(
    vertices: Tensor, faces: Tensor, density: Tensor, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Spread ``count`` points over the triangles, evenly for their ``density`` per area.

    Returns:
        [count] triangle indices and [count, 3] barycentric weights.
    """
    corners = vertices[faces].double()
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    mass = (cross.norm(dim=1) * density.double()).numpy()
    # Systematic sampling along a walk over neighbouring triangles leaves few holes and clumps.
    walk = np.argsort(_morton(corners.mean(1).numpy()), kind="stable")
    total = np.cumsum(mass[walk])
    places = (np.arange(count) + rng.random()) / max(count, 1) * total[-1]
    triangles = walk[np.minimum(np.searchsorted(total, places), len(walk) - 1)]
    # The R2 sequence of Roberts (2018): low-discrepancy pairs, folded into the triangle.
    pairs = (0.5 + np.outer(np.arange(count), [0.7548776662466927, 0.5698402909980532])) % 1.0
    root = np.sqrt(pairs[:, 0])
    weights = np.stack([1 - root, root * (1 - pairs[:, 1]), root * pairs[:, 1]], 1)
    return torch.from_numpy(triangles), torch.from_numpy(weights.astype(np.float32))


def vertex_turns(vertices: Tensor, faces: Tensor, basis: Tensor) -> Tensor:
    """[E, V, 3] rotation vector by which each expression turns the surface about each vertex.

    To first order, from the edges e about a vertex and their change d: the least-squares solution
    of ω x e = d, that is (Σ |e|² I - e eᵀ) ω = Σ e x d.
    """
    ends = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = torch.cat([ends, ends.flip(1)])
    edges = vertices[ends[:, 1]] - vertices[ends[:, 0]]
    identity = torch.eye(3)
    squares = (edges * edges).sum(-1)[:, None, None] * identity - edges[:, :, None] * edges[:, None]
    normal = torch.zeros(len(vertices), 3, 3).index_add_(0, ends[:, 0], squares)
    # Ridge: vertices whose edges all lie on a line, and those of no triangle, do not turn.
    ridge = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
    inverse = torch.linalg.inv(normal + ridge[:, None, None] * identity)
    turns = []
    for shape in basis:
        change = shape[ends[:, 1]] - shape[ends[:, 0]]
        moment = torch.linalg.cross(edges, change)
        right = torch.zeros_like(vertices).index_add_(0, ends[:, 0], moment)
        turns.append((inverse @ right[:, :, None])[:, :, 0])
    return torch.stack(turns)


def principal_features(features: Tensor, size: int) -> Tensor:
    """[V, F] to [V, size]: as they are if they fit, else their principal components, unit RMS."""
    # The geometry stage ends in a tanh; where that saturates, atanh would be infinite.
    opened = torch.atanh(features.clamp(-0.999, 0.999)).double()
    if features.shape[1] != size:
        centred = opened - opened.mean(0)
        _, axes = torch.linalg.eigh(centred.T @ centred)
        axes = axes.flip(1)[:, :size]
        # An axis and its opposite serve equally; fix which one, for equal bytes everywhere.
        sign = torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
        opened = torch.nn.functional.pad(centred @ (axes * sign), (0, max(size - axes.shape[1], 0)))
    return (opened / opened.square().mean().sqrt().clamp(min=1e-6)).float()


def _on_face(
    face: TrackedFace, surface: Surface, features: Tensor, count: int, rng: np.random.Generator
) -> list[Seed]:
    corners = face.vertices[face.faces]
    normals = _unit(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    )
    near = cKDTree(surface.vertices.numpy())
    taken = torch.zeros(len(face.faces), dtype=torch.bool)
    seeds = []
    for name, share in SHARES.items():
        if name not in face.regions:
            continue
        inside = face.regions[name][face.faces].all(1) & ~taken
        if name == "eyes":
            inside &= normals[:, 2] > -0.2  # the back of an eyeball is never seen
        taken |= inside
        number = round(share * count)
        if not inside.any() or not number:
            continue
        triangles = inside.nonzero()[:, 0]
        index, weights = sample_triangles(
            face.vertices, face.faces[triangles], torch.ones(len(triangles)), number, rng
        )
        vertices = face.faces[triangles[index]]
        positions = (face.vertices[vertices] * weights[..., None]).sum(1)
        nearest = torch.from_numpy(near.query(positions.numpy())[1])
        hidden = torch.tensor(HIDDEN_COLOUR).expand(number, 3)
        seeds.append(
            Seed(
                positions,
                normals[triangles[index]],
                features[nearest],
                hidden if name in ("mouth_interior", "tongue") else surface.colours[nearest],
                CarriedExpressions(vertices, weights, face.basis),
            )
        )
    return seeds


def _on_surface(
    face: TrackedFace,
    surface: Surface,
    features: Tensor,
    count: int,
    photos: list[Photo],
    rng: np.random.Generator,
) -> Seed:
    corners = surface.vertices[surface.faces]
    centres = corners.mean(1)
    distance, nearest = cKDTree(face.vertices.numpy()).query(centres.numpy())
    exact = torch.zeros(len(face.vertices), dtype=torch.bool)
    for name in SHARES:
        exact |= face.regions.get(name, torch.zeros_like(exact))
    nearest = torch.from_numpy(nearest)
    left = ~(exact[nearest] & (torch.from_numpy(distance) < CLEARANCE))
    on_face = face.regions.get("face", torch.zeros_like(exact))[nearest]
    density = torch.lerp(torch.tensor(1.0), torch.tensor(BODY_DENSITY), _body(centres, face))
    density = torch.where(on_face, FACE_DENSITY, density)
    density = torch.where(_seen_faces(surface, photos), density, UNSEEN_DENSITY) * left
    index, weights = sample_triangles(surface.vertices, surface.faces, density, count, rng)
    vertices = surface.faces[index]

    def interpolated(values: Tensor) -> Tensor:
        return (values[vertices] * weights[..., None]).sum(1)

    positions = interpolated(surface.vertices)
    normals = _unit(
        torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    )
    return Seed(
        positions,
        normals[index],
        interpolated(features),
        interpolated(surface.colours),
        carry(positions, face.vertices, face.basis, face.faces),
    )


def _seen_faces(surface: Surface, photos: list[Photo]) -> Tensor:
    """[F] whether any photo sees the triangle; all of them if there are no photos."""
    seen = torch.full((len(surface.faces),), not photos)
    for photo in photos:
        camera = photo.camera
        world = torch.from_numpy(photo.pose.to_world(surface.vertices.numpy())).float()
        fragments = rasterize(
            world, surface.faces, camera.K, camera.w2c, camera.width, camera.height
        )
        seen[fragments.face_index[fragments.mask]] = True
    # A triangle smaller than a pixel may be missed: its neighbours speak for it.
    known = torch.zeros(len(surface.vertices), dtype=torch.bool)
    known[surface.faces[seen]] = True
    return known[surface.faces].any(1)


def _beyond_surface(
    face: TrackedFace,
    surface: Surface,
    features: Tensor,
    most: int,
    photos: list[Photo],
    rng: np.random.Generator,
) -> list[Seed]:
    """At most ``most`` points where mattes show something, usually clothes, that the mesh does not
    cover: on the plane through the head's origin that faces the camera, if the other photos agree.
    """
    points, normals, colours = [], [], []
    for photo in photos:
        camera, pose = photo.camera, photo.pose
        world = torch.from_numpy(pose.to_world(surface.vertices.numpy())).float()
        covered = rasterize(
            world, surface.faces, camera.K, camera.w2c, camera.width, camera.height
        ).mask.numpy()
        # The mesh is as large as the torso where it ends, so a little way from it counts as beyond.
        near = cv2.dilate(covered.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        rows, columns = np.nonzero((photo.alpha > 250) & ~near)
        chosen = rng.permutation(len(rows))[: 4 * most // len(photos) + 1]
        rows, columns = rows[chosen], columns[chosen]
        depth = (camera.w2c[:3, :3] @ pose.translation + camera.w2c[:3, 3])[2]
        pixels = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1)
        local = depth * pixels @ np.linalg.inv(camera.K).T
        points.append((local - camera.w2c[:3, 3]) @ camera.w2c[:3, :3])
        normals.append(np.tile(-camera.forward @ pose.matrix, (len(rows), 1)))
        colours.append(photo.image[rows, columns] / 255)
    if not points:
        return []
    world_points = np.concatenate(points)
    # Clothes hardly move, so all photos are asked about the same place in the world.
    votes, asked = np.zeros(len(world_points)), np.zeros(len(world_points))
    for photo in photos:
        pixels = np.nan_to_num(photo.camera.project(world_points), nan=-1.0)
        column, row = np.floor(pixels).astype(int).T
        height, width = photo.alpha.shape
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        asked += inside
        matte = photo.alpha[row.clip(0, height - 1), column.clip(0, width - 1)]
        votes += inside & (matte > 127)
    kept = np.flatnonzero(votes >= AGREEMENT * np.maximum(asked, 1))
    kept = np.sort(rng.permutation(kept)[:most])
    if not len(kept):
        return []
    mean = mean_pose([photo.pose for photo in photos])
    positions = torch.from_numpy(mean.to_head(world_points[kept])).float()
    nearest = torch.from_numpy(cKDTree(surface.vertices.numpy()).query(positions.numpy())[1])
    return [
        Seed(
            positions,
            torch.from_numpy(np.concatenate(normals)[kept]).float(),
            features[nearest],
            torch.from_numpy(np.concatenate(colours)[kept]).float(),
            carry(positions, face.vertices, face.basis, face.faces),
        )
    ]


def _body(positions: Tensor, face: TrackedFace) -> Tensor:
    """[N] 0 for what goes with the head to 1 for what stays with the torso, guessed from height:
    it rises along the neck of the face model, and is 0 for what lies nearer to skull or face."""
    if "neck" not in face.regions or not face.regions["neck"].any():
        return torch.zeros(len(positions))
    neck = face.vertices[face.regions["neck"]]
    low, high = neck[:, 1].min(), neck[:, 1].max()
    share = ((high - positions[:, 1]) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    nearest = torch.from_numpy(cKDTree(face.vertices.numpy()).query(positions.numpy())[1])
    return torch.where(face.regions["neck"][nearest], share * share * (3 - 2 * share), 0.0)


def _seen_colours(
    positions: Tensor,
    normals: Tensor,
    shift: Tensor,
    fallback: Tensor,
    surface: Surface,
    face: TrackedFace,
    photos: list[Photo],
) -> Tensor:
    """[N, 3] mean colour under each point in the photos that see it, head-on views counting most;
    what no photo sees keeps its ``fallback``."""
    mesh_shift = carry(surface.vertices, face.vertices, face.basis, face.faces)
    colours, total = torch.zeros(len(positions), 3), torch.zeros(len(positions))
    for photo in photos:
        expression = torch.from_numpy(photo.expression)
        camera, pose = photo.camera, photo.pose
        K, w2c = torch.from_numpy(camera.K).float(), torch.from_numpy(camera.w2c).float()

        def to_camera(points: Tensor, pose: HeadPose = pose, w2c: Tensor = w2c) -> Tensor:
            world = torch.from_numpy(pose.to_world(points.numpy())).float()
            return world @ w2c[:3, :3].T + w2c[:3, 3]

        moved = surface.vertices + mesh_shift.displacement(expression)
        world = torch.from_numpy(pose.to_world(moved.numpy())).float()
        depth = rasterize(world, surface.faces, K, w2c, camera.width, camera.height).depth
        local = to_camera(positions + torch.tensordot(expression, shift, 1))
        pixel = (local / local[:, 2:].clamp(min=1e-3)) @ K.T
        column, row = pixel[:, 0].floor().long(), pixel[:, 1].floor().long()
        inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        column, row = column.clamp(0, camera.width - 1), row.clamp(0, camera.height - 1)
        surface_depth = depth[row, column]
        seen = (surface_depth == 0) | (local[:, 2] < surface_depth + DEPTH_TOLERANCE * pose.scale)
        turned = torch.from_numpy(normals.numpy() @ pose.matrix.T).float() @ w2c[:3, :3].T
        facing = -(turned * local).sum(1) / local.norm(dim=1).clamp(min=1e-6)
        matte = torch.from_numpy(photo.alpha)[row, column].float() / 255
        weight = facing.clamp(min=0) ** 2 * (inside & seen & (local[:, 2] > 0)) * (matte > 0.9)
        colour = torch.from_numpy(photo.image)[row, column].float() / 255
        colours += weight[:, None] * colour
        total += weight
    known = total > 0.05
    return torch.where(known[:, None], colours / total.clamp(min=1e-6)[:, None], fallback)


def _spacing(positions: Tensor, neighbours: int = 4) -> Tensor:
    """[N] mean distance to the nearest others of the same part, head lengths."""
    if len(positions) < 2:
        return torch.full((len(positions),), 0.02)
    number = min(neighbours, len(positions) - 1)
    distance, _ = cKDTree(positions.numpy()).query(positions.numpy(), k=number + 1)
    return torch.from_numpy(distance[:, 1:].mean(1)).float().clamp(2e-3, 0.06)


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=-1, keepdim=True)
    forward = torch.tensor([0.0, 0.0, 1.0]).expand_as(vectors)
    return torch.where(length > 1e-12, vectors / length.clamp(min=1e-12), forward)


def _morton(points: NDArray[np.float64]) -> NDArray[np.uint64]:
    """[N] position along a curve that visits near points one after the other (10 bits per axis)."""
    low, high = points.min(0), points.max(0)
    cells = ((points - low) / np.maximum(high - low, 1e-12) * 1023).astype(np.uint64)
    code = np.zeros(len(points), np.uint64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return code
