"""``gha view``: the avatar in the browser until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path

from gha_core.memory import keep_freed_memory
from gha_core.viewer.server import LOOPBACK, serving
from gha_core.viewer.subject import Subject

SUBJECTS = Path("data", "subjects")


def view(
    name: str,
    host: str,
    port: int,
    say: Callable[[str], None],
    launch: Callable[[str], object] | None = None,
) -> None:
    """Serve the viewer of ``name``, until the process is interrupted or asked to end.

    Args:
        say: prints a line; launch: opens an address.

    Raises:
        ArtifactError: a stage is missing, or its artifact damaged.
        ParameterError: the port is in use.
    """
    keep_freed_memory()
    subject = Subject.load(name, SUBJECTS / name)
    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with serving(subject, host, port) as address:
            if host not in (LOOPBACK, "localhost", "::1"):
                say(
                    f"Everyone who can reach {host} can watch and move {name}; there is no "
                    "password."
                )
            say(f"{name}: {address}  (Ctrl-C ends)")
            if launch:
                launch(address)
            ended.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
