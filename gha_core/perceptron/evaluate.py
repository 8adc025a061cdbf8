"""The public function, and the backends in the order of preference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from gha_core.backends import Backend, Backends
from gha_core.errors import ParameterError
from gha_core.perceptron import native, twin

# points, weights, biases
Evaluate = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]

BACKENDS: Backends[Evaluate] = Backends(
    "perceptron evaluation",
    (
        Backend(
            "native",
            native.evaluate,
            device="cpu",
            missing=native.missing,
            cost="with the same values but more slowly",
        ),
        Backend("twin", twin.evaluate),
    ),
)


def perceptron(
    points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], backend: str = "auto"
) -> Tensor:
    """A perceptron's output for N points; differentiable (once) in every tensor.

    Every layer is ``weight @ x + bias``, and all but the last are followed by ReLU.

    Args:
        points: [N, I].
        weights: per layer [its outputs, its inputs]; biases: per layer [its outputs].
        backend: a name of ``BACKENDS``, or "auto": the preferred one that takes such tensors.

    Returns:
        [N, O]. NaN and infinity are carried on as by PyTorch.

    Raises:
        ParameterError: unknown or unusable backend, or shapes that do not fit.
    """
    _check(points, weights, biases)
    return BACKENDS.choose(backend, points.device, points.dtype).kernels(points, weights, biases)


def _check(points: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    if not len(weights) or len(weights) != len(biases) or points.ndim != 2:
        raise ParameterError(
            f"A perceptron takes points [N, I] and as many weights as biases, at least one; these "
            f"are points {list(points.shape)}, {len(weights)} weights and {len(biases)} biases."
        )
    width = points.shape[1]
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ParameterError(
                f"Layer {layer} of the perceptron is given {width} values per point; its weight is "
                f"{list(weight.shape)} and its bias {list(bias.shape)}."
            )
        width = len(weight)
    if any(each.dtype != points.dtype for each in (*weights, *biases)):
        raise ParameterError(f"The perceptron's weights and biases must be {points.dtype}, too.")
