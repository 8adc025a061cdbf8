"""The mesh rasteriser: exact small pictures, twin against kernel, gradients against differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gha_core.cameras import look_at
from gha_core.errors import ParameterError
from gha_core.mesh_rasterisation import (
    exposed_faces,
    mesh_edges,
    native,
    rasterize,
    render_mesh,
)

K = torch.tensor([[10.0, 0, 8], [0, 10, 8], [0, 0, 1]])
FRONT = torch.eye(4)
compiled = pytest.mark.skipif(bool(native.missing()), reason="installed without kernels")
BACKENDS = [pytest.param("native", marks=compiled), "twin"]


def square(depth: float, half: float, first: int = 0) -> tuple[Tensor, Tensor]:
    corners = torch.tensor([[-half, -half], [half, -half], [half, half], [-half, half]])
    vertices = torch.cat([corners, torch.full((4, 1), depth)], 1)
    return vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]) + first


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_square_covers_exactly_the_pixels_whose_centres_it_contains(backend: str) -> None:
    vertices, faces = square(depth=1.0, half=0.3)  # pixels 5 .. 11 both ways
    seen = rasterize(vertices, faces, K, FRONT, 16, 16, backend)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[5:11, 5:11] = True
    assert torch.equal(seen.mask, expected)
    assert torch.allclose(seen.depth[expected], torch.ones(36))
    assert torch.equal(seen.depth[~expected], torch.zeros(256 - 36))
    assert torch.allclose(seen.barycentric[expected].sum(-1), torch.ones(36))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearer_surface_hides_the_farther_one_in_either_order(backend: str) -> None:
    near, far = square(1.0, 0.1), square(2.0, 1.0)
    for parts in ((near, far), (far, near)):
        vertices = torch.cat([parts[0][0], parts[1][0]])
        faces = torch.cat([parts[0][1], parts[1][1] + 4])
        seen = rasterize(vertices, faces, K, FRONT, 16, 16, backend)
        assert torch.allclose(seen.depth[7:9, 7:9], torch.ones(2, 2))
        assert torch.allclose(seen.depth[4, 4:12], torch.full((8,), 2.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_barycentrics_are_perspective_correct(backend: str) -> None:
    vertices = torch.tensor([[-1.0, -1, 1], [4, -1, 4], [0, 3, 2]])
    faces = torch.tensor([[0, 1, 2]])
    seen = rasterize(vertices, faces, K, FRONT, 16, 16, backend)
    rows, columns = seen.mask.nonzero().unbind(1)
    point = seen.barycentric[rows, columns] @ vertices
    pixel = point @ K.T
    assert torch.allclose(pixel[:, 0] / pixel[:, 2], columns + 0.5, atol=1e-4)
    assert torch.allclose(pixel[:, 1] / pixel[:, 2], rows + 0.5, atol=1e-4)
    assert torch.allclose(point[:, 2], seen.depth[rows, columns], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_triangles_behind_or_through_the_camera_plane_or_without_area_are_left_out(
    backend: str,
) -> None:
    vertices = torch.tensor(
        [[-1.0, -1, -1], [1, -1, -1], [0, 1, -1], [0, 1, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]]
    )
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [3, 4, 5], [5, 5, 3], [3, 5, 6]])
    assert not rasterize(vertices, faces, K, FRONT, 16, 16, backend).mask.any()
    nothing = rasterize(vertices, faces[:0], K, FRONT, 16, 16, backend)
    assert not nothing.mask.any()


@compiled
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 33), st.integers(1, 33))
def test_kernel_and_twin_see_the_same(seed: int, count: int, width: int, height: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.randn(count + 2, 3, generator=generator)
    faces = torch.randint(0, count + 2, (count, 3), generator=generator)
    faces = torch.unique(faces.sort(1).values, dim=0)  # between two of the same, rounding decides
    camera = look_at(np.array([0.3, 0.2, -2.0]), np.zeros(3), np.array([0, 1.0, 0]))
    fast, exact = (
        rasterize(vertices, faces, K, camera, width, height, backend)
        for backend in ("native", "twin")
    )
    assert torch.equal(fast.face_index, exact.face_index)
    assert torch.allclose(fast.depth, exact.depth, atol=1e-5)
    assert torch.allclose(fast.barycentric, exact.barycentric, atol=1e-4)


def test_faces_that_point_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="outside the 4 vertices"):
        rasterize(square(1, 1)[0], torch.tensor([[0, 1, 4]]), K, FRONT, 4, 4)
    with pytest.raises(ParameterError, match="choose one of: auto, native, "):
        rasterize(*square(1, 1), K, FRONT, 4, 4, backend="cuda")


def test_edges_know_their_faces() -> None:
    edges = mesh_edges(torch.tensor([[0, 1, 2], [0, 2, 3]]))
    table = {
        tuple(ends): {face for face in pair if face >= 0}
        for ends, pair in zip(edges.vertices.tolist(), edges.faces.tolist(), strict=True)
    }
    assert table == {(0, 1): {0}, (1, 2): {0}, (0, 2): {0, 1}, (2, 3): {1}, (0, 3): {1}}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_silhouette_is_soft_within_its_width_and_hard_elsewhere(backend: str) -> None:
    vertices, faces = square(1.0, 0.35)  # outline at 4.5 and 11.5 px: on pixel centres
    image = render_mesh(vertices, faces, vertices, K, FRONT, 16, 16, 2.0, backend=backend)
    row = image.silhouette[8]
    assert row[4] == pytest.approx(0.5, abs=1e-3)
    assert row[5] == pytest.approx(0.75**2 * 1.5, abs=1e-3)
    assert row[3] == pytest.approx(0.25**2 * 2.5, abs=1e-3)
    assert torch.equal(row[:3], torch.zeros(3))
    assert torch.equal(row[7:9], torch.ones(2))


def test_contours_inside_the_picture_leave_the_silhouette_alone() -> None:
    behind, front = square(2.0, 3.0), square(1.0, 0.2)
    vertices = torch.cat([behind[0], front[0]])
    faces = torch.cat([behind[1], front[1] + 4])
    image = render_mesh(vertices, faces, vertices, K, FRONT, 16, 16, 2.0)
    assert torch.equal(image.silhouette, torch.ones(16, 16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_agree_with_differences(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    tetrahedron = torch.tensor([[0.31, -0.27, 1.1], [-0.33, -0.21, 1.2], [0.02, 0.36, 1.3]])
    vertices = torch.cat([tetrahedron, torch.tensor([[0.01, 0.02, 0.9]])]).double()
    faces = torch.tensor([[0, 1, 2], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
    attributes = torch.rand(4, 2, generator=generator, dtype=torch.float64)

    def picture(vertices: Tensor, attributes: Tensor) -> tuple[Tensor, ...]:
        image = render_mesh(
            vertices, faces, attributes, K, FRONT, 16, 16, 1.5, mesh_edges(faces), backend
        )
        return image.attributes, image.silhouette, image.depth

    inputs = (vertices.requires_grad_(), attributes.requires_grad_())
    assert torch.autograd.gradcheck(picture, inputs, eps=1e-7, atol=1e-4)


def test_a_silhouette_loss_moves_a_square_onto_its_target() -> None:
    vertices, faces = square(1.0, 0.25)
    target = render_mesh(vertices * torch.tensor([1.5, 1.2, 1]), faces, vertices, K, FRONT, 16, 16)
    size = torch.ones(2, requires_grad=True)
    optimiser = torch.optim.Adam([size], 0.02)
    for _ in range(120):
        stretched = vertices * torch.cat([size, torch.ones(1)])
        image = render_mesh(stretched, faces, vertices, K, FRONT, 16, 16)
        loss = (image.silhouette - target.silhouette).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.allclose(size, torch.tensor([1.5, 1.2]), atol=0.03)


def test_faces_inside_a_closed_surface_are_not_exposed() -> None:
    corners = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    triangles = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    vertices = torch.cat([corners, 0.2 * corners])
    faces = torch.cat([triangles, triangles + 4])
    assert exposed_faces(vertices, faces).tolist() == [True] * 4 + [False] * 4
