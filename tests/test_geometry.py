"""Geometry: grids, marching tetrahedra, networks, the carried prior, losses, and a small fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.spatial import ConvexHull
from torch import Tensor

from gha_core.artifacts import schemas
from gha_core.artifacts.images import encode_png
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import write_table
from gha_core.cameras import Camera, look_at
from gha_core.checkpoint import FILE
from gha_core.errors import StageError
from gha_core.geometry import losses
from gha_core.geometry.expression_prior import carry, closest_on_triangle
from gha_core.geometry.extraction import Extractor
from gha_core.geometry.frames import (
    Box,
    TrainingFrame,
    TrainingView,
    check_frames,
    subject_box,
    usable_pixels,
    within_box,
)
from gha_core.geometry.losses import LossWeights
from gha_core.geometry.marching import blend, cross, interpolate
from gha_core.geometry.mesh import largest_component, vertex_normals, write_ply
from gha_core.geometry.networks import (
    ConditionedMLP,
    HeadNetworks,
    NeutralField,
    control_weight,
    encoded_size,
    identity,
    positional_encoding,
)
from gha_core.geometry.tetrahedra import Lattice, fill_box
from gha_core.geometry.training import Settings, extract, train
from gha_core.mesh_rasterisation import mesh_edges, render_mesh
from gha_core.pose import HeadPose
from gha_core.splits import Splits
from gha_core.tracked_face import TrackedFace
from tasks import geometry
from tasks.stage import Inputs


def signed_volume(vertices: Tensor, faces: Tensor) -> float:
    return float(torch.linalg.det(vertices[faces].double()).sum() / 6)


def nodes_of(lattice: Lattice) -> Tensor:
    return lattice.positions(torch.arange(len(lattice)))


def cube(resolution: int, side: float = 2.0) -> Lattice:
    return fill_box([-side / 2] * 3, [side / 2] * 3, resolution)


def determinants(lattice: Lattice) -> Tensor:
    a, b, c, d = nodes_of(lattice).double()[lattice.tets()].unbind(1)
    return torch.linalg.det(torch.stack([b - a, c - a, d - a], 1))


# the lattice -------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.floats(0.3, 2.0), st.floats(0.3, 2.0))
def test_the_lattice_is_made_of_congruent_positively_oriented_tetrahedra(
    resolution: int, width: float, depth: float
) -> None:
    lattice = fill_box([-1, 0, 2], [-1 + width, 1, 2 + depth], resolution)
    volume = lattice.spacing**3 / 12
    assert torch.allclose(
        determinants(lattice) / 6, torch.tensor(volume).double(), rtol=1e-2, atol=volume * 1e-2
    )
    nodes = nodes_of(lattice)
    assert nodes.amin(0).tolist() == pytest.approx([-1, 0, 2])
    corners, centres = lattice.split(torch.arange(len(lattice)))
    assert torch.allclose(
        nodes[corners[1, 1, 1]], (nodes[centres[0, 0, 0]] + nodes[centres[1, 1, 1]]) / 2
    )
    assert len(torch.unique(nodes, dim=0)) == len(lattice)


def test_neighbouring_tetrahedra_share_whole_triangles() -> None:
    tets = fill_box([0, 0, 0], [1, 1, 1], 4).tets()
    triangles = torch.cat([tets[:, [i for i in range(4) if i != gone]] for gone in range(4)])
    _, uses = torch.unique(triangles.sort(1).values, dim=0, return_counts=True)
    assert uses.max() == 2


def test_twice_the_resolution_keeps_all_nodes() -> None:
    coarse, fine = (nodes_of(cube(n)).double() for n in (3, 6))
    assert torch.cdist(coarse, fine).amin(1).max() < 1e-6


# marching tetrahedra -----------------------------------------------------------------------------
def sphere_mesh(resolution: int) -> tuple[Tensor, Tensor]:
    lattice = cube(resolution)
    nodes = nodes_of(lattice)
    sdf = nodes.norm(dim=1) - 0.6
    found = cross(lattice.crossed_tets(sdf), sdf)
    vertices, _ = interpolate(nodes[found.nodes], sdf[found.nodes], found.pairs)
    return vertices, found.faces


def test_a_sphere_comes_out_watertight_outward_and_round() -> None:
    vertices, faces = sphere_mesh(12)
    edges = mesh_edges(faces)
    assert (edges.faces >= 0).all()
    assert len(vertices) - len(edges.vertices) + len(faces) == 2
    directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert len(torch.unique(directed, dim=0)) == len(directed)  # consistently turned
    assert signed_volume(vertices, faces) == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.03)
    assert (vertices.norm(dim=1) - 0.6).abs().max() < 0.02


def test_finer_grids_approach_the_surface() -> None:
    errors = [float((sphere_mesh(n)[0].norm(dim=1) - 0.6).abs().mean()) for n in (6, 12, 24)]
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_any_signs_give_a_closed_surface_inside_the_lattice(seed: int) -> None:
    lattice = fill_box([0, 0, 0], [1, 1, 1], 4)
    nodes = nodes_of(lattice)
    generator = torch.Generator().manual_seed(seed)
    sdf = torch.randn(len(nodes), generator=generator)
    sdf = torch.where((nodes - 0.5).abs().amax(1) > 0.3, sdf.abs() + 0.1, sdf)
    sdf[nodes.sub(0.5).norm(dim=1).argmin()] = -1.0
    found = cross(lattice.crossed_tets(sdf), sdf)
    assert (mesh_edges(found.faces).faces >= 0).all()
    vertices, _ = interpolate(nodes[found.nodes], sdf[found.nodes], found.pairs)
    assert signed_volume(vertices, found.faces) > 0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-2.0, 2.0), st.tuples(*[st.integers(2, 6)] * 3))
def test_the_tetrahedra_near_the_surface_give_the_mesh_of_all(
    seed: int, level: float, cells: tuple[int, int, int]
) -> None:
    lattice = Lattice((0.0, 0.0, 0.0), 0.1, cells)
    sdf = torch.randn(len(lattice), generator=torch.Generator().manual_seed(seed)) + level
    whole, part = cross(lattice.tets(), sdf), cross(lattice.crossed_tets(sdf), sdf)
    for name in ("nodes", "pairs", "faces"):
        assert torch.equal(getattr(whole, name), getattr(part, name)), name


def test_vertices_have_gradients_to_sdf_and_positions() -> None:
    generator = torch.Generator().manual_seed(1)
    sdf = torch.tensor([-0.3, 0.4, 0.2, -0.5], dtype=torch.float64, requires_grad=True)
    positions = torch.rand(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    pairs = torch.tensor([[0, 1], [0, 2], [3, 1]])
    assert torch.autograd.gradcheck(lambda p, s: interpolate(p, s, pairs)[0], (positions, sdf))


# networks ----------------------------------------------------------------------------------------
def test_layer_sizes_are_the_papers() -> None:
    def widths(net: ConditionedMLP) -> list[int]:
        layers = list(net.layers)
        return [layers[0].in_features, *(layer.out_features for layer in layers)]

    nets = HeadNetworks(expressions=64, width=256)
    assert widths(nets.geometry) == [27, 256, 256, 256, 256, 256, 132]
    assert widths(nets.colour_expression) == [192, 256, 256, 32]
    assert widths(nets.colour_pose) == [182, 128, 32]
    assert widths(nets.deformation_expression) == [91, 256, 256, 256, 256, 256, 3]
    assert widths(nets.deformation_pose) == [81, 256, 256, 3]


def test_positional_encoding_is_the_identity_then_sines_and_cosines() -> None:
    x = torch.tensor([[0.3, -0.2, 0.7]])
    encoded = positional_encoding(x)
    assert encoded.shape == (1, encoded_size(3)) == (1, 27)
    assert torch.equal(encoded[:, :3], x)
    assert torch.allclose(encoded[:, 3:6], torch.sin(x))
    assert torch.allclose(encoded[:, -3:], torch.cos(8 * x))


def test_a_shared_condition_is_the_same_as_concatenation() -> None:
    torch.manual_seed(0)
    net = ConditionedMLP(3, 2, [8, 8], 4).double()
    points, condition = torch.randn(5, 3).double(), torch.randn(2).double()
    *hidden, last = net.layers
    x = torch.cat([points, condition.expand(5, 2)], -1)
    for layer in hidden:
        x = torch.relu(layer(x))
    assert torch.allclose(net(points, condition), last(x))


def test_lambda_is_one_near_landmarks_zero_far_and_linear_between() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.15, 0, 0], [0.2, 0, 0], [0.25, 0, 0], [1, 0, 0]])
    weight = control_weight(points, torch.zeros(1, 3), 0.15, 0.25)
    assert weight.tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-5)


def test_lambda_decides_which_network_moves_and_colours_a_point() -> None:
    torch.manual_seed(0)
    nets = HeadNetworks(expressions=5, width=16)
    points, features = torch.rand(4, 3), torch.rand(4, 128)
    weight = torch.tensor([1.0, 1, 0, 0])
    first, second = (torch.rand(5), torch.rand(6)), (torch.rand(5), torch.rand(6))
    for function, values in ((nets.deformation, points), (nets.colour, features)):
        base = function(values, weight, *first)
        other_expression = function(values, weight, second[0], first[1])
        other_pose = function(values, weight, first[0], second[1])
        assert torch.equal(base[2:], other_expression[2:])
        assert not torch.equal(base[:2], other_expression[:2])
        assert torch.equal(base[:2], other_pose[:2])
        assert not torch.equal(base[2:], other_pose[2:])
    assert nets.colour(features, weight, *first).min() > 0
    assert nets.colour(features, weight, *first, activation=identity).min() < 0


# the carried expressions -------------------------------------------------------------------------
def plane() -> tuple[Tensor, Tensor]:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    return vertices, torch.tensor([[0, 1, 2], [0, 2, 3]])


def test_points_ride_on_the_nearest_triangle_and_fade_out() -> None:
    vertices, faces = plane()
    basis = torch.zeros(2, 4, 3)
    basis[0, :, 2] = vertices[:, 0]  # lifts by x
    basis[1, :, 0] = 1.0
    points = torch.tensor([[0.25, 0.5, 0.05], [0.75, 0.5, 0.2], [0.5, 0.5, 0.4]])
    carried = carry(points, vertices, basis, faces, fade_start=0.1, fade_end=0.3)
    moved = carried.displacement(torch.tensor([1.0, 2.0]))
    expected = torch.tensor([[2, 0, 0.25], [1, 0, 0.375], [0, 0, 0]])
    assert torch.allclose(moved, expected, atol=1e-5)
    assert torch.allclose(carried.dense()[0, :, 2], torch.tensor([0.25, 0.375, 0]), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_the_closest_point_of_a_triangle_beats_all_its_other_points(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    triangle, point = torch.randn(3, 3, generator=generator), torch.randn(3, generator=generator)
    weights = closest_on_triangle(point, triangle)
    assert (weights >= -1e-6).all()
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    others = torch.distributions.Dirichlet(torch.full((3,), 0.5)).sample((300,)) @ triangle
    best = (weights @ triangle - point).norm()
    assert best <= (others - point).norm(dim=1).min() + 1e-5


# losses ------------------------------------------------------------------------------------------
def test_silhouette_loss_is_one_minus_intersection_over_union() -> None:
    one, two = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    one[0, :, :2], two[0, :, 1:3] = 1, 1
    everywhere = torch.ones(1, 4, 4)
    assert losses.silhouette(one, two, everywhere) == pytest.approx(1 - 4 / 12)
    assert losses.silhouette(one, one, everywhere) == pytest.approx(0)
    left = torch.zeros(1, 4, 4)
    left[0, :, :2] = 1
    assert losses.silhouette(one, two, left) == pytest.approx(1 - 4 / 8)


def test_rgb_ignores_pixels_without_weight() -> None:
    rendered, image = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 0.5)
    image[0, 1] = 9.0
    assert losses.rgb(rendered, image, torch.tensor([[1.0, 0.0]])) == pytest.approx(0.5)


def test_the_laplacian_sees_bumps_but_not_how_the_grid_cuts_the_surface() -> None:
    vertices, faces = sphere_mesh(16)
    edges, normals = mesh_edges(faces).vertices, vertex_normals(vertices, faces)
    smooth = losses.laplacian(vertices, edges, normals, 2 / 16)
    random = torch.randn(len(vertices), 1, generator=torch.Generator().manual_seed(0))
    bumpy = losses.laplacian(vertices + 0.02 * random * normals, edges, normals, 2 / 16)
    along = torch.linalg.cross(normals, torch.tensor([[0.0, 1, 0]]).expand_as(normals))
    uneven = losses.laplacian(vertices + 0.02 * random * along, edges, normals, 2 / 16)
    assert bumpy > 20 * smooth
    assert uneven < 3 * smooth
    # The same bumps on a finer grid, in units of its spacing, weigh the same.
    half = losses.laplacian((vertices + 0.02 * random * normals) / 2, edges, normals, 1 / 16)
    assert half == pytest.approx(float(bumpy))


def test_a_loss_that_is_not_finite_is_named() -> None:
    terms = {"rgb": torch.tensor(0.1), "silhouette": torch.tensor(torch.nan)}
    with pytest.raises(StageError, match=r"'silhouette' became nan at step 7, sequence FREE"):
        losses.weighted_sum(terms, LossWeights(), "step 7, sequence FREE, timestep 3")


# a whole small fit -------------------------------------------------------------------------------
SMALL = Settings(
    resolution=12,
    width=24,
    steps=120,
    views_per_step=3,
    learning_rate=3e-3,
    final_learning_rate=5e-4,
    sphere_steps=150,
    softness=2.0,
    weights=LossWeights(rgb=0.2),
)


BOX = Box(np.array([-0.6, -0.75, -0.6]), np.array([0.6, 0.75, 0.8]))


def blob_person() -> tuple[TrackedFace, Tensor]:
    """An egg with a nose, and its colours."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(600, 3, generator=generator), dim=1)
    hull = torch.from_numpy(ConvexHull(directions.numpy()).simplices.astype(np.int64))
    inward = torch.linalg.det(directions[hull]) < 0
    hull = torch.where(inward[:, None], hull.flip(1), hull)
    nose = torch.exp(-(((directions - torch.tensor([0, 0, 1.0])).norm(dim=1) / 0.35) ** 2))
    vertices = directions * torch.tensor([0.33, 0.48, 0.4]) * (1 + 0.3 * nose[:, None])
    basis = torch.zeros(2, 600, 3)
    basis[0, :, 1] = -0.1 * nose
    regions = {"face": torch.ones(600, dtype=torch.bool)}
    face = TrackedFace(vertices, hull, basis, vertices[::12].clone(), regions)
    colours = 0.5 + 0.4 * torch.sin(vertices * torch.tensor([7.0, 9, 5]))
    return face, colours


