"""Perceptrons: the kernel against the twin in float64, edges, and the same bits on any threads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gha_core.errors import ParameterError
from gha_core.perceptron import native, perceptron

needs_native = pytest.mark.skipif(bool(native.missing()), reason="no C++ compiler at installation")


def case(rows: int, widths: Sequence[int], seed: int) -> list[Tensor]:
    """Points, weights, biases and a gradient of the output. All are quarters, so that float32 and
    float64 agree about what is above zero, and some sums are zero exactly."""
    random = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(rows, widths[0])]
    shapes += [(after, before) for before, after in pairwise(widths)]
    shapes += [(width,) for width in widths[1:]]
    shapes.append((rows, widths[-1]))
    return [torch.randint(-4, 5, shape, generator=random) / 4 for shape in shapes]


def answers(
    case: list[Tensor], backend: str, dtype: torch.dtype = torch.float32, by_points: bool = True
) -> list[Tensor]:
    """The output and all gradients."""
    *inputs, gradient = [value.to(dtype) for value in case]
    layers = len(inputs) // 2
    wanted = [value.requires_grad_() for value in (inputs if by_points else inputs[1:])]
    out = perceptron(inputs[0], inputs[1 : 1 + layers], inputs[1 + layers :], backend)
    return [out.detach(), *torch.autograd.grad(out, wanted, gradient)]


def assert_equal_answers(case: list[Tensor], by_points: bool = True) -> None:
    found = answers(case, "native", by_points=by_points)
    expected = answers(case, "twin", torch.float64, by_points)
    for value, wanted in zip(found, expected, strict=True):
        size = wanted.abs().max().item() if wanted.numel() else 1.0
        torch.testing.assert_close(value.double(), wanted, atol=1e-5 * size, rtol=1e-5)


@needs_native
@settings(max_examples=40, deadline=None)
@given(
    rows=st.one_of(st.integers(0, 3), st.integers(45, 50), st.integers(90, 200)),
    widths=st.lists(st.integers(1, 20), min_size=2, max_size=5),
    by_points=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_native_equals_the_twin_in_float64(
    rows: int, widths: list[int], by_points: bool, seed: int
) -> None:
    assert_equal_answers(case(rows, widths, seed), by_points)


@needs_native
@pytest.mark.parametrize("widths", [(27, 64, 64, 3), (32, 32, 32), (5, 70, 33)])
def test_native_equals_the_twin_over_many_chunks(widths: tuple[int, ...]) -> None:
    assert_equal_answers(case(4_001, widths, 0))


@needs_native
def test_native_gives_the_same_bits_on_any_number_of_threads() -> None:
    given = case(4_001, (27, 64, 64, 8), 1)
    given = [value + 0.1 * torch.randn(value.shape) for value in given]
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(answers(given, "native"))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "twin"])
def test_what_is_not_finite_stays_in_its_row_and_reaches_the_weights(backend: str) -> None:
    given = case(100, (4, 8, 8, 3), 2)
    given[0][60, 1] = torch.nan
    out, by_points, *by_layers = answers(given, backend)
    assert out[60].isnan().all()
    assert out[:60].isfinite().all()
    assert out[61:].isfinite().all()
    assert by_points[:60].isfinite().all()
    assert all(gradient.isnan().any() for gradient in by_layers[:3])


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_native), "twin"])
def test_gradients_flow_through_views_and_are_spared_where_not_wanted(backend: str) -> None:
    points, weight, bias, _ = case(50, (6, 2), 3)
    wide = torch.cat([weight, weight], 1).requires_grad_()
    out = perceptron(points.T.contiguous().T, [wide[:, 6:]], [bias], backend)
    (found,) = torch.autograd.grad(out.sum(), wide)
    assert torch.equal(found[:, :6], torch.zeros(2, 6))
    torch.testing.assert_close(found[:, 6:], points.sum(0).expand(2, 6))
    with torch.no_grad():
        assert torch.equal(perceptron(points, [wide[:, 6:]], [bias], backend), out)


def test_shapes_that_do_not_fit_get_a_sentence() -> None:
    points, first, second, *biases, _ = case(5, (3, 4, 2), 4)
    with pytest.raises(ParameterError, match=r"Layer 1 .* given 4 values .* \[2, 3\]"):
        perceptron(points, [first, second[:, 1:]], biases)
    with pytest.raises(ParameterError, match="as many weights as biases"):
        perceptron(points, [first, second], biases[:1])
    with pytest.raises(ParameterError, match="float32"):
        perceptron(points, [first, second.double()], biases)
