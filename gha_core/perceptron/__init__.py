"""Small perceptrons, asked about very many points.

twin.py        in plain PyTorch: the specification
native.py      the same by kernel.cpp, on CPU cores
evaluate.py    the public function, and the backends in the order of preference
"""

from gha_core.perceptron.evaluate import BACKENDS, perceptron

__all__ = ["BACKENDS", "perceptron"]
