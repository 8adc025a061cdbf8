"""Safetensors files: written so that their bytes depend on nothing but their content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gha_core.errors import ArtifactError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` with ``metadata``.

    The safetensors library writes metadata entries in random order; here they are sorted, so that
    equal content gives equal files (which caching and lineage rely on).
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a stage's file, and its metadata.

    Raises:
        ArtifactError: the file is absent or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. Run the {path.parent.name} stage.") from None
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is damaged ({error}). Run the {path.parent.name} stage again."
        ) from None
