"""Differentiable Gaussian splatting of features with any number of channels.

scene.py        what every backend is given
projection.py   3D Gaussians -> 2D Gaussians in plain PyTorch: the specification
twin.py         compositing them in plain PyTorch: the specification
native.py       the same by projection.cpp and kernel.cpp, on CPU cores
gsplat.py       by the package of that name, on CUDA
diff_gaussian_rasterization.py    by the package of that name, on CUDA
image_frame.py  how those two are given cameras and Gaussians
rasterise.py    the public function, and the backends in the order of preference
"""

from gha_core.splatting.rasterise import BACKENDS, Splat, rasterize_gaussians

__all__ = ["BACKENDS", "Splat", "rasterize_gaussians"]
