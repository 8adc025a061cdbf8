"""The head model: axes, symmetry, what expressions do, and where landmarks lie on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gha_core.errors import AssetError
from gha_core.faces import FaceModel, head_model, identity_space
from gha_core.faces.drift import expected_drift, fit_drift, view_features
from gha_core.faces.portrait import Painter, portrait_camera, vertex_normals
from gha_core.fitting import rotations
from gha_core.landmarks import points as detector_points
from gha_core.pose import HeadPose

CHIN, NOSE_TIP = 152, 4


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return head_model()


def face(model: FaceModel, **expression: float) -> torch.Tensor:
    amounts = [expression.get(name, 0.0) for name in model.expression_names]
    return model.vertices(torch.zeros(len(model.identity_basis)), torch.tensor(amounts))


def landmark(model: FaceModel, vertices: torch.Tensor, point: int) -> torch.Tensor:
    return model.landmarks(vertices)[..., model.landmark_indices.tolist().index(point), :]


def test_head_space_has_its_unit_origin_and_axes(model: FaceModel) -> None:
    skin = ~model.regions["neck"]
    crown, chin = model.mean[skin][:, 1].max(), landmark(model, model.mean, CHIN)[1]
    assert crown - chin == pytest.approx(1, abs=0.04)
    ears = model.mean[model.regions["ears"]]
    assert ears[:, 0].mean().abs() < 1e-4
    assert ears.mean(0).norm() < 0.12
    nose = landmark(model, model.mean, NOSE_TIP)
    assert nose[2] > 0.4
    assert abs(nose[0]) < 0.02
    assert 0.2 < model.metres_per_unit < 0.25
    left = [model.expression_names.index("eyeBlinkLeft")]
    moved = model.expression_basis[left][0].norm(dim=-1)
    assert model.mean[moved > 0.5 * moved.max()][:, 0].min() > 0, "+x is the subject's left"


def test_mean_head_is_symmetric_and_components_are_even_or_odd(model: FaceModel) -> None:
    flip = torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(model.mean[model.mirror] * flip, model.mean, atol=1e-6)
    assert torch.equal(model.mirror[model.mirror], torch.arange(len(model.mean)))
    for component in model.identity_basis[:20]:
        mirrored = component[model.mirror] * flip
        size = component.abs().max()
        even, odd = (mirrored - component).abs().max(), (mirrored + component).abs().max()
        assert min(even, odd) < 0.02 * size


def test_faces_point_outwards(model: FaceModel) -> None:
    vertices = model.mean.double().numpy()
    normals = vertex_normals(vertices, model.faces.numpy())
    scalp = model.regions["scalp"].numpy()
    outward = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    assert ((normals * outward).sum(1)[scalp] > 0.3).mean() > 0.95


def test_expressions_move_what_they_are_named_after(model: FaceModel) -> None:
    rest = face(model)
    jaw = face(model, jawOpen=1.0) - rest
    assert landmark(model, jaw, CHIN)[1] < -0.06
    assert landmark(model, jaw, NOSE_TIP).norm() < 0.01
    smile = face(model, mouthSmileLeft=1.0) - rest
    left, right = landmark(model, smile, 291), landmark(model, smile, 61)
    assert left[1] > 0.01
    assert left.norm() > 5 * right.norm()
    upper, lower = 386, 374  # lids of the left eye
    apart = [
        (landmark(model, mesh, upper) - landmark(model, mesh, lower)).norm()
        for mesh in (rest, face(model, eyeBlinkLeft=1.0))
    ]
    assert apart[1] < 0.4 * apart[0]


def test_inner_lips_belong_to_the_right_lip(model: FaceModel) -> None:
    moved = face(model, jawOpen=1.0) - face(model)
    below = detector_points.LIPS_INNER[3:8]
    above = detector_points.LIPS_INNER[13:18]
    assert min(-landmark(model, moved, point)[1] for point in below) > 0.05
    assert max(-landmark(model, moved, point)[1] for point in above) < 0.03


def test_landmarks_lie_where_the_detector_finds_them(model: FaceModel) -> None:
    from gha_core.landmarks import FaceMeshDetector

    camera = portrait_camera(15.0, 5.0, 320, np.array([0.0, -0.08, 0.2]))
    identity = 0.5 * torch.randn(
        len(model.identity_basis), generator=torch.Generator().manual_seed(3)
    )
    vertices = model.vertices(identity, torch.zeros(len(model.expression_names)))
    portrait = Painter(model).portrait(vertices.double().numpy(), camera, np.array([0.2, 0.5, 1.0]))
    found = FaceMeshDetector().detect(portrait.image)
    assert found is not None
    places = camera.project(model.landmarks(vertices).double().numpy())
    unit = camera.K[0, 0] / np.linalg.norm(camera.centre)
    off = np.linalg.norm(found.points[model.landmark_indices] - places, axis=1) / unit
    assert np.median(off) < 0.015
    assert len(model.landmark_indices) > 400


def test_regions_cover_the_head_and_do_not_overlap(model: FaceModel) -> None:
    apart = ("face", "eyes", "ears", "scalp", "tongue", "teeth", "mouth_interior", "neck")
    counts = torch.stack([model.regions[name] for name in apart]).sum(0)
    assert counts.max() == 1
    for name, mask in model.regions.items():
        assert mask.any(), name
        assert torch.equal(mask[model.mirror], mask), f"{name} is not symmetric"
    assert not (model.regions["lips"] & model.regions["teeth"]).any()


def test_vertices_are_linear_and_batched(model: FaceModel) -> None:
    identity = torch.randn(2, 3, len(model.identity_basis))
    expression = torch.rand(2, 3, len(model.expression_names))
    batch = model.vertices(identity, expression)
    assert batch.shape == (2, 3, len(model.mean), 3)
    assert torch.allclose(batch[1, 2], model.vertices(identity[1, 2], expression[1, 2]), atol=1e-5)
    assert model.landmarks(batch).shape == (2, 3, len(model.landmark_indices), 3)


def test_model_survives_its_file(model: FaceModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.safetensors"
    path.write_bytes(model.to_bytes({"licence": "CC0"}))
    again = FaceModel.load(path)
    assert again.expression_names == model.expression_names
    assert torch.equal(again.identity_basis, model.identity_basis)
    assert torch.equal(again.regions["lips"], model.regions["lips"])
    assert again.metres_per_unit == model.metres_per_unit
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AssetError, match="Delete it"):
        FaceModel.load(path)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    st.floats(0.1, 10),
)
def test_similarity_is_recovered(turn: list[float], shift: list[float], scale: float) -> None:
    points = np.random.default_rng(0).normal(size=(12, 3))
    rotation = rotations.exponential(np.array(turn))
    found = identity_space.similarity_to(scale * points @ rotation.T + shift, points)
    assert found[0] == pytest.approx(scale)
    np.testing.assert_allclose(found[1], rotation, atol=1e-9)
    np.testing.assert_allclose(found[2], shift, atol=1e-8)


def test_principal_components_have_unit_variance() -> None:
    rng = np.random.default_rng(1)
    modes = np.linalg.qr(rng.normal(size=(30, 3)))[0].T.reshape(3, 10, 3)
    modes[..., 0] = 0  # so that mirroring changes nothing
    heads = np.einsum("nk,kvc->nvc", rng.normal(size=(200, 3)) * [3, 2, 1], modes)
    mean, basis, explained = identity_space.principal_components(
        heads, np.arange(10), np.ones(10), 3
    )
    np.testing.assert_allclose(mean, heads.mean(0), atol=1e-9)
    assert explained == pytest.approx(1, abs=1e-6)
    coefficients = np.linalg.lstsq(basis.reshape(3, -1).T, (heads - mean).reshape(200, -1).T)[0]
    np.testing.assert_allclose(coefficients.std(1), 1, atol=1e-6)


def test_drift_turns_with_the_head_in_the_image() -> None:
    rng = np.random.default_rng(2)
    drift = rng.normal(size=(4, 2, 6))
    camera = portrait_camera(20.0, 0.0, 64, np.zeros(3))
    extrinsics = camera.w2c[None, :3]
    upright = expected_drift(drift, np.eye(3)[None], np.zeros((1, 3)), extrinsics)[0, 0]
    np.testing.assert_allclose(upright, drift @ view_features(camera.centre), atol=1e-9)
    # The same view by a camera that lies on its side: the image turns by a quarter.
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = expected_drift(drift, np.eye(3)[None], np.zeros((1, 3)), quarter @ extrinsics)[0, 0]
    np.testing.assert_allclose(turned, upright @ quarter[:2, :2].T, atol=1e-9)


def test_drift_is_learned() -> None:
    rng = np.random.default_rng(3)
    drift = rng.normal(size=(5, 2, 6))
    features = view_features(rng.normal((0.0, 0.0, 3.0), size=(4000, 3)))
    errors = np.einsum("rf,ldf->rld", features, drift)
    np.testing.assert_allclose(fit_drift(features, errors, np.ones(4000)), drift, atol=0.2)


@given(st.lists(st.floats(-1.5, 1.5), min_size=3, max_size=3))
def test_axis_angles_are_unwrapped_without_changing_the_rotation(turn: list[float]) -> None:
    first = np.array([np.pi - 0.05, 0.0, 0.0])
    turned = rotations.exponential(0.1 * np.array(turn)) @ rotations.exponential(first)
    vector = rotations.logarithm(turned)
    pair = rotations.unwrapped(np.stack([first, vector]), first)
    np.testing.assert_allclose(rotations.exponential(pair[1]), turned, atol=1e-9)
    assert np.linalg.norm(pair[1] - first) < 0.5
    pose = HeadPose(pair[1], np.zeros(3), 1.0)
    np.testing.assert_allclose(pose.matrix, turned, atol=1e-9)
