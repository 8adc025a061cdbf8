"""Face models of others, from the user's own files: what is in them, checked, in one form.

Whatever a family's file is like, a :class:`Shape` comes out: a mean, an identity basis and, where
the model has them, expressions with ARKit's names. Axes, units and origin stay the file's own;
:mod:`gha_core.faces.adapt` finds them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from gha_core.errors import AssetError
from gha_core.faces.pickles import read_npy_dictionary, read_pickle, to_array

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMPONENTS = 100  # the strongest of the identity's; FLAME's and BFM's others move under a tenth mm
# Clear films over the eyes and hair, which would hide what they cover.
ICT_OVERLAYS = ("M_LacrimalFluid", "M_EyeBlend", "M_EyeOcclusion", "M_EyeLashes")
FLAME_SHAPES = 300  # of FLAME's directions; the others are expressions


@dataclass(frozen=True)
class Shape:
    """A face model as its file has it, in the file's axes and unit.

    Attributes:
        mean: [V, 3]; faces: [F, 3], triangles.
        identity: [I, V, 3] for coefficients of unit variance.
        expressions: ARKit name -> [V, 3] displacement at full expression; often none.
    """

    mean: Floats
    faces: Ints
    identity: Floats
    expressions: Mapping[str, Floats] = field(default_factory=dict)


@dataclass
class _Contents:
    """The arrays of one file; letters in expected shapes stand for sizes that must agree."""

    path: Path
    values: Mapping[Any, Any]
    sizes: dict[str, tuple[int, str]] = field(default_factory=dict)

    def array(self, key: str, *shape: int | str) -> Floats:
        """The finite array ``key``, checked: ``"V"`` is one size for the whole file, ``"3V"`` three
        times that, ``"*"`` any."""
        if key not in self.values:
            known = ", ".join(sorted(str(name) for name in self.values if str(name)[:2] != "__"))
            raise AssetError(f"{self.path} has no key {key!r}. Found: {known or 'nothing'}.")
        try:
            array = np.asarray(to_array(self.values[key]), float)
        except (ValueError, TypeError) as error:
            raise AssetError(
                f"{self.path}: the key {key!r} is {error}; expected an array of numbers."
            ) from None
        expected = f"({', '.join(map(str, shape))})"
        if array.ndim != len(shape):
            raise AssetError(
                f"{self.path}: the key {key!r} has shape {array.shape}, expected {expected}."
            )
        for found, size in zip(array.shape, shape, strict=True):
            self._check(key, array.shape, expected, found, size)
        if not np.isfinite(array).all():
            raise AssetError(f"{self.path}: the key {key!r} has values that are not finite.")
        return array

    def _check(
        self, key: str, shape: tuple[int, ...], expected: str, found: int, size: Any
    ) -> None:
        if size == "*":
            return
        times, name = (3, "V") if size == "3V" else (1, str(size))
        if isinstance(size, int):
            wanted, why = size, ""
        elif name in self.sizes:
            wanted, source = self.sizes[name]
            wanted, why = times * wanted, f" with {name} = {wanted} as in {source!r}"
        else:
            wanted, why = times * (found // times), f" with {size} divisible by {times}"
            self.sizes[name] = (found // times, key)
        if found != wanted:
            raise AssetError(
                f"{self.path}: the key {key!r} has shape {shape}, expected {expected}{why}."
            )

    def points(self, key: str) -> Floats:
        """[V, 3] positions, which some files keep as one row or column."""
        size = np.size(to_array(self.values[key])) if key in self.values else 0
        if size % 3 == 0 and size > 3:
            self.values = {**self.values, key: to_array(self.values[key]).reshape(-1, 3)}
        return self.array(key, "V", 3)

    def faces(self, key: str) -> Ints:
        """[F, 3] triangles, counted from 0 (some files count from 1)."""
        faces = self.array(key, "*", 3).astype(np.int64)
        count = self.sizes["V"][0]
        low, high = (int(faces.min()), int(faces.max())) if len(faces) else (0, -1)
        first = int(low >= 1 and high == count)
        if not len(faces) or low < 0 or high >= count + first:
            raise AssetError(
                f"{self.path}: the triangles of key {key!r} name vertices {low} to {high}, "
                f"expected 0 to {count - 1} or 1 to {count}."
            )
        return faces - first


def read_flame(path: Path) -> Shape:
    """FLAME 2020 or 2023: the pickle ``*.pkl`` as it is downloaded. Its expressions are principal
    components and its jaw and eyes turn about joints; neither has ARKit's names."""
    file = _Contents(path, read_pickle(path))
    mean = file.array("v_template", "V", 3)
    directions = file.array("shapedirs", "V", 3, "*")
    kept = directions[..., : min(FLAME_SHAPES, COMPONENTS)]
    return Shape(mean, file.faces("f"), kept.transpose(2, 0, 1))


def read_bfm(path: Path) -> Shape:
    """Basel Face Model 2009: ``01_MorphableModel.mat``, or the ``BFM_model_front.mat`` that others
    cut out of it. Its shapes are neutral (the cut one's expressions are components)."""
    try:
        file = _Contents(path, scipy.io.loadmat(str(path)))
    # scipy raises whatever the damaged bytes lead it to.
    except Exception as error:
        raise AssetError(f"{path} is not a readable MATLAB file ({error}).") from None
    if "meanshape" in file.values:
        mean = file.points("meanshape")
        basis = file.array("idBase", "3V", "*")
        faces = file.faces("tri")
    else:
        mean = file.points("shapeMU")
        components = file.array("shapePC", "3V", "K")
        basis = components * file.array("shapeEV", "K", 1).T  # which are standard deviations
        faces = file.faces("tl")
    return Shape(mean, faces, _components(basis))


