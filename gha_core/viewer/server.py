"""The web server of the viewer."""

from __future__ import annotations

import errno
import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import viser

from gha_core.avatar.head import mean_pose
from gha_core.errors import ParameterError
from gha_core.reenactment.cameras import frontal_camera
from gha_core.viewer.layers import field_of_view
from gha_core.viewer.session import Session
from gha_core.viewer.subject import Subject

LOOPBACK = "127.0.0.1"


@contextmanager
def serving(subject: Subject, host: str = LOOPBACK, port: int = 8080) -> Iterator[str]:
    """Serve the viewer while the context lasts; gives its address.

    Args:
        host: whose interface is listened at; only on loopback it stays on this machine.

    Raises:
        ParameterError: the port is in use, or the address is none of this machine's.
    """
    _check_free(host, port)
    with redirect_stdout(io.StringIO()):  # viser's greeting
        server = viser.ViserServer(host=host, port=port, label=subject.name, verbose=False)
    sessions: dict[int, Session] = {}
    poses = [moment.pose for moments in subject.sequences.values() for moment in moments]
    camera = frontal_camera(list(subject.dataset.cameras.values()), poses)
    centre = mean_pose(poses)
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    server.gui.main_panel.dock_right()
    server.scene.set_up_direction(centre.matrix[:, 1])
    server.initial_camera.position = camera.centre
    server.initial_camera.look_at = centre.translation
    server.initial_camera.fov = field_of_view(camera)

    @server.on_client_connect
    def _(client: viser.ClientHandle) -> None:
        sessions[client.client_id] = Session(client, subject, centre, camera.name)

    @server.on_client_disconnect
    def _(client: viser.ClientHandle) -> None:
        session = sessions.pop(client.client_id, None)
        if session is not None:
            session.close()

    try:
        yield f"http://{'localhost' if host == LOOPBACK else host}:{server.get_port()}"
    finally:
        for session in sessions.values():
            session.close()
        with redirect_stdout(io.StringIO()):
            server.stop()


def _check_free(host: str, port: int) -> None:
    """viser would take the next free port, and people the wrong one."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise ParameterError(
                f"Port {port} of {host} is in use, perhaps by another viewer. Choose another: "
                f"--port {port + 1}"
            ) from None
        raise ParameterError(f"{host}:{port} cannot be listened at ({error}).") from None
