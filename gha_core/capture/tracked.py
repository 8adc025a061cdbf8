"""Tracking that a capture came with: where another face model's head was in every timestep.

Of any model the rigid motion is what can be taken over; identity and expression coefficients mean
nothing without the model's own files and are carried along as they are.

FLAME turns the head by its root and then by the neck, each about a joint whose place depends on the
model's files and on the shape. With the joints at j and k, a point x of the head is at

    t + j + R_root (k - j) + R_root R_neck (x - k)

so that the motion is known up to three constant vectors, which tracking finds
(:mod:`gha_core.fitting.given_poses`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.errors import CaptureError

Floats = NDArray[np.float64]
# A timestep's coefficients are a few hundred numbers, static offsets 15,429.
_MOST_VALUES = 50_000_000


@dataclass(frozen=True)
class TrackedFaces:
    """Poses by (sequence, timestep).

    Attributes:
        model: the face model that was tracked, e.g. "FLAME".
        frames: the pose and the coefficients of every timestep.
        identity: the model's shape coefficients.
        source: the file or folder it came from.
    """

    model: str
    source: Path
    identity: Floats
    frames: Mapping[tuple[str, int], TrackedFace]


@dataclass(frozen=True)
class TrackedFace:
    """One timestep of a head that is turned by its root and by its neck.

    Attributes:
        rotation: [3] axis-angle of the head, model to world: the neck's turn, then the root's.
        root: [3] axis-angle of the root alone.
        translation: [3] world units; scale: world units per unit of the model.
        coefficients: what else the model was given, by name, as it was found.
    """

    rotation: Floats
    root: Floats
    translation: Floats
    scale: float
    coefficients: Mapping[str, Floats] = field(default_factory=dict)


def read_flame_frame(path: Path) -> tuple[TrackedFace, Floats]:
    """One timestep of a VHAP or GaussianAvatars export, and the shape coefficients in it.

    Raises:
        CaptureError: the file is no plain npz, lacks a part, or holds other shapes or NaN.
    """
    parts = read_npz(path)
    pose = [_part(parts, name, (3,), path) for name in ("rotation", "translation")]
    neck = _part(parts, "neck_pose", (3,), path) if "neck_pose" in parts else np.zeros(3)
    known = ("expr", "jaw_pose", "eyes_pose", "neck_pose")
    coefficients = {
        name: _finite(parts[name], name, path).ravel() for name in known if name in parts
    }
    shape = _finite(parts["shape"], "shape", path).ravel() if "shape" in parts else np.zeros(0)
    return TrackedFace(_turned(pose[0], neck), pose[0], pose[1], 1.0, coefficients), shape


def read_flame_sequence(path: Path, sequence: str) -> TrackedFaces:
    """The tracking of one sequence of the NeRSemble benchmark: arrays of T timesteps.

    Raises:
        CaptureError: the file is no plain npz, lacks a part, its arrays differ in length, or hold
            NaN.
    """
    parts = read_npz(path)
    rotation = _rows(parts, "rotation", 3, path)
    count = len(rotation)
    translation = _rows(parts, "translation", 3, path, count)
    neck = _rows(parts, "neck", 3, path, count) if "neck" in parts else np.zeros((count, 3))
    scale = float(_finite(parts["scale"], "scale", path).ravel()[0]) if "scale" in parts else 1.0
    if scale <= 0:
        raise CaptureError(f"{path}: scale is {scale:g}; it must be positive. Track it again.")
    timesteps = np.arange(count)
    if "frames" in parts:
        timesteps = _finite(parts["frames"], "frames", path).ravel().astype(int)
        if len(timesteps) != count or len(set(timesteps.tolist())) != count:
            raise CaptureError(
                f"{path}: 'frames' must name each of the {count} timesteps once; it has "
                f"{len(timesteps)} entries. Track it again."
            )
    names = [name for name in ("expression", "jaw", "eyes", "neck") if name in parts]
    curves = {name: _rows(parts, name, None, path, count) for name in names}
    frames = {
        (sequence, int(timestep)): TrackedFace(
            _turned(rotation[i], neck[i]),
            rotation[i],
            translation[i],
            scale,
            {name: values[i] for name, values in curves.items()},
        )
        for i, timestep in enumerate(timesteps)
    }
    shape = _finite(parts["shape"], "shape", path).ravel() if "shape" in parts else np.zeros(0)
    return TrackedFaces("FLAME", path, shape, frames)


def read_npz(path: Path) -> dict[str, Floats]:
    """The numeric arrays of an npz file; nothing in it is executed, and no more is unpacked than
    tracking can need.

    Raises:
        CaptureError: it is missing, no npz, damaged, too large, or holds pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(each.file_size for each in archive.infolist())
        if size > 8 * _MOST_VALUES:
            raise CaptureError(
                f"{path} unpacks to {size / 1e9:.1f} GB, which no tracking needs. Check the file."
            )
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name], np.float64) for name in file.files}
    except FileNotFoundError:
        raise CaptureError(f"The file {path} does not exist. Copy it again.") from None
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise CaptureError(
            f"{path} is not a readable npz file of plain numbers ({error}). Copy it again."
        ) from None


def _turned(root: Floats, neck: Floats) -> Floats:
    """[3] the head's rotation: the neck's turn, then the root's."""
    matrix = cv2.Rodrigues(root)[0] @ cv2.Rodrigues(neck)[0]
    return np.asarray(cv2.Rodrigues(matrix)[0], float).ravel()


def _part(parts: Mapping[str, Floats], name: str, shape: tuple[int, ...], path: Path) -> Floats:
    if name not in parts:
        raise CaptureError(f"{path} has no {name!r}; it has: {', '.join(parts) or 'nothing'}.")
    values = _finite(parts[name], name, path)
    if values.size != np.prod(shape):
        raise CaptureError(
            f"{path}: {name!r} has shape {'x'.join(map(str, values.shape)) or 'scalar'}; expected "
            f"{'x'.join(map(str, shape))}."
        )
    return values.reshape(shape)


def _rows(
    parts: Mapping[str, Floats], name: str, width: int | None, path: Path, count: int | None = None
) -> Floats:
    """[T, width]."""
    if name not in parts:
        raise CaptureError(f"{path} has no {name!r}; it has: {', '.join(parts) or 'nothing'}.")
    values = _finite(parts[name], name, path)
    fits = values.ndim == 2 and values.shape[1] == (width or values.shape[1])
    if not fits or (count is not None and len(values) != count):
        raise CaptureError(
            f"{path}: {name!r} has shape {'x'.join(map(str, values.shape)) or 'scalar'}; expected "
            f"{'T' if count is None else count}x{width or 'n'}, one row per timestep."
        )
    return values


def _finite(values: Floats, name: str, path: Path) -> Floats:
    if not np.isfinite(values).all():
        raise CaptureError(f"{path}: {name!r} contains NaN or infinity. Track it again.")
    return values
