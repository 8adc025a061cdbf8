"""Rotations by axis-angle vectors about a reference, in batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float64]


def exponential(vectors: Floats) -> Floats:
    """[..., 3] axis-angle to [..., 3, 3]."""
    flat = Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix()
    return flat.reshape(*vectors.shape, 3)


def logarithm(matrices: Floats) -> Floats:
    """[..., 3, 3] to [..., 3] axis-angle with angles up to pi.

    Warning: at half a turn the axis is ambiguous.
    """
    return Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec().reshape(matrices.shape[:-1])


def unwrapped(vectors: Floats, like: Floats) -> Floats:
    """[n, 3] axis-angle vectors, each with its angle counted the way round (there are two below a
    full turn) that is nearer to ``like`` [3]: near half a turn the axis would else flip."""
    angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
    safe = np.where(angle > 1e-9, angle, 1.0)
    other = np.where(angle > 1e-9, vectors * (1 - 2 * np.pi / safe), vectors)
    nearer = np.linalg.norm(other - like, axis=-1) < np.linalg.norm(vectors - like, axis=-1)
    return np.where(nearer[:, None], other, vectors)


def mean(matrices: Floats) -> Floats:
    """[n, 3, 3] to the rotation [3, 3] nearest to all of them (chordal L2)."""
    return Rotation.from_matrix(matrices).mean().as_matrix()


def cross(vectors: Floats) -> Floats:
    """[..., 3] to [..., 3, 3] matrices with cross(v) @ x = v x x."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    rows = [zero, -z, y, z, zero, -x, -y, x, zero]
    return np.stack(rows, -1).reshape(*vectors.shape, 3)


def left_jacobian(vectors: Floats) -> Floats:
    """[..., 3] axis-angle r to J [..., 3, 3] with exp(r + dr) = exp(J dr) exp(r) to first order
    (Barfoot, State Estimation for Robotics, eq. 7.77)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    small = angle < 1e-4
    safe = np.where(small, 1.0, angle)
    first = np.where(small, 0.5 - angle**2 / 24, (1 - np.cos(safe)) / safe**2)
    second = np.where(small, 1 / 6 - angle**2 / 120, (safe - np.sin(safe)) / safe**3)
    skew = cross(vectors)
    return np.eye(3) + first * skew + second * skew @ skew
