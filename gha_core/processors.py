"""How many things to do at once."""

from __future__ import annotations

import os


def cores() -> int:
    """Processors for this process: ``OMP_NUM_THREADS`` if set (stages that run side by side share
    the machine that way), else those it may run on."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    if allowed.isdigit() and int(allowed) > 0:
        return int(allowed)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
