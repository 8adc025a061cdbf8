"""The choice of backends, and the CUDA packages held against the twins.

Where a package and a GPU are there, the real thing is tested; everywhere, a stand-in with its
signature and image model (fake_packages.py), on the CPU.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import fake_packages
import pytest
import torch
from test_splatting import (
    HEIGHT,
    WIDTH,
    Scene,
    join,
    one_gaussian,
    random_scene,
    weighted_sum,
)
from torch import Tensor

from gha_core import backends, mesh_rasterisation, splatting
from gha_core.backends import Backend, Backends
from gha_core.errors import ParameterError
from gha_core.mesh_rasterisation import kaolin, native, render_mesh, visibility
from gha_core.mesh_rasterisation import twin as mesh_twin
from gha_core.splatting import diff_gaussian_rasterization, gsplat, rasterise, twin
from gha_core.splatting.scene import Scene as BackendScene

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PACKAGES = ("gsplat", "diff_gaussian_rasterization", "kaolin")
INRIA = "diff_gaussian_rasterization"


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """One thread for tiny scenes; warnings and detected builds are those of the test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    backends._warn_once.cache_clear()
    yield
    diff_gaussian_rasterization._channels.cache_clear()
    torch.set_num_threads(threads)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_packages.remove(monkeypatch, *PACKAGES)


# The choice -------------------------------------------------------------------------------------

SUMS: Backends[Callable[[], str]] = Backends(
    "addition",
    (
        Backend("quick", lambda: "quick", device="cpu", missing=lambda: "broke", cost="slowly"),
        Backend("bound", lambda: "bound", "theirs only", "cuda", caution="mind the licence"),
        Backend("plain", lambda: "plain"),
    ),
)


def test_the_preferred_backend_that_takes_the_tensors_is_chosen() -> None:
    with pytest.warns(RuntimeWarning, match="mind the licence") as caught:
        chosen = [SUMS.choose("auto", CUDA) for _ in range(2)]
    assert [backend.name for backend in chosen] == ["bound", "bound"]
    assert len(caught) == 1
    with pytest.warns(RuntimeWarning, match="the PyTorch twin, slowly, because quick broke"):
        assert SUMS.choose("auto", CPU).name == "plain"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SUMS.choose("auto", CUDA, torch.float64).name == "plain"
        assert SUMS.choose("bound", CUDA).kernels() == "bound"  # asked for: no word of caution


def test_a_backend_that_cannot_be_had_is_refused_with_the_reason() -> None:
    with pytest.raises(ParameterError, match=r"no backend 'fast' for addition; choose one of: "):
        SUMS.choose("fast", CPU)
    with pytest.raises(ParameterError, match="For addition, quick broke"):
        SUMS.choose("quick", CPU)
    with pytest.raises(ParameterError, match=r"takes float32 tensors on a CUDA device.* cpu"):
        SUMS.choose("bound", CPU)


