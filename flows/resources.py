"""What stages need and what this machine has: how many may run at a time, and on which GPU."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.needs import NEEDS, Needs

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Capacity:
    """What the stages that run at the same time share.

    Attributes:
        slots: stages at a time.
        memory: GiB.
        gpus: GPUs; a stage that wants one has it alone. With none there is no limit: such a stage
            then runs on the CPU.
    """

    slots: int
    memory: float = float("inf")
    gpus: int = 0

    def allows(self, stage: str, running: Iterable[str]) -> bool:
        """Whether ``stage@subject`` may start beside ``running``. A single one always may."""
        others = [needs_of(name) for name in running]
        needs = needs_of(stage)
        if not others:
            return True
        if len(others) >= self.slots:
            return False
        if needs.gpu and self.gpus and sum(other.gpu for other in others) >= self.gpus:
            return False
        return needs.memory + sum(other.memory for other in others) <= self.memory


def needs_of(name: str) -> Needs:
    """The needs of ``stage@subject``; stages that are not ours need nothing in particular."""
    return NEEDS.get(name.partition("@")[0], Needs())


def this_machine(slots: int) -> Capacity:
    """``slots`` stages at a time, in the memory and on the GPUs that are here."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Capacity(slots, pages / 2**30, len(gpus()))


def gpus() -> list[str]:
    """The NVIDIA GPUs that stages may use: those of CUDA_VISIBLE_DEVICES, else all."""
    if VISIBLE in os.environ:
        return [device for device in os.environ[VISIBLE].split(",") if device.strip()]
    # The driver's own list: loading PyTorch only to count them would take seconds.
    found = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(found.iterdir())))] if found.is_dir() else []


@contextmanager
def claim_gpu(needs: Needs, devices: list[str] | None = None) -> Iterator[Mapping[str, str]]:
    """Hold a GPU alone, among all stages of all projects of this user on this machine.

    The claim is a file lock, so it ends with its holder however that ends.

    Yields:
        Environment variables for the stage's process: none without a GPU, or if it needs none.
    """
    devices = gpus() if devices is None else devices
    if not needs.gpu or not devices:
        yield {}
        return
    folder = Path(tempfile.gettempdir(), f"gha-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        files = {d: stack.enter_context((folder / f"{d}.lock").open("a")) for d in devices}
        while True:
            for device, file in files.items():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield {VISIBLE: device}
                return
            time.sleep(0.2)