def film(face: TrackedFace, colours: Tensor, size: int = 48) -> list[TrainingFrame]:
    frames = []
    for timestep in range(4):
        pose = HeadPose(np.array([0, 0.1 * timestep, 0]), np.array([0.01, 0, 0]), 0.24)
        expression = torch.tensor([timestep / 3, 0.0])
        shape = face.vertices + torch.tensordot(expression, face.basis, 1)
        world = torch.from_numpy(pose.to_world(shape.numpy())).float()
        views = []
        for index, angle in enumerate(np.linspace(-1.3, 1.3, 4)):
            eye = np.array([np.sin(angle), 0.2 * (-1) ** index, np.cos(angle)])
            K = np.array([[2.6 * size, 0, size / 2], [0, 2.6 * size, size / 2], [0, 0, 1]])
            w2c = look_at(eye, np.zeros(3), np.array([0, 1.0, 0]))
            camera = Camera(f"cam{index}", K, w2c, size, size)
            picture = render_mesh(world, face.faces, colours, K, w2c, size, size)
            image = (picture.attributes.clamp(0, 1) * 255).to(torch.uint8).numpy()
            matte = (picture.silhouette * 255).to(torch.uint8).numpy()
            views.append(TrainingView(camera, image, matte, np.ones((size, size), bool)))
        landmarks = shape[::12].clone()
        frames.append(TrainingFrame("S", timestep, pose, expression, landmarks, tuple(views)))
    return frames


