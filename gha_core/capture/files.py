"""Small files of captures, read with sentences for what is wrong with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.errors import CaptureError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CaptureError: the file is missing, not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise CaptureError(f"{path} cannot be read ({error.strerror}). Copy it again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CaptureError(f"{path} is not valid JSON ({error}). Copy it again.") from None
    if not isinstance(content, Mapping):
        raise CaptureError(f"{path} must hold a JSON object; found {type(content).__name__}.")
    return dict(content)


def read_matrix(
    value: Any, where: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.float64]:
    """Nested lists of numbers as an array.

    Args:
        where: what the matrix is of and its file, for the sentence.

    Raises:
        CaptureError: no numbers, or not of ``shape``.
    """
    try:
        matrix = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise CaptureError(f"{where}: {str(value)[:60]!r} is not a matrix of numbers.") from None
    if shape and matrix.shape != shape:
        raise CaptureError(
            f"{where}: found a matrix of shape {'x'.join(map(str, matrix.shape)) or 'scalar'}, "
            f"expected {'x'.join(map(str, shape))}."
        )
    return matrix


def inside(root: Path, name: Any, where: str) -> Path:
    """The file ``name`` names, if it lies in ``root``.

    Raises:
        CaptureError: it is no relative path, or leads out of ``root``.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise CaptureError(f"{where}: {str(name)[:60]!r} is not a file name.")
    path = Path(name)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or path.is_absolute():
            raise CaptureError(
                f"{where}: the file {name!r} lies outside {root}; only files of the capture are "
                "read. Correct the path."
            )
    return root / path


def check_name(name: str, where: str) -> str:
    """``name`` if it can name a camera or a sequence in tables and files.

    Raises:
        CaptureError: it is empty, too long, or has other characters than letters, digits and ._+-
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}", name):
        raise CaptureError(
            f"{where}: {name[:60]!r} cannot be a name; use letters, digits, '.', '_', '+' and '-'."
        )
    return name
