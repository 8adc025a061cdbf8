"""What the browser itself draws over the avatar's picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import viser
from numpy.typing import NDArray

from gha_core.avatar import quaternions
from gha_core.avatar.head import Gaussians
from gha_core.cameras import Camera
from gha_core.pose import HeadPose
from gha_core.viewer.subject import Subject

_HEAD = "/head"
_GRAY, _BLUE, _RED = (190, 185, 180), (70, 130, 200), (220, 60, 50)
_FRUSTUM = 0.05  # m
_FAINT = 0.05  # opacity below which a Gaussian is left out


class Layers:
    """The scene of one client. A layer is sent when it is first shown, and moved while it is.

    Args:
        chosen: called with the name of a camera that is clicked.
    """

    def __init__(
        self, scene: viser.SceneApi, subject: Subject, chosen: Callable[[str], None]
    ) -> None:
        self._scene, self._subject, self._chosen = scene, subject, chosen
        self._head = scene.add_frame(_HEAD, show_axes=False)
        face = subject.face
        self._basis = face.basis.flatten(1)
        # A landmark goes where the vertex goes that is nearest to it in the neutral face.
        self._near = torch.cdist(face.landmarks, face.vertices).argmin(1)
        self._nodes: dict[str, list[viser.SceneNodeHandle]] = {}

    def hide(self, layer: str) -> None:
        for node in self._nodes.pop(layer, []):
            node.remove()

    def show(
        self,
        layer: str,
        pose: HeadPose,
        expression: NDArray[np.float32],
        gaussians: Callable[[], Gaussians],
    ) -> None:
        """Add the layer, or bring it to this pose and expression.

        Args:
            gaussians: gives those of the world, if the layer needs them.
        """
        turn = torch.as_tensor(np.asarray(pose.rotation, float))
        self._head.wxyz = quaternions.from_rotvec(turn).numpy()
        self._head.position = np.asarray(pose.translation)
        still = layer in ("geometry mesh", "cameras")
        if still and layer in self._nodes:
            return
        if layer == "geometry mesh":
            nodes = [self._surface(pose.scale)]
        elif layer == "tracking mesh":
            nodes = [self._face(pose.scale * self._vertices(expression))]
        elif layer == "landmarks":
            nodes = [self._landmarks(pose.scale * self._vertices(expression)[self._near.numpy()])]
        elif layer == "Gaussians":
            nodes = [self._dots(gaussians())]
        else:
            nodes = [self._frustum(camera) for camera in self._subject.dataset.cameras.values()]
        self._nodes[layer] = nodes

    def _vertices(self, expression: NDArray[np.float32]) -> NDArray[np.float32]:
        """[V, 3] of the tracked face, head space."""
        moves = torch.from_numpy(np.asarray(expression, np.float32)) @ self._basis
        return (self._subject.face.vertices + moves.view(-1, 3)).numpy()

    def _surface(self, scale: float) -> viser.SceneNodeHandle:
        surface = self._subject.surface
        vertices, faces = scale * surface.vertices.numpy(), surface.faces.numpy()
        return self._scene.add_mesh_simple(
            f"{_HEAD}/geometry", vertices, faces, color=_GRAY, side="double"
        )

    def _face(self, vertices: NDArray[np.float32]) -> viser.SceneNodeHandle:
        return self._scene.add_mesh_simple(
            f"{_HEAD}/tracking", vertices, self._subject.face.faces.numpy(), color=_BLUE,
            wireframe=True,
        )  # fmt: skip

    def _landmarks(self, points: NDArray[np.float32]) -> viser.SceneNodeHandle:
        return self._scene.add_point_cloud(
            f"{_HEAD}/landmarks", points, _RED, point_size=0.0015, point_shape="circle"
        )

    def _dots(self, gaussians: Gaussians) -> viser.SceneNodeHandle:
        """Their centres: as splats they would look as the avatar does."""
        seen = gaussians.opacities > _FAINT
        colours = gaussians.channels[seen, :3].clamp(0, 1)
        return self._scene.add_point_cloud(
            "/gaussians", gaussians.means[seen].numpy(), colours.numpy(), point_size=0.001,
            point_shape="circle",
        )  # fmt: skip

    def _frustum(self, camera: Camera) -> viser.SceneNodeHandle:
        rotation = torch.from_numpy(camera.w2c[:3, :3].T.copy())
        node = self._scene.add_camera_frustum(
            f"/cameras/{camera.name}",
            field_of_view(camera),
            camera.width / camera.height,
            scale=_FRUSTUM,
            thickness=0.0005,
            wxyz=viser.transforms.SO3.from_matrix(rotation.numpy()).wxyz,
            position=camera.centre,
        )
        node.on_click(lambda _: self._chosen(camera.name))
        return node


def field_of_view(camera: Camera) -> float:
    """From top to bottom, rad."""
    return float(2 * np.arctan(camera.height / 2 / camera.K[1, 1]))
