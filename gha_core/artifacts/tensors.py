"""Writing safetensors files whose bytes depend on nothing but their content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


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