@pytest.fixture(scope="module")
def person() -> tuple[TrackedFace, list[TrainingFrame]]:
    face, colours = blob_person()
    return face, film(face, colours)


@pytest.mark.slow
def test_training_finds_the_shape(person: tuple[TrackedFace, list[TrainingFrame]]) -> None:
    face, frames = person
    state = train(frames, face, BOX, SMALL, seed=0)
    surface = extract(state, face, BOX, SMALL)
    distance = torch.cdist(face.vertices, surface.vertices).amin(1)
    sphere = (face.vertices.norm(dim=1) - SMALL.sphere_radius).abs()
    assert distance.mean() < 0.035
    assert distance.mean() < sphere.mean() / 2
    first = {term: value for step, term, value in state.history if step == 0}
    last = {term: value for _, term, value in state.history}
    assert last["rgb"] < first["rgb"] / 2
    assert last["silhouette"] < first["silhouette"] - 0.1


def test_a_killed_run_goes_on_to_the_same_result(
    person: tuple[TrackedFace, list[TrainingFrame]], tmp_path: Path
) -> None:
    face, frames = person
    short = dataclasses.replace(
        SMALL, steps=9, sphere_steps=60, checkpoint_seconds=0.0, learning_rate=1e-3
    )
    whole = train(frames, face, BOX, short, seed=1)

    class Killed(Exception):
        pass

    class FramesThatEnd(list):  # type: ignore[type-arg]
        reads = 0

        def __getitem__(self, index: int) -> TrainingFrame:  # type: ignore[override]
            FramesThatEnd.reads += 1
            if FramesThatEnd.reads == 8:
                raise Killed
            return super().__getitem__(index)

    with pytest.raises(Killed):
        train(FramesThatEnd(frames), face, BOX, short, 1, tmp_path)
    assert (tmp_path / FILE).exists()
    resumed = train(frames, face, BOX, short, 1, tmp_path)
    assert resumed.history == whole.history
    for name, value in whole.networks.state_dict().items():
        assert torch.equal(value, resumed.networks.state_dict()[name]), name
    assert torch.equal(whole.landmarks, resumed.landmarks)

    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:1000])
    afresh = train(frames, face, BOX, short, 1, tmp_path)
    assert afresh.history == whole.history


