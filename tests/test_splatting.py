"""The splatting backends against closed forms, against each other, and on bad input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gha_core import backends
from gha_core.errors import NotFiniteError, ParameterError
from gha_core.splatting import Splat, native, projection, rasterize_gaussians
from gha_core.splatting.projection import Projected
from gha_core.splatting.scene import Scene as BackendScene

WIDTH, HEIGHT, FOCAL = 37, 29, 40.0  # not multiples of the kernel's tiles
needs_native = pytest.mark.skipif(bool(native.missing()), reason="no C++ compiler at installation")
BACKENDS = [pytest.param("native", marks=needs_native), "twin"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These scenes are tiny: waking a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Scene:
    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    K: Tensor
    w2c: Tensor
    background: Tensor | None = None

    def render(self, backend: str, width: int = WIDTH, height: int = HEIGHT) -> Splat:
        return rasterize_gaussians(
            **{field.name: getattr(self, field.name) for field in fields(self)},
            width=width,
            height=height,
            backend=backend,
        )

    def leaves(self) -> Scene:
        """The same numbers as tensors that collect gradients."""
        return Scene(*(getattr(self, f.name).clone().requires_grad_() for f in fields(self)))

    def gradients(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name).grad for field in fields(self)}


def random_scene(
    count: int = 60, channels: int = 3, views: int = 2, seed: int = 0, size: float = 0.05
) -> Scene:
    """A cloud of half-transparent ellipsoids about 2 m in front of cameras that look at it."""
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random)

    K = torch.tensor([[FOCAL, 0.7, WIDTH / 2], [0, 1.1 * FOCAL, HEIGHT / 2], [0, 0, 1]])
    w2c = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        turn = 0.3 * view
        w2c[view, 0, 0] = w2c[view, 2, 2] = math.cos(turn)
        w2c[view, 0, 2], w2c[view, 2, 0] = math.sin(turn), -math.sin(turn)
        w2c[view, 2, 3] = 2.0
    return Scene(
        means=(uniform(count, 3) - 0.5) * torch.tensor([2.0, 1.6, 1.0]),
        quaternions=torch.randn(count, 4, generator=random),
        scales=size * (0.2 + uniform(count, 3)),
        opacities=0.05 + 0.9 * uniform(count),
        features=uniform(count, channels) * 2 - 1,
        K=K.repeat(views, 1, 1),
        w2c=w2c,
        background=uniform(channels),
    )


def one_gaussian(
    centre: tuple[float, float], depth: float = 2.0, size: float = 0.1, opacity: float = 0.6
) -> Scene:
    """A sphere of `size` m whose centre is seen at pixel position `centre`."""
    K = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1.0]])
    x, y = (centre[0] - WIDTH / 2) / FOCAL * depth, (centre[1] - HEIGHT / 2) / FOCAL * depth
    return Scene(
        means=torch.tensor([[x, y, depth]]),
        quaternions=torch.tensor([[1.0, 0, 0, 0]]),
        scales=torch.full((1, 3), size),
        opacities=torch.tensor([opacity]),
        features=torch.tensor([[1.0, -2.0]]),
        K=K,
        w2c=torch.eye(4),
    )


def join(*scenes: Scene) -> Scene:
    first = scenes[0]
    names = ("means", "quaternions", "scales", "opacities", "features")
    return replace(first, **{n: torch.cat([getattr(s, n) for s in scenes]) for n in names})


def weighted_sum(splat: Splat, seed: int = 5) -> Tensor:
    """A scalar in which every output value counts with its own weight."""
    random = torch.Generator().manual_seed(seed)
    planes = (splat.features, splat.alpha, splat.depth)
    return sum((p * torch.randn(p.shape, generator=random).to(p.dtype)).sum() for p in planes)  # type: ignore[return-value]


# Closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sphere_is_the_gaussian_of_its_projected_size(backend: str) -> None:
    centre, depth, size, opacity = (WIDTH / 2, HEIGHT / 2), 2.0, 0.1, 0.6
    splat = one_gaussian(centre, depth, size, opacity).render(backend)
    # On the optical axis the Jacobian is focal / depth in both directions.
    variance = (FOCAL * size / depth) ** 2 + 0.3
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    squared = (xs - centre[0]) ** 2 + (ys - centre[1]) ** 2
    expected = opacity * torch.exp(-0.5 * squared / variance)
    expected = torch.where(expected >= 1 / 255, expected, 0.0)
    torch.testing.assert_close(splat.alpha, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(splat.features[..., 1], -2 * expected, atol=4e-6, rtol=1e-5)
    torch.testing.assert_close(splat.depth, depth * expected, atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearer_of_two_hides_the_other_by_its_alpha(backend: str) -> None:
    pixel = (10.5, 7.5)  # the centre of column 10, row 7
    near = one_gaussian(pixel, 1.0, opacity=0.6)
    far = replace(one_gaussian(pixel, 3.0, opacity=0.5), features=torch.tensor([[5.0, 7.0]]))
    background = torch.tensor([10.0, 20.0])
    splat = replace(join(far, near), background=background).render(backend)
    weights = 0.6, 0.4 * 0.5, 0.4 * 0.5
    expected = torch.tensor([
        weights[0] * 1 + weights[1] * 5 + weights[2] * 10,
        weights[0] * -2 + weights[1] * 7 + weights[2] * 20,
    ])  # fmt: skip
    torch.testing.assert_close(splat.features[7, 10], expected, atol=2e-5, rtol=1e-5)
    assert splat.alpha[7, 10].item() == pytest.approx(0.8, abs=1e-5)
    assert splat.depth[7, 10].item() == pytest.approx(0.6 * 1 + 0.2 * 3, abs=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_finished_pixel_takes_no_more(backend: str) -> None:
    pixel = (10.5, 7.5)
    layers = [one_gaussian(pixel, 1 + 0.1 * i, opacity=0.98) for i in range(4)]
    alpha = join(*layers).render(backend).alpha[7, 10].item()
    # Two layers leave 0.02² = 4e-4; a third would leave 8e-6, less than the 1e-4 that still count.
    assert alpha == pytest.approx(1 - 4e-4, abs=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_background_fills_what_is_not_covered(backend: str) -> None:
    scene = random_scene(channels=5)
    splat = scene.render(backend)
    bare = replace(scene, background=None).render(backend)
    expected = bare.features + (1 - splat.alpha[..., None]) * scene.background
    torch.testing.assert_close(splat.features, expected, atol=2e-6, rtol=1e-5)
    assert (splat.alpha == 0).any()
    assert (splat.alpha > 0.5).any()


# The two backends -------------------------------------------------------------------------------


@needs_native
@pytest.mark.parametrize(
    ("count", "channels", "views", "size"),
    [(1, 3, 1, 0.2), (60, 3, 2, 0.05), (60, 32, 1, 0.05), (40, 1, 3, 0.3), (300, 7, 2, 0.1)],
)
def test_native_equals_twin_in_values_and_gradients(
    count: int, channels: int, views: int, size: float
) -> None:
    scene = random_scene(count, channels, views, seed=count, size=size)
    exact, fast = scene.leaves(), scene.leaves()
    expected, found = exact.render("twin"), fast.render("native")
    for name in ("features", "alpha", "depth"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=2e-5, rtol=1e-4, msg=name
        )
    weighted_sum(expected).backward()
    weighted_sum(found).backward()
    wanted = exact.gradients()
    for name, gradient in fast.gradients().items():
        scale = wanted[name].abs().max().item()
        torch.testing.assert_close(
            gradient,
            wanted[name],
            atol=1e-4 * scale,
            rtol=1e-3,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )


def test_twin_gradients_are_those_of_finite_differences() -> None:
    scene = random_scene(count=3, channels=2, views=2, seed=3, size=0.25)
    names = [field.name for field in fields(scene)]
    inputs = [getattr(scene, name).double().requires_grad_() for name in names]

    def planes(*tensors: Tensor) -> tuple[Tensor, ...]:
        splat = Scene(*tensors).render("twin", width=6, height=5)
        return splat.features, splat.alpha, splat.depth

    # Small K entries would move the image off its 6 x 5 pixels.
    inputs[names.index("K")] = (
        torch.tensor([[6.0, 0.2, 3.0], [0, 7.0, 2.5], [0, 0, 1]], dtype=torch.float64)
        .repeat(2, 1, 1)
        .requires_grad_()
    )
    assert torch.autograd.gradcheck(planes, inputs, eps=1e-7, atol=1e-5, rtol=1e-4)


# The projection ---------------------------------------------------------------------------------

MIXTURE = {  # how a case draws its Gaussians: scales (m) and places beside the ordinary
    "ordinary": None,
    "needles": [1e-6, 1e-4, 3.0],
    "points": [0.0, 0.0, 0.0],
    "huge": [800.0, 2e3, 5e3],
    "wide": [30.0, 1e-3, 30.0],
    "absurd": [1e7, 1.0, 1.0],
    "behind": None,
    "at the camera": None,
    "far off": None,
}


def project_case(
    kinds: list[str], views: int, size: tuple[int, int], seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Arguments of project: one Gaussian per kind, and gradients of what it returns."""
    scene = random_scene(max(len(kinds), 1), 1, views, seed)
    for i, kind in enumerate(kinds):
        if (scales := MIXTURE[kind]) is not None:
            scene.scales[i] = torch.tensor(scales)
        elif kind == "behind":
            scene.means[i, 2] -= 40
        elif kind == "at the camera":
            scene.means[i] = torch.tensor([0.0, 0.0, -2.0 + 0.01 * (i % 3)])
        elif kind == "far off":
            scene.means[i] *= 400
        scene.opacities[i] = (0.0, 1.0, 1 / 255, 0.5)[i % 4]
        scene.quaternions[i] *= (1.0, 1e-5, 1e3, 0.0)[(i * i + seed) % 4]
    names = ("means", "quaternions", "scales", "opacities")
    inputs = [getattr(scene, name)[: len(kinds)].clone() for name in names]
    width, height = size
    K = scene.K * torch.tensor([width / WIDTH, height / HEIGHT, 1.0])[:, None]
    random = torch.Generator().manual_seed(seed)
    shapes = [(views, len(kinds), n) for n in (2, 3)] + [(views, len(kinds))]
    return [*inputs, K, scene.w2c], [torch.randn(shape, generator=random) for shape in shapes]


