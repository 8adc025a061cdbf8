"""Differentiable Gaussian splatting of features with any number of channels.

projection.py  3D Gaussians -> 2D Gaussians (torch, shared by all backends)
twin.py        compositing in plain PyTorch: the specification
native.py      the same by kernel.cpp, on CPU cores
rasterise.py   the public function, and the choice of a backend
"""

from gha_core.splatting.rasterise import BACKENDS, Splat, rasterize_gaussians

__all__ = ["BACKENDS", "Splat", "rasterize_gaussians"]