# coarse to fine ----------------------------------------------------------------------------------
Shape = Callable[[Tensor], Tensor]


def ball(radius: float, *centre: float) -> Shape:
    return lambda points: (points - torch.tensor(centre).to(points)).norm(dim=-1) - radius


class Blob(HeadNetworks):
    """A given shape, dented by an untrained network, in float64."""

    def __init__(self, shape: Shape, bumps: float = 0.0, seed: int = 0) -> None:
        torch.manual_seed(seed)
        super().__init__(2, 16)
        self.double()
        self.shape, self.bumps = shape, bumps

    def neutral(self, points: Tensor) -> NeutralField:
        values = super().neutral(points)
        return dataclasses.replace(values, sdf=self.bumps * values.sdf + self.shape(points))

    def sdf(self, points: Tensor) -> Tensor:
        return self.bumps * super().sdf(points) + self.shape(points)


@dataclasses.dataclass
class Meshed:
    vertices: Tensor
    faces: Tensor
    features: Tensor

    def gradients(self, nets: HeadNetworks) -> list[Tensor]:
        total = (self.vertices**3).sum() + (self.features**2).sum()
        return list(torch.autograd.grad(total, list(nets.geometry.parameters())))


def evaluated_everywhere(nets: HeadNetworks, lattice: Lattice, scale: float) -> Meshed:
    values, nodes = nets.neutral(nodes_of(lattice)), nodes_of(lattice)
    found = cross(lattice.tets(), values.sdf.detach())
    positions = nodes + values.offset * scale
    vertices, weights = interpolate(positions[found.nodes], values.sdf[found.nodes], found.pairs)
    features = blend(values.features[found.nodes], weights, found.pairs)
    return Meshed(vertices, found.faces, features)


