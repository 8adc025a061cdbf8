"""Kill what a driver has started and left behind: ``python sweeper.py DRIVER`` waits for its end.

A stage dies with its parent (flows/tether.py), but Prefect starts its server by itself, and that
does not notice when the driver is killed. So every process that a driver starts bears the driver's
id, and one of them outlives it to kill the others. It is there during every run, so it imports next
to nothing.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

DRIVER_VARIABLE = "GHA_DRIVER"
SWEEPS = 0.0, 1.0
"""Seconds before each of the two looks: a process that is just being started has no mark yet."""


def start() -> None:
    """Have everything killed, when this process has ended, that it starts from here on."""
    os.environ[DRIVER_VARIABLE] = str(os.getpid())
    if sys.platform == "linux":
        subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C and the end of the terminal are not for it
        )


def main(driver: int) -> None:
    """Wait for the end of the process ``driver`` and kill what bears its id."""
    with suppress(ProcessLookupError):  # it has ended already
        select.select([os.pidfd_open(driver)], [], [])
    for seconds in SWEEPS:
        time.sleep(seconds)
        sweep(driver)


def sweep(driver: int) -> None:
    """Kill all other processes that bear the id of ``driver``."""
    mark = f"{DRIVER_VARIABLE}={driver}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        process = int(path.parent.name)
        with suppress(OSError):  # it ended, or is another user's
            if process != os.getpid() and mark in path.read_bytes().split(b"\0"):
                os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
