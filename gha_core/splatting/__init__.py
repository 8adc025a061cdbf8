"""Differentiable Gaussian splatting of features with any number of channels.

projection.py  3D Gaussians -> 2D Gaussians in plain PyTorch: the specification
twin.py        compositing them in plain PyTorch: the specification
native.py      the same by projection.cpp and kernel.cpp, on CPU cores
rasterise.py   the public function, and the choice of a backend
"""

from gha_core.splatting.rasterise import BACKENDS, Splat, rasterize_gaussians

__all__ = ["BACKENDS", "Splat", "rasterize_gaussians"]