def check_same(extractor: Extractor, nets: HeadNetworks) -> None:
    whole = evaluated_everywhere(nets, extractor.lattice, extractor.offset_scale)
    surface = extractor.surface(nets, "here")
    part = Meshed(surface.vertices, surface.faces, surface.features)
    assert torch.equal(part.faces, whole.faces)
    assert torch.allclose(part.vertices, whole.vertices, atol=1e-12)
    assert torch.allclose(part.features, whole.features, atol=1e-12)
    for mine, other in zip(part.gradients(nets), whole.gradients(nets), strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-9)


def fine_lattice() -> Lattice:
    return dataclasses.replace(cube(24), dtype=torch.float64)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    """Begins at 6 of 24 cells."""
    return Extractor(fine_lattice(), 0.04, blob_person()[0], coarsest=6)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 0.5), st.floats(0.35, 0.8))
def test_coarse_to_fine_gives_the_mesh_and_gradients_of_the_whole_lattice(
    extractor: Extractor, seed: int, bumps: float, radius: float
) -> None:
    check_same(extractor, Blob(ball(radius, 0.05, 0.02, -0.03), bumps, seed))


def test_a_surface_that_leaps_and_a_new_part_far_away_are_found_at_once(
    extractor: Extractor,
) -> None:
    left, right = ball(0.3, -0.55, -0.5, -0.5), ball(0.3, 0.55, 0.5, 0.5)
    for shape in (left, right, lambda x: torch.minimum(left(x), right(x))):
        check_same(extractor, Blob(shape))


