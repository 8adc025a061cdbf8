"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


@cache
def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed arrays for the next ones, as far as it is glibc.

    By itself it gives that of every larger array back to the system, which must clear each page
    that it hands out anew, while the process's other threads wait: half of the time of a matte,
    a quarter of that of decoding a video. A threshold would not do: above 32 MiB it has no effect.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, size in (
            (_TRIM_THRESHOLD, 1 << 28), (_TOP_PAD, 1 << 24), (_MMAP_MAX, 0),
        ):  # fmt: skip
            mallopt(option, size)
