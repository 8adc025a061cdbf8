"""Numbers too small for float32's full precision."""

from __future__ import annotations

import torch

try:
    from gha_core._native import flush_denormals as _flush
except ImportError:  # installed without a C++ compiler
    _flush = None


def flush_denormals(flush: bool) -> None:
    """Whether denormal numbers count as zero in this thread and in those that its operations are
    cut up among: PyTorch tells this thread alone, and the bits would depend on who does what."""
    torch.set_flush_denormal(flush)
    if _flush is not None:
        _flush(flush, torch.get_num_threads())