def test_a_thread_thinner_than_the_coarse_cells_is_followed_to_its_end(
    extractor: Extractor,
) -> None:
    middle = ball(0.3, 0.0, 0.0, 0.0)

    def threaded(points: Tensor) -> Tensor:
        # A step, which no value around it announces. It misses the coarse nodes, at multiples of
        # a third.
        thread = ((points[:, :2] - 0.125).abs().amax(1) < 0.1) & (points[:, 2].abs() < 0.9)
        return torch.where(thread, -0.1, middle(points))

    nets = Blob(threaded)
    check_same(extractor, nets)
    assert extractor.surface(nets, "here").vertices[:, 2].max() > 0.85

    def islands(points: Tensor) -> Tensor:
        return torch.where(ball(0.1, 0.5, 0.5, 0.85)(points) < 0, -0.1, middle(points))

    # Not met by any coarse node, an island is seen only where every node is looked at.
    assert extractor.surface(Blob(islands), "here").vertices.amax() < 0.35
    check_same(Extractor(fine_lattice(), 0.04, blob_person()[0], coarsest=24), Blob(islands))


# causes of failure -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("bias", "cause"),
    [
        (9.0, "positive everywhere"),
        (-9.0, "negative everywhere"),
        (torch.nan, "became NaN or infinite at step 3"),
    ],
)
def test_an_empty_mesh_is_an_error_with_its_cause(
    person: tuple[TrackedFace, list[TrainingFrame]], bias: float, cause: str
) -> None:
    face, _ = person
    nets = HeadNetworks(2, 8)
    with torch.no_grad():
        list(nets.geometry.layers)[-1].bias[0] = bias
    with pytest.raises(StageError, match=cause):
        Extractor(cube(4), 0.1, face).surface(nets, "step 3")


def changed(frame: TrainingFrame, **changes: object) -> TrainingFrame:
    views = tuple(dataclasses.replace(view, **changes) for view in frame.views)  # type: ignore[arg-type]
    return dataclasses.replace(frame, views=views)