def test_the_choice_is_explained() -> None:
    assert SUMS.explain("cpu") == "plain (Apache-2.0); quick (Apache-2.0) broke"
    assert (SUMS.is_best("cpu"), SUMS.is_best("cuda")) == (False, True)
    assert SUMS.explain("cuda") == "bound (theirs only); also here: plain (Apache-2.0)"


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], "twin"),
        (["gsplat"], "gsplat"),
        ([INRIA], INRIA),
        ([INRIA, "gsplat"], "gsplat"),
    ],
)
def test_gaussians_on_cuda_go_to_the_package_that_is_installed(
    nothing_installed: None, monkeypatch: pytest.MonkeyPatch, present: list[str], expected: str
) -> None:
    for name in present:
        fake_packages.install(monkeypatch, name)
    monkeypatch.setattr(gsplat, "_has_kernels", lambda: True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert splatting.BACKENDS.choose("auto", CUDA).name == expected
    said = " ".join(str(warning.message) for warning in caught)
    assert ("pip install 'gha[cuda]'" in said) == (expected != "gsplat")
    assert ("non-commercial" in said) == (expected == INRIA)
    assert splatting.BACKENDS.choose("auto", CUDA, torch.float64).name == "twin"
    explained = splatting.BACKENDS.explain("cuda")
    assert explained.startswith(expected)
    assert "non-commercial research only" in explained
    assert all(name in explained for name in (INRIA, "gsplat"))


def test_gsplat_without_kernels_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_packages.install(monkeypatch, "gsplat")
    assert gsplat.missing() is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    assert "no CUDA toolkit" in str(gsplat.missing())
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", "somewhere")
    assert gsplat.missing() is None


def test_kaolin_is_taken_for_meshes_on_cuda_where_it_is_installed(
    nothing_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends = mesh_rasterisation.BACKENDS
    assert backends.choose("auto", CUDA).name == "twin"
    assert "the kaolin on PyPI is empty" in backends.explain("cuda")
    fake_packages.install_kaolin(monkeypatch)
    assert backends.choose("auto", CUDA).name == "kaolin"
    assert backends.choose("auto", CPU).name != "kaolin"


def test_no_package_is_named_outside_of_the_folder_of_its_operation() -> None:
    folders = ("splatting/*.py", "mesh_rasterisation/*.py", "geometry/marching*.py")
    allowed = {file for folder in folders for file in (ROOT / "gha_core").glob(folder)}
    allowed.add(ROOT / "benchmarks" / "opensplat.py")  # a file of that project has such a name
    files = [f for folder in ("gha_core", "tasks", "flows", "benchmarks")
             for f in (ROOT / folder).rglob("*.py")]  # fmt: skip
    names = re.compile("|".join(PACKAGES))
    assert [f for f in files if f not in allowed and names.search(f.read_text())] == []


# Splatting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Package:
    """A splatting package, real or not.

    Attributes:
        render: as :func:`twin.render`.
        device: of the tensors that it takes.
    """

    name: str
    render: rasterise.Render
    device: torch.device

    def draw(self, scene: Scene, width: int = WIDTH, height: int = HEIGHT) -> splatting.Splat:
        return self._draw(self.render, scene, width, height)

    def twin(self, scene: Scene, width: int = WIDTH, height: int = HEIGHT) -> splatting.Splat:
        return self._draw(twin.render, scene, width, height)

    def _draw(
        self, render: rasterise.Render, scene: Scene, width: int, height: int
    ) -> splatting.Splat:
        tensors = [getattr(scene, f.name) for f in fields(scene)]
        *gaussians, K, w2c, background = [t.to(self.device) for t in tensors]
        cameras = K.reshape(-1, 3, 3), w2c.reshape(-1, 4, 4)
        planes = render(BackendScene(*gaussians, background, *cameras, width, height))
        return splatting.Splat(*(plane.cpu() for plane in planes))


FAKES = {
    "gsplat": ("gsplat", fake_packages.install_gsplat),
    f"{INRIA}, 3 channels": (INRIA, lambda patch: fake_packages.install_inria(patch, 3)),
    f"{INRIA}, 32 channels": (INRIA, lambda patch: fake_packages.install_inria(patch, 32, True)),
}
RENDERS = {"gsplat": gsplat.render, INRIA: diff_gaussian_rasterization.render}


@pytest.fixture(params=[*FAKES, "gsplat on CUDA", f"{INRIA} on CUDA"])
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Package:
    kind = request.param
    if kind in FAKES:
        name, install = FAKES[kind]
        install(monkeypatch)
        return Package(name, RENDERS[name], CPU)
    name = kind.removesuffix(" on CUDA")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip(name)
    return Package(name, RENDERS[name], CUDA)


def faint(scene: Scene) -> Scene:
    """Opacities at which all agree: alpha is below 1/255 at three standard deviations."""
    return replace(scene, opacities=0.35 * scene.opacities)


def assert_same_gradients(found: Scene, wanted: Scene, tolerance: float) -> None:
    for name, truth in wanted.gradients().items():
        gradient, scale = found.gradients()[name], truth.abs().max().item()
        torch.testing.assert_close(
            gradient, truth, atol=tolerance * scale, rtol=10 * tolerance,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )  # fmt: skip


@pytest.mark.parametrize(("count", "channels", "views"), [(60, 5, 2), (40, 32, 1), (8, 1, 3)])
def test_a_package_draws_as_the_twin_does_with_all_gradients(
    package: Package, count: int, channels: int, views: int
) -> None:
    # The principal point is off the middle, focal lengths differ, there is skew.
    scene = faint(random_scene(count, channels, views, seed=count, size=0.1))
    scene.K[:, 0, 2] += 4.0
    scene.K[:, 1, 2] -= 3.0
    exact, other = scene.leaves(), scene.leaves()
    expected, found = package.twin(exact), package.draw(other)
    assert expected.alpha.max() > 0.1
    for plane in ("features", "alpha", "depth"):
        torch.testing.assert_close(
            getattr(found, plane), getattr(expected, plane), atol=1e-4, rtol=1e-3, msg=plane
        )
    weighted_sum(expected).backward()
    weighted_sum(found).backward()
    assert_same_gradients(other, exact, 1e-3)


def test_a_package_leaves_out_what_the_twin_leaves_out(package: Package) -> None:
    clean = faint(random_scene(count=20, views=1, channels=3, seed=2))
    for name, value in {
        "means": [0.0, 0.0, -1.995],  # 5 mm before the camera
        "quaternions": [0.0, 0.0, 0.0, 0.0],
        "scales": [1e30, 1e30, 1e30],
        "opacities": 0.003,
    }.items():
        bad = getattr(clean, name).clone()
        bad[7] = torch.tensor(value)
        scene = replace(clean, **{name: bad}).leaves()
        splat = package.draw(scene)
        torch.testing.assert_close(
            splat.features, package.twin(scene).features, atol=1e-4, rtol=1e-3, msg=name
        )
        weighted_sum(splat).backward()
        for gradient in scene.gradients().values():
            assert gradient.isfinite().all(), name
        for row in ("means", "scales", "opacities", "features"):
            assert (scene.gradients()[row][7] == 0).all(), (name, row)
    close = replace(clean, means=torch.cat([torch.tensor([[0.0, 0.0, -1.95]]), clean.means[1:]]))
    found, expected = package.draw(close), package.twin(close)  # 5 cm before it is seen
    torch.testing.assert_close(found.alpha, expected.alpha, atol=1e-4, rtol=1e-3)
    assert (expected.alpha - package.twin(clean).alpha).abs().max() > 0.02


def test_a_package_draws_an_empty_scene(package: Package) -> None:
    full = random_scene(views=2)
    names = ("means", "quaternions", "scales", "opacities", "features")
    scene = replace(full, **{n: getattr(full, n)[:0] for n in names}).leaves()
    splat = package.draw(scene)
    torch.testing.assert_close(splat.features, scene.background.expand(2, HEIGHT, WIDTH, 3))
    weighted_sum(splat).backward()
    behind = replace(full, means=full.means - torch.tensor([0.0, 0.0, 30.0]))
    assert (package.draw(behind).alpha == 0).all()


def test_a_package_refuses_more_intersections_than_it_can_count(package: Package) -> None:
    scene = replace(random_scene(count=60, views=1), scales=torch.full((60, 3), 0.5))
    K = scene.K * torch.tensor([100_000 / WIDTH, 100_000 / HEIGHT, 1.0])[:, None]
    with pytest.raises(ParameterError, match="60 Gaussians into 1 views of 100000x100000 px"):
        package.draw(replace(scene, K=K), 100_000, 100_000)


def test_where_alpha_is_held_below_one(package: Package) -> None:
    scene = replace(one_gaussian((10.5, 7.5), opacity=1.0), background=torch.zeros(2)).leaves()
    splat = package.draw(scene)
    most = 0.99 if package.name == INRIA else 0.999
    assert splat.alpha[0, 7, 10].item() == pytest.approx(most, abs=1e-5)
    splat.alpha[0, 7, 10].backward()
    assert (scene.opacities.grad.item() > 0.5) == (package.name == INRIA)


def test_where_a_footprint_ends(package: Package) -> None:
    scene = replace(one_gaussian((25.5, 25.5), size=0.6, opacity=0.95), background=torch.zeros(2))
    found, expected = package.draw(scene, 96, 96), package.twin(scene, 96, 96)
    missed = (expected.alpha > 0) & (found.alpha == 0)
    assert missed.any() == (package.name == INRIA)
    # What Inria's cuts off lies beyond three standard deviations.
    assert expected.alpha[missed].sum() <= 0.95 * math.exp(-4.5) * missed.sum()
    torch.testing.assert_close(found.alpha[~missed], expected.alpha[~missed], atol=1e-5, rtol=1e-4)


def test_a_pixel_is_finished_where_the_twin_stops(package: Package) -> None:
    layers = [one_gaussian((10.5, 7.5), 1 + 0.1 * i, opacity=0.98) for i in range(4)]
    scene = replace(join(*layers), background=torch.zeros(2))
    assert package.draw(scene).alpha[0, 7, 10].item() == pytest.approx(1 - 4e-4, abs=2e-6)


@pytest.mark.parametrize(("channels", "passes"), [(3, 12), (32, 2), (34, 1), (64, 1)])
def test_features_are_drawn_in_groups_of_the_builds_channels(
    monkeypatch: pytest.MonkeyPatch, channels: int, passes: int
) -> None:
    calls = fake_packages.install_inria(monkeypatch, channels)
    package = Package(INRIA, diff_gaussian_rasterization.render, CPU)
    scene = faint(random_scene(count=10, channels=32, views=1))
    torch.testing.assert_close(
        package.draw(scene).features, package.twin(scene).features, atol=1e-4, rtol=1e-3
    )
    assert calls == [0, *[10] * passes]  # asked for its channels with no Gaussian at all


def test_a_build_that_draws_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_packages.install_inria(monkeypatch, 0)
    package = Package(INRIA, diff_gaussian_rasterization.render, CPU)
    with pytest.raises(ParameterError, match=r"1x1 px with shape \[0, 1, 1\]"):
        package.draw(random_scene(count=3))


def test_many_gaussians_and_views_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_packages.install_gsplat(monkeypatch)
    package = Package("gsplat", gsplat.render, CPU)
    scene = random_scene(count=10, channels=32, views=3)
    dense = package.draw(scene)
    monkeypatch.setattr(gsplat, "_DENSE", 29)
    torch.testing.assert_close(package.draw(scene).features, dense.features)
    assert [call["packed"] for call in calls] == [False, True]
    assert all(call["channel_chunk"] == 33 for call in calls)  # 32 features and depth in one


def test_the_stand_in_has_gsplats_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    real = inspect.signature(pytest.importorskip("gsplat").rasterization)
    fake_packages.install_gsplat(monkeypatch)
    from gsplat import rasterization

    assert list(inspect.signature(rasterization).parameters) == list(real.parameters)


# Meshes -----------------------------------------------------------------------------------------


@pytest.fixture(params=["stand-in", "on CUDA"])
def mesh_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where kaolin, or what stands in for it, takes its tensors."""
    if request.param == "on CUDA":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        pytest.importorskip("kaolin.render.mesh")
        return CUDA
    fake_packages.install_kaolin(monkeypatch)
    return CPU


def test_kaolin_sees_the_faces_that_the_twin_sees(mesh_device: torch.device) -> None:
    random = torch.Generator().manual_seed(1)
    middle = torch.tensor([18.0, 14.0, 2.0])
    spread = torch.tensor([12.0, 10.0, 0.8])
    corners = torch.rand(40, 1, 3, generator=random, dtype=torch.float64) * 2 - 1
    corners = corners + 0.4 * torch.randn(40, 3, 3, generator=random, dtype=torch.float64)
    screen = (middle + spread * corners).reshape(-1, 3)
    faces = torch.arange(120).reshape(40, 3)
    screen[faces[5, 1], 2] = -1.0  # behind the camera
    screen[faces[6, 0], 0] = torch.inf
    faces[7, 2] = faces[7, 1]  # without area
    screen, faces = screen.to(mesh_device), faces.to(mesh_device)
    found = kaolin.rasterize_triangles(screen, faces, 0.01, WIDTH, HEIGHT)
    expected = mesh_twin.rasterize_triangles(screen, faces, 0.01, WIDTH, HEIGHT)
    same = found[0] == expected[0]
    assert same.float().mean() > 0.995  # but for centres on an edge
    assert (expected[0] >= 0).float().mean() > 0.3
    assert not torch.isin(expected[0], torch.tensor([5, 6, 7], device=mesh_device)).any()
    for plane, truth in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(plane[same], truth[same], atol=1e-5, rtol=1e-5)
    nothing = kaolin.rasterize_triangles(screen, faces[5:8], 0.01, WIDTH, HEIGHT)
    assert (nothing[0] == -1).all()


def test_kaolins_renderings_have_the_twins_gradients(
    mesh_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere = tuple(replace(backend, device=None) for backend in visibility.BACKENDS.known)
    for module in (visibility, mesh_rasterisation.render):
        monkeypatch.setattr(module, "BACKENDS", replace(visibility.BACKENDS, known=anywhere))
    K = torch.tensor([[10.0, 0, 8], [0, 10, 8], [0, 0, 1]], device=mesh_device)
    corners = torch.tensor([[0.31, -0.27, 1.1], [-0.33, -0.21, 1.2], [0.02, 0.36, 1.3]])
    faces = torch.tensor([[0, 1, 2]], device=mesh_device)
    colours = torch.rand(3, 2, device=mesh_device)
    results = []
    for name in ("kaolin", "twin"):
        vertices = corners.to(mesh_device, copy=True).requires_grad_()
        picture = render_mesh(vertices, faces, colours, K, torch.eye(4), 16, 16, 1.5, backend=name)
        (picture.silhouette.square().sum() + picture.attributes.square().sum()).backward()
        results.append((picture.silhouette, picture.attributes, picture.depth, vertices.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(bool(native.missing()), reason="installed without kernels")
def test_kernel_and_twin_find_the_same_nearest_segments() -> None:
    random = torch.Generator().manual_seed(4)
    segments = 40 * torch.rand(50, 4, generator=random, dtype=torch.float64) - 4
    segments[7] = segments[3]  # of equal ones the first
    segments[9, 2:] = segments[9, :2]  # a point
    for radius in (1.5, 6.0):
        exact = mesh_twin.nearest_segments(segments, radius, 33, 21)
        assert torch.equal(native.nearest_segments(segments, radius, 33, 21), exact)
        assert (exact == 3).any()
    assert (mesh_twin.nearest_segments(segments[:0], 2.0, 5, 4) == -1).all()


def test_tensors_are_what_the_folders_say() -> None:
    """What is rendered through the public function goes through the chosen backend."""
    scene = random_scene(views=1)
    only = replace(splatting.BACKENDS, known=(Backend("white", _white),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasterise, "BACKENDS", only)
        assert (scene.render("auto").features == 1).all()


def _white(scene: BackendScene) -> tuple[Tensor, Tensor, Tensor]:
    plane = torch.ones(1, scene.height, scene.width)
    return plane[..., None].expand(-1, -1, -1, 3), plane, plane
