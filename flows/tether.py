"""Become another program that dies with its parent: ``python tether.py PARENT PROGRAM ARGUMENT…``.

A stage must not go on writing when the driver that started it is gone. Linux can promise that, but
only a process can ask for it about itself; asked here, before the program is loaded, no moment is
left in which the driver may die unnoticed. Every stage starts with this, so it imports next to
nothing.
"""

import ctypes
import os
import sys

SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
SIGKILL = 9


def main(arguments: list[str]) -> None:
    """Replace this process; ends it with status 1 if that cannot be, or the parent is gone."""
    parent, *command = arguments
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)  # It died before we asked.
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"error: {command[0]} cannot be started: {error.strerror}.")


if __name__ == "__main__":
    main(sys.argv[1:])