def projected_with_gradients(
    project: Callable[..., Projected],
    inputs: list[Tensor],
    weights: list[Tensor],
    size: tuple[int, int],
    dtype: torch.dtype,
) -> tuple[Projected, list[Tensor]]:
    leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in inputs]
    *gaussians, K, w2c = leaves
    no_features = K.new_zeros(len(gaussians[0]), 0)
    found = project(BackendScene(*gaussians, no_features, K.new_zeros(0), K, w2c, *size))
    planes = (found.means2d, found.conics, found.depths)
    shown = [w.to(dtype) * found.visible.view(found.visible.shape + (1,) * (w.ndim - 2))
             for w in weights]  # fmt: skip
    torch.autograd.backward(planes, shown)
    return found, [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest error of any Gaussian's or camera's numbers, over the largest of those."""
    if not exact.numel():
        return 0.0
    found, rows = found.detach(), exact.detach().reshape(len(exact), -1)
    size = rows.abs().amax(1, keepdim=True)
    error = (found.double().reshape(len(exact), -1) - rows).abs() / size.clamp_min(1e-30)
    return float(error.max())


@needs_native
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(list(MIXTURE)), max_size=20),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (WIDTH, HEIGHT), (300, 2)]),
    st.integers(0, 100),
)
@example([], 1, (1, 1), 0)
@example(["behind"] * 3, 2, (WIDTH, HEIGHT), 1)
@example(list(MIXTURE) * 3, 3, (WIDTH, HEIGHT), 2)
@example(["ordinary"] * 1200, 1, (WIDTH, HEIGHT), 3)  # more than one chunk of the kernel
def test_the_native_projection_is_that_of_the_twin_in_float64(
    kinds: list[str], views: int, size: tuple[int, int], seed: int
) -> None:
    inputs, weights = project_case(kinds, views, size, seed)
    exact, wanted = projected_with_gradients(
        projection.project, inputs, weights, size, torch.float64
    )
    found, gradients = projected_with_gradients(
        native.project, inputs, weights, size, torch.float32
    )
    assert torch.equal(found.visible, exact.visible)
    shown = exact.visible
    for name in ("means2d", "conics", "depths"):
        assert torch.isfinite(getattr(found, name)).all(), name
        assert relative_error(getattr(found, name)[shown], getattr(exact, name)[shown]) < 1e-6, name
    names = ("means", "quaternions", "scales", "opacities", "K", "w2c")
    for name, gradient, truth in zip(names, gradients, wanted, strict=True):
        assert relative_error(gradient, truth) < 1e-4, f"gradient of {name}"


@needs_native
def test_the_native_projection_gives_the_same_bits_on_any_number_of_threads() -> None:
    inputs, weights = project_case(["ordinary", "needles", "behind"] * 1500, 2, (50, 40), 0)
    runs = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found, gradients = projected_with_gradients(
            native.project, inputs, weights, (50, 40), torch.float32
        )
        runs.append([found.means2d, found.conics, found.depths, found.visible, *gradients])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


# Invariants -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_the_gaussians_does_not_matter(backend: str) -> None:
    scene = random_scene(count=80)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    names = ("means", "quaternions", "scales", "opacities", "features")
    shuffled = replace(scene, **{name: getattr(scene, name)[order] for name in names})
    torch.testing.assert_close(
        shuffled.render(backend).features, scene.render(backend).features, atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_views_is_its_single_views(backend: str) -> None:
    scene = random_scene(views=4)
    grid = replace(scene, K=scene.K.reshape(2, 2, 3, 3), w2c=scene.w2c.reshape(2, 2, 4, 4))
    batch = grid.render(backend)
    assert batch.features.shape == (2, 2, HEIGHT, WIDTH, 3)
    for view in range(4):
        single = replace(scene, K=scene.K[view], w2c=scene.w2c[view]).render(backend)
        torch.testing.assert_close(batch.features[view // 2, view % 2], single.features)
        torch.testing.assert_close(batch.depth[view // 2, view % 2], single.depth)
    shared = replace(scene, K=scene.K[0]).render(backend)  # one K, many poses
    torch.testing.assert_close(shared.alpha, batch.alpha.reshape(4, HEIGHT, WIDTH))


@needs_native
def test_native_gives_the_same_bits_on_any_number_of_threads() -> None:
    runs = []
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        scene = random_scene(count=200, channels=32).leaves()
        splat = scene.render("native", width=90, height=70)
        torch.autograd.backward(
            [splat.features, splat.alpha, splat.depth],
            [torch.ones_like(p) for p in (splat.features, splat.alpha, splat.depth)],
        )
        gradients = [scene.means.grad, scene.opacities.grad, scene.features.grad]
        runs.append([splat.features, splat.alpha, splat.depth, *gradients])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


# Bad input --------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("means", [0.0, 0.0, -2.0]),  # in the camera's centre
        ("means", [0.0, 0.0, -50.0]),  # behind it
        ("quaternions", [0.0, 0.0, 0.0, 0.0]),
        ("scales", [1e30, 1e30, 1e30]),
        ("opacities", -1.0),
        ("opacities", 0.0),
    ],
)
def test_a_degenerate_gaussian_is_as_if_absent(backend: str, name: str, value: object) -> None:
    clean = random_scene(count=20, views=1, seed=2)
    bad = {n: getattr(clean, n).clone() for n in (f.name for f in fields(clean))}
    others = torch.arange(20) != 7
    bad[name][7] = torch.tensor(value)
    scene = Scene(**bad).leaves()
    names = ("means", "quaternions", "scales", "opacities", "features")
    without = replace(clean, **{n: getattr(clean, n)[others] for n in names}).leaves()
    found, expected = scene.render(backend), without.render(backend)
    torch.testing.assert_close(found.features, expected.features, atol=1e-6, rtol=1e-6)
    weighted_sum(found).backward()
    weighted_sum(expected).backward()
    for n in names:
        gradient = scene.gradients()[n]
        assert torch.isfinite(gradient).all(), n
        assert (gradient[7] == 0).all(), n
        wanted = without.gradients()[n]
        torch.testing.assert_close(
            gradient[others], wanted, atol=1e-5 * wanted.abs().max().item(), rtol=1e-4
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("means", (7, 1)),
        ("quaternions", (0, 3)),
        ("scales", (59, 0)),
        ("opacities", (8,)),
        ("features", (11, 2)),
        ("K", (1, 0, 2)),
        ("w2c", (0, 2, 3)),
        ("background", (1,)),
    ],
)
def test_what_is_not_finite_is_refused_with_its_place(
    backend: str, name: str, index: tuple[int, ...], value: float
) -> None:
    scene = random_scene()
    getattr(scene, name)[index] = value
    place = ", ".join(map(str, index))
    with pytest.raises(NotFiniteError, match=rf"{name}\[{place}\] is {value}, and 1 of its"):
        scene.render(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_finite_numbers_are_not_taken_for_infinite(backend: str) -> None:
    scene = random_scene(count=4)
    scene.features[:] = 3e38  # their sum is infinite
    assert scene.render(backend).features.max() > 1e37


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_opacity_hides_what_is_behind_and_none_is_not_drawn(backend: str) -> None:
    pixel = (10.5, 7.5)
    solid, hidden = one_gaussian(pixel, 1.0, opacity=1.0), one_gaussian(pixel, 2.0, opacity=0.5)
    scene = join(one_gaussian(pixel, 0.5, opacity=0.0), solid, hidden)
    scene.means.requires_grad_()
    splat = scene.render(backend)
    # Alpha is held just below 1, so that gradients stay bounded.
    assert splat.alpha[7, 10].item() == pytest.approx(0.999 + 0.0005, abs=1e-6)
    assert splat.depth[7, 10].item() == pytest.approx(0.999 + 0.0005 * 2, abs=1e-5)
    splat.features.sum().backward()
    assert torch.isfinite(scene.means.grad).all()
    assert (scene.means.grad[0] == 0).all()
    assert (scene.means.grad[1] != 0).any()


@needs_native
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17), (32, 16), (5, 3)])
def test_any_image_size_is_drawn_as_by_the_twin(size: tuple[int, int]) -> None:
    scene = random_scene(views=2, channels=4, size=0.2)
    K = scene.K * torch.tensor([size[0] / WIDTH, size[1] / HEIGHT, 1.0])[:, None]
    scene = replace(scene, K=K)
    found, expected = (scene.render(backend, *size) for backend in ("native", "twin"))
    assert expected.alpha.max() > 0.3
    for plane in ("features", "alpha", "depth"):
        torch.testing.assert_close(
            getattr(found, plane), getattr(expected, plane), atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_when_all_is_behind_the_camera_the_background_remains(backend: str) -> None:
    scene = random_scene(views=2)
    scene = replace(scene, means=scene.means - torch.tensor([0.0, 0.0, 30.0])).leaves()
    splat = scene.render(backend)
    assert (splat.features == scene.background).all()
    weighted_sum(splat).backward()
    assert (scene.means.grad == 0).all()


@needs_native
def test_more_intersections_than_can_be_counted_are_refused() -> None:
    count = 1_100_000  # each over all 32 x 63 tiles
    side = 1000.0
    K = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]])
    scene = Scene(
        means=torch.tensor([[0.0, 0.0, 1.0]]).repeat(count, 1),
        quaternions=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        scales=torch.full((count, 3), 0.4),
        opacities=torch.full((count,), 0.5),
        features=torch.ones(count, 1),
        K=K,
        w2c=torch.eye(4),
    )
    with pytest.raises(ParameterError, match=r"1100000 Gaussians .* 2217600000 intersections"):
        scene.render("native", 1000, 1000)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "scale", [[0.0, 0.0, 0.0], [5e5, 1e-9, 1e-9], [1e3, 1e3, 0.0], [1e-20] * 3]
)
@pytest.mark.parametrize("where", [[0.0, 0.0, 0.0], [0.3, 0.2, -1.985], [400.0, -700.0, 1.0]])
def test_extreme_sizes_and_places_stay_finite(
    backend: str, scale: list[float], where: list[float]
) -> None:
    scene = random_scene(count=20, views=1).leaves()
    with torch.no_grad():
        scene.scales[3] = torch.tensor(scale)
        scene.means[3] = torch.tensor(where)
        scene.opacities[3] = 1.0
    splat = scene.render(backend)
    weighted_sum(splat).backward()
    for tensor in (splat.features, splat.alpha, splat.depth, *scene.gradients().values()):
        assert torch.isfinite(tensor).all()
    assert splat.alpha.min() >= 0
    assert splat.alpha.max() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_scene_shows_the_background(backend: str) -> None:
    full = random_scene(views=1)
    names = ("means", "quaternions", "scales", "opacities", "features")
    scene = replace(full, **{n: getattr(full, n)[:0] for n in names}).leaves()
    splat = scene.render(backend)
    assert (splat.features == scene.background).all()
    assert (splat.alpha == 0).all()
    weighted_sum(splat).backward()
    assert scene.means.grad is not None


def test_unusable_arguments_get_a_sentence() -> None:
    scene = random_scene()
    with pytest.raises(ParameterError, match="choose one of: auto, native, "):
        scene.render("cuda")
    with pytest.raises(
        ParameterError, match=r"quaternions has shape \[60, 3\], expected \[60, 4\]"
    ):
        replace(scene, quaternions=scene.quaternions[:, :3]).render("twin")
    with pytest.raises(ParameterError, match=r"features is torch\.float64"):
        replace(scene, features=scene.features.double()).render("twin")


@needs_native
def test_native_refuses_float64_and_auto_takes_the_twin_for_it() -> None:
    scene = random_scene(views=1)
    double = Scene(*(getattr(scene, field.name).double() for field in fields(scene)))
    with pytest.raises(ParameterError, match="takes float32 tensors on the CPU"):
        double.render("native")
    assert double.render("auto").features.dtype == torch.float64


def test_without_the_extension_the_twin_takes_over_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = random_scene(views=1)
    expected = scene.render("twin").features
    monkeypatch.setattr(native, "splat_forward", None)
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no C\\+\\+ compiler") as caught:
        found = [scene.render("auto").features for _ in range(2)]
    assert len(caught) == 1
    assert torch.equal(found[0], expected)
    with pytest.raises(ParameterError, match="not part of this installation"):
        scene.render("native")