def test_frames_that_cannot_work_are_refused_before_training(
    person: tuple[TrackedFace, list[TrainingFrame]],
) -> None:
    frame = person[1][0]
    check_frames([frame])
    with pytest.raises(StageError, match=r"4 of 4 training mattes are empty.*timestep 0, camera"):
        check_frames([changed(frame, matte=np.zeros((48, 48), np.uint8))])
    away = look_at(np.array([0, 0, 1.0]), np.array([0, 0, 2.0]), np.array([0, 1.0, 0]))
    blind = dataclasses.replace(frame.views[0].camera, w2c=away)
    with pytest.raises(StageError, match="behind the camera"):
        check_frames([changed(frame, camera=blind)])


def test_the_box_holds_the_head_and_what_the_mattes_show_up_to_a_limit(
    person: tuple[TrackedFace, list[TrainingFrame]],
) -> None:
    face, frames = person
    low, high = face.vertices.amin(0).numpy(), face.vertices.amax(0).numpy()
    tight = subject_box(frames, face, margin=0.2, reach=0.5)
    assert np.allclose(tight.lower, low - 0.2, atol=0.03)  # the mattes show no more than the head
    assert np.allclose(tight.upper, high + 0.2, atol=0.03)
    everything = np.full((48, 48), 255, np.uint8)
    wide = subject_box([changed(frames[0], matte=everything)], face, margin=0.1, reach=0.3)
    assert np.allclose(wide.lower, low - 0.3)
    assert np.allclose(wide.upper, high + 0.3)


def test_pixels_beside_and_under_the_box_do_not_count(
    person: tuple[TrackedFace, list[TrainingFrame]],
) -> None:
    frame = person[1][0]
    box = Box(np.array([-0.1, -0.1, -0.1]), np.array([0.1, 0.1, 0.1]))
    view = within_box([frame], box)[0].views[1]
    x, y = view.camera.project(frame.pose.to_world(np.zeros(3)))
    assert view.usable[int(y), int(x)]
    assert not view.usable[0].any()
    assert not view.usable[:, 0].any()
    floor = view.camera.project(frame.pose.to_world(np.array([0, -0.1, 0])))
    assert not view.usable[int(floor[1]), int(floor[0])]
    assert np.array_equal(view.usable, usable_pixels(view.camera, frame.pose, box))


# the finished mesh -------------------------------------------------------------------------------
def test_only_the_largest_part_is_kept() -> None:
    faces = torch.tensor([[7, 8, 9], [0, 1, 2], [1, 2, 3]])
    part = largest_component(faces, 10)
    assert part.parts == 2
    assert part.vertices.tolist() == [0, 1, 2, 3]
    assert part.faces.tolist() == [[0, 1, 2], [1, 2, 3]]


def test_the_ply_file_holds_the_mesh_and_8_bit_colours(tmp_path: Path) -> None:
    from plyfile import PlyData

    vertices, faces = plane()
    write_ply(tmp_path / "mesh.ply", vertices, faces, vertices.abs())
    read = PlyData.read(str(tmp_path / "mesh.ply"))
    assert np.stack([read["vertex"][axis] for axis in "xyz"], 1).tolist() == vertices.tolist()
    assert read["vertex"]["red"].tolist() == [0, 255, 255, 0]
    assert [list(row) for row in read["face"]["vertex_indices"]] == faces.tolist()