def read_faceverse(path: Path) -> Shape:
    """FaceVerse 2 or 3: ``faceverse_*.npy``, one pickled dictionary. Version 3.6 carries 52
    expressions with names; the components of the others have none."""
    file = _Contents(path, read_npy_dictionary(path))
    mean = file.points("meanshape")
    basis = file.array("idBase", "3V", "*")
    faces = file.faces("tri")
    expressions: dict[str, Floats] = {}
    if "exBase_52" in file.values and "exp_name_list_52" in file.values:
        named = file.array("exBase_52", "3V", "*").T.reshape(-1, *mean.shape)
        labels = [str(name) for name in file.values["exp_name_list_52"]]
        expressions = _by_name(zip(labels, named, strict=False))
    return Shape(mean, faces, _components(basis), expressions)


def read_ict(path: Path) -> Shape:
    """ICT-FaceKit: the folder ``FaceXModel`` of OBJ files. Its expressions have ARKit's names, but
    for the sides, which are added up where ARKit has one."""
    neutral = path / "generic_neutral_mesh.obj"
    if not neutral.is_file():
        raise AssetError(f"{path} has no generic_neutral_mesh.obj; expected the folder FaceXModel.")
    everything, faces = read_obj(neutral, without=ICT_OVERLAYS)
    used, renumbered = np.unique(faces, return_inverse=True)
    identities = sorted(path.glob("identity[0-9]*.obj"))[:COMPONENTS]
    if not identities:
        raise AssetError(f"{path} has no identity000.obj; expected the folder FaceXModel.")

    def moved(file: Path) -> Floats:
        vertices = _obj_vertices(file)
        if len(vertices) != len(everything):
            raise AssetError(
                f"{file} has {len(vertices)} vertices, expected {len(everything)} as "
                f"{neutral.name} has."
            )
        return (vertices - everything)[used]

    shapes = {p.stem: p for p in sorted(path.glob("*.obj")) if p not in identities}
    expressions = _by_name((n, moved(file)) for n, file in shapes.items() if file != neutral)
    identity = np.stack([moved(file) for file in identities])
    faces = renumbered.reshape(-1, 3).astype(np.int64)
    return Shape(everything[used], faces, identity, expressions)


def read_obj(path: Path, without: tuple[str, ...] = ()) -> tuple[Floats, Ints]:
    """Vertices [V, 3] and triangles [F, 3] of a Wavefront OBJ file; polygons are fanned out, those
    whose material is named in ``without`` left out.

    Raises:
        AssetError: it has neither, or a line that cannot be read.
    """
    points, triangles, material = _obj_vertices(path), [], ""
    for number, line in enumerate(_lines(path), 1):
        if line.startswith("usemtl "):
            material = line.split()[1]
        if not line.startswith("f ") or material in without:
            continue
        try:
            corners = [int(corner.partition("/")[0]) - 1 for corner in line.split()[1:]]
        except ValueError:
            raise AssetError(f"{path}, line {number}: {line!r} is not a polygon.") from None
        triangles += [(corners[0], *pair) for pair in pairwise(corners[1:])]
    faces = np.array(triangles, np.int64).reshape(-1, 3)
    if not len(faces) or faces.min() < 0 or faces.max() >= len(points):
        raise AssetError(
            f"{path} has {len(points)} vertices, and {len(faces)} triangles that do not fit them."
        )
    return points, faces


def _obj_vertices(path: Path) -> Floats:
    rows = [line[2:].split()[:3] for line in _lines(path) if line.startswith("v ")]
    try:
        points = np.array(rows, float).reshape(len(rows), 3)
    except ValueError:
        points = np.full((1, 3), np.nan)
    if not len(points) or not np.isfinite(points).all():
        raise AssetError(f"{path} has no vertices, or some that are not three finite numbers.")
    return points


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="latin1").splitlines()


def _components(basis: Floats) -> Floats:
    """[3V, K] columns to [K, V, 3], the first of them."""
    return basis[:, :COMPONENTS].T.reshape(min(basis.shape[1], COMPONENTS), -1, 3)


def _by_name(shapes: Iterable[tuple[str, Floats]]) -> dict[str, Floats]:
    """The shapes under ARKit's names; both sides of one that ARKit does not divide are added."""
    found: dict[str, Floats] = {}
    for label, shape in shapes:
        name = re.sub(r"_L$", "Left", re.sub(r"_R$", "Right", label))
        whole = re.sub(r"(Left|Right)$", "", name)
        name = whole if whole in UNDIVIDED else name
        found[name] = found[name] + shape if name in found else shape
    return found


UNDIVIDED = ("browInnerUp", "cheekPuff")
READERS: dict[str, Callable[[Path], Shape]] = {
    "flame": read_flame,
    "bfm": read_bfm,
    "faceverse": read_faceverse,
    "ict": read_ict,
}


def read_shape(family: str, path: Path) -> Shape:
    """The model of a family (a key of ``READERS``).

    Raises:
        AssetError: the file is damaged, of another structure, or unsafe to read.
    """
    try:
        return READERS[family](path)
    except OSError as error:
        raise AssetError(f"{path} cannot be read as the face model {family!r} ({error}).") from None


def fingerprint(family: str, path: Path) -> str:
    """SHA-256 of a model's file, or of the names and contents of its folder's OBJ files.

    Raises:
        AssetError: there is nothing.
    """
    if not path.exists():
        raise AssetError(
            f"There is no {path}, where the face model {family!r} should be. docs/face-models.md "
            "says where to get it."
        )
    if path.is_file():
        with path.open("rb") as whole:
            return hashlib.file_digest(whole, "sha256").hexdigest()
    found = hashlib.sha256()
    for file in sorted(path.glob("*.obj")):
        found.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
