"""Reads the arrays out of a pickled model file without running anything that the file names.

A pickle is a small program: it names functions and the unpickler calls them. Here every name that
it may use becomes an inert :class:`Record` of what was asked for, any other is refused, and arrays
are then made from the records' bytes. No code of numpy, scipy or chumpy runs on the file's behalf.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from gha_core.errors import AssetError

Array = NDArray[Any]

_REBUILDERS = ("_reconstruct", "scalar", "_frombuffer")
_NAMES = {
    *(f"numpy.{core}.{m}.{f}" for core in ("core", "_core") for m in ("multiarray", "numeric")
      for f in _REBUILDERS),
    "numpy.ndarray", "numpy.dtype", "_codecs.encode", "copyreg._reconstructor", "builtins.object",
    "builtins.bytes",
}  # fmt: skip
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# FLAME and its relatives keep some arrays as chumpy expressions and one as a sparse matrix.
_PACKAGES = ("chumpy.", "scipy.sparse.")
_KINDS = "biufSU"


class Record:
    """What the file asked for: the ``origin`` it named, the arguments and the state it gave."""

    origin = ""

    def __new__(cls, *args: Any) -> Record:
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        origin = f"{_PYTHON_2.get(module, module)}.{name}"
        if origin == "collections.OrderedDict":
            return dict
        if origin not in _NAMES and not origin.startswith(_PACKAGES):
            raise AssetError(f"it asks for {origin}, which no face model needs")
        return type(name, (Record,), {"origin": origin})


def read_pickle(path: Path) -> Mapping[Any, Any]:
    """The dictionary in a pickle file; its arrays come out with :func:`to_array`.

    Raises:
        AssetError: the file is not such a pickle, or asks for anything but arrays.
    """
    with path.open("rb") as file:
        return _read(path, file)


def read_npy_dictionary(path: Path) -> Mapping[Any, Any]:
    """The same of an ``.npy`` file that holds one pickled dictionary (``np.save`` of a dict)."""
    with path.open("rb") as file:
        try:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
        except ValueError as error:
            raise AssetError(f"{path} is not a readable .npy file ({error}).") from None
        if shape != () or dtype != np.dtype(object):
            raise AssetError(
                f"{path} holds an array of shape {shape} and type {dtype}; expected one dictionary."
            )
        return _read(path, file)


def _read(path: Path, file: BinaryIO) -> Mapping[Any, Any]:
    try:
        # Python 2's text is latin-1, in which every byte of an array stands for itself.
        content = _Unpickler(file, encoding="latin1").load()
        if isinstance(content, Record):  # np.save wraps what it is given in an array of one object
            content = content.state[4][0]
    except AssetError as error:
        raise AssetError(
            f"{path} was not read, because {error}. A pickle that names other code may run it; "
            "get the file from the model's own site."
        ) from None
    # A damaged pickle can fail in any way that its instructions can.
    except Exception as error:
        raise AssetError(
            f"{path} is not a readable pickle ({type(error).__name__}: {error})."
        ) from None
    if not isinstance(content, Mapping):
        raise AssetError(f"{path} holds a {type(content).__name__}; expected a dictionary.")
    return content


def to_array(value: Any) -> Array:
    """An array from what :func:`read_pickle` left in a dictionary.

    Raises:
        ValueError: it is something else; the text says what.
    """
    if not isinstance(value, Record):
        return _checked(np.asarray(value))
    origin = value.origin
    if origin == "copyreg._reconstructor":  # the oldest protocols' way to make an object
        origin = str(getattr(value.args[0], "origin", origin))
    if origin.startswith(_PACKAGES):
        if isinstance(value.state, Mapping) and "x" in value.state:
            return to_array(value.state["x"])
        raise ValueError(f"a {origin} without values of its own")
    name = origin.rpartition(".")[2]
    if name == "_reconstruct":
        _, shape, dtype, fortran, data = value.state
        flat = _flat(dtype, data)
        return flat.reshape(shape, order="F" if fortran else "C")
    if name == "_frombuffer":
        data, dtype, shape, order = value.args
        return _flat(dtype, data).reshape(shape, order=order)
    if name == "scalar":
        return _flat(*value.args)[0]
    raise ValueError(f"a {origin}")


def _flat(dtype: Any, data: Any) -> Array:
    kind = _dtype(dtype)
    if kind.kind == "O":
        return _checked(np.array([to_array(item) for item in data]))
    if isinstance(data, Record):  # Python 3 writes bytes for Python 2 as text, or as bytes()
        data = data.args[0] if data.origin == "_codecs.encode" else b""
    if isinstance(data, str):
        data = data.encode("latin1")
    return _checked(np.frombuffer(bytes(data), kind))


def _dtype(record: Any) -> np.dtype[Any]:
    code = record.args[0]
    big = isinstance(record.state, tuple) and record.state[1] == ">"
    return np.dtype(str(code)).newbyteorder(">" if big else "<")


def _checked(array: Array) -> Array:
    if array.dtype.kind not in _KINDS:
        raise ValueError(f"an array of {array.dtype}")
    return array