# the stage ---------------------------------------------------------------------------------------
def write_artifacts(folder: Path, face: TrackedFace, frames: list[TrainingFrame]) -> None:
    """What ingest, matting and tracking would have written for these frames."""
    for stage in ("ingest", "matting", "tracking"):
        (folder / stage).mkdir(parents=True)
    pictures, mattes, tracked = [], [], []
    for frame in frames:
        when = {"subject": "egg", "sequence": frame.sequence, "timestep": frame.timestep}
        tracked.append(
            when
            | {
                "rotation": frame.pose.rotation.tolist(),
                "translation": frame.pose.translation.tolist(),
                "scale": frame.pose.scale,
                "expression": frame.expression.tolist(),
                "landmarks": frame.landmarks.flatten().tolist(),
                "residual": 0.0,
            }
        )
        for view in frame.views:
            row = when | {"camera": view.camera.name, "width": 48, "height": 48}
            pictures.append(
                row
                | {
                    "image": encode_png(view.image),
                    "time": 0.0,
                    "sharpness": 1.0,
                    "transform": np.eye(3).ravel().tolist(),
                    "source_width": 48,
                    "source_height": 48,
                }
            )
            mattes.append(row | {"alpha": encode_png(view.matte)})
    cameras = [view.camera.row("egg") for view in frames[0].views]
    write_table(folder / "ingest" / "cameras.parquet", schemas.CAMERAS, cameras)
    write_table(folder / "ingest" / "backgrounds.parquet", schemas.BACKGROUNDS, [])
    write_table(folder / "ingest" / "frames.parquet", schemas.FRAMES, pictures)
    write_table(folder / "matting" / "alpha.parquet", schemas.ALPHA, mattes)
    write_table(folder / "tracking" / "tracking.parquet", schemas.TRACKING, tracked)
    save_file(
        {
            "neutral_vertices": face.vertices,
            "faces": face.faces,
            "expression_basis": face.basis,
            "landmarks": face.landmarks,
            "region.face": torch.ones(len(face.vertices), dtype=torch.uint8),
        },
        folder / "tracking" / "identity.safetensors",
    )


def run_stage(artifacts: Path, out: Path, **params: object) -> Path:
    splits = Splits(test_cameras=("cam3",), test_every=4)
    work = out.with_name(out.name + "_work")
    out.mkdir()
    work.mkdir()
    inputs = Inputs("egg", Path("nowhere"), "auto", artifacts, work, splits, seed=3)
    few = {"steps": 3, "resolution": 8, "output_resolution": 10, "width": 16, "sphere_steps": 30}
    geometry.run(inputs, geometry.Params(image_size=48, **{**few, **params}), out)  # type: ignore[arg-type]
    return out


def test_the_stage_writes_its_artifact_and_never_looks_at_held_out_rows(
    person: tuple[TrackedFace, list[TrainingFrame]], tmp_path: Path
) -> None:
    face, frames = person
    write_artifacts(tmp_path / "one", face, frames)
    garbage = [
        dataclasses.replace(
            frame,
            views=tuple(
                dataclasses.replace(view, image=255 - view.image, matte=255 - view.matte)
                if view.camera.name == "cam3" or frame.timestep == 3
                else view
                for view in frame.views
            ),
            landmarks=frame.landmarks + (frame.timestep == 3),
        )
        for frame in frames
    ]
    write_artifacts(tmp_path / "two", face, garbage)
    first, second = (
        run_stage(tmp_path / name, tmp_path / f"out_{name}") for name in ("one", "two")
    )
    for name in ("geometry.safetensors", "mesh.ply", "history.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name

    tensors = load_file(first / "geometry.safetensors")
    count = len(tensors["vertices"])
    assert tensors["features"].shape == (count, 128)
    assert tensors["features"].abs().max() < 1
    assert tensors["colours"].shape == (count, 3)
    assert tensors["landmarks"].shape == face.landmarks.shape
    assert tensors["faces"].max() < count
    nets = HeadNetworks(2, 16)
    nets.load_state_dict(
        {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
    )
    summary = read_json(first / "summary.json")
    assert summary["vertices"] == count
    assert summary["views"] == 9
    assert (first / "preview.jpg").stat().st_size > 1000


def test_with_empty_mattes_the_stage_says_so(
    person: tuple[TrackedFace, list[TrainingFrame]], tmp_path: Path
) -> None:
    face, frames = person
    black = [changed(frame, matte=np.zeros((48, 48), np.uint8)) for frame in frames]
    write_artifacts(tmp_path / "black", face, black)
    with pytest.raises(StageError, match="training mattes are empty"):
        run_stage(tmp_path / "black", tmp_path / "out")
