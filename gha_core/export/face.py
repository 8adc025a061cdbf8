"""The tracked face as a coloured mesh whose morph targets are the ARKit expressions, as GLB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pygltflib import (
    ARRAY_BUFFER,
    ELEMENT_ARRAY_BUFFER,
    FLOAT,
    GLTF2,
    UNSIGNED_INT,
    Accessor,
    Asset,
    Attributes,
    Buffer,
    BufferView,
    Material,
    Mesh,
    Node,
    PbrMetallicRoughness,
    Primitive,
    Scene,
)
from scipy.spatial import cKDTree
from torch import Tensor

from gha_core.avatar import Avatar
from gha_core.avatar.initialise import TrackedFace
from gha_core.cameras import Camera
from gha_core.mesh_rasterisation import rasterize
from gha_core.pose import HeadPose

Array = NDArray[np.float32]
# A vertex is seen where it lies at most this deep (head lengths) behind what the pixel shows.
_TOLERANCE = 0.01
# What a closed face hides is looked at with these coefficients at this value.
_OPEN = {"jawOpen": 0.7, "mouthUpperUpLeft": 0.5, "mouthUpperUpRight": 0.5}


def vertex_colours(
    avatar: Avatar, face: TrackedFace, cameras: Sequence[Camera], pose: HeadPose
) -> Array:
    """[V, 3] sRGB 0..1: the mean of what full renders show at each vertex, weighted towards those
    that face the camera; with the mouth closed and open. Vertices that nothing shows take the
    colour of the nearest one that is seen.
    """
    total = np.zeros((len(face.vertices), 4))
    names = avatar.expression_names
    opened = np.array([_OPEN.get(name, 0.0) for name in names], np.float32)
    for expression in (np.zeros_like(opened), opened):
        moved = face.vertices + torch.tensordot(torch.from_numpy(expression), face.basis, 1)
        world = torch.from_numpy(pose.to_world(moved.numpy())).float()
        # What the neutral face shows counts most: an open mouth is for what it alone shows.
        share = 1.0 if expression is not opened else 1e-3
        for camera in cameras:
            picture, matte = avatar.render(camera, pose, expression)
            weight, pixel = _seen(world, face.faces, camera, _TOLERANCE * pose.scale)
            weight = share * weight * (matte[pixel] > 250)
            total[:, :3] += weight[:, None] * picture[pixel] / 255
            total[:, 3] += weight
    seen = total[:, 3] > 1e-6
    if not seen.any():
        return np.full((len(total), 3), 0.5, np.float32)
    colours = total[:, :3] / np.maximum(total[:, 3:], 1e-12)
    vertices = face.vertices.numpy()
    _, nearest = cKDTree(vertices[seen]).query(vertices)
    return colours[seen][nearest].astype(np.float32)


def write_glb(
    path: Path, face: TrackedFace, colours: Array, metres_per_unit: float, copyright: str
) -> None:
    """Write the neutral face in metres (+y up, +z out of the face, as glTF wants it), with vertex
    colours and one named morph target per expression.

    Args:
        colours: [V, 3] sRGB 0..1.
    """
    vertices = metres_per_unit * face.vertices
    writer = _Writer()
    indices = writer.indices(face.faces)
    attributes = Attributes(
        POSITION=writer.vectors(vertices.numpy()),
        NORMAL=writer.vectors(_normals(vertices, face.faces).numpy()),
        COLOR_0=writer.vectors(_linear(colours)),
    )
    targets = [
        Attributes(POSITION=writer.vectors(metres_per_unit * shape.numpy())) for shape in face.basis
    ]
    surface = PbrMetallicRoughness(metallicFactor=0.0, roughnessFactor=0.7)
    primitive = Primitive(attributes=attributes, indices=indices, material=0, targets=targets)
    mesh = Mesh(
        name="face",
        primitives=[primitive],
        weights=[0.0] * len(targets),
        extras={"targetNames": list(face.expression_names)},
    )
    document = GLTF2(
        asset=Asset(version="2.0", generator="gha", copyright=copyright),
        scene=0,
        scenes=[Scene(nodes=[0])],
        nodes=[Node(name="face", mesh=0)],
        meshes=[mesh],
        materials=[Material(name="skin", pbrMetallicRoughness=surface, doubleSided=True)],
        buffers=[Buffer(byteLength=len(writer.content))],
        bufferViews=writer.views,
        accessors=writer.accessors,
    )
    document.set_binary_blob(bytes(writer.content))
    document.save_binary(str(path))


class _Writer:
    """The binary part of a GLB, one view and accessor per array."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[BufferView] = []
        self.accessors: list[Accessor] = []

    def vectors(self, values: Array) -> int:
        """[V, 3] floats; returns the accessor's number."""
        low, high = values.min(0).tolist(), values.max(0).tolist()
        data = np.ascontiguousarray(values, "<f4")
        return self._add(data, ARRAY_BUFFER, FLOAT, "VEC3", len(values), low, high)

    def indices(self, faces: Tensor) -> int:
        data = np.ascontiguousarray(faces.numpy().ravel(), "<u4")
        low, high = [int(data.min())], [int(data.max())]
        return self._add(data, ELEMENT_ARRAY_BUFFER, UNSIGNED_INT, "SCALAR", len(data), low, high)

    def _add(
        self,
        data: NDArray[np.generic],
        use: int,
        kind: int,
        shape: str,
        count: int,
        low: list[float] | list[int],
        high: list[float] | list[int],
    ) -> int:
        view = BufferView(
            buffer=0, byteOffset=len(self.content), byteLength=data.nbytes, target=use
        )
        self.views.append(view)
        self.content += data.tobytes()
        number = len(self.views) - 1
        self.accessors.append(
            Accessor(
                bufferView=number, componentType=kind, type=shape, count=count, min=low, max=high
            )
        )
        return number


def _seen(
    world: Tensor, faces: Tensor, camera: Camera, tolerance: float
) -> tuple[Array, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """How well [V] vertices are seen (0: not at all, 1: head on), and the rows and columns of their
    pixels."""
    points = world.double().numpy()
    local = points @ camera.w2c[:3, :3].T + camera.w2c[:3, 3]
    pixels = np.nan_to_num(camera.project(points), nan=-1.0)
    inside = np.all((pixels >= 0) & (pixels < [camera.width, camera.height]), axis=1)
    column, row = np.where(inside.reshape(-1, 1), pixels, 0).astype(np.int64).T
    shown = rasterize(world, faces, camera.K, camera.w2c, camera.width, camera.height)
    depth = shown.depth.numpy()[row, column]
    clear = inside & (depth > 0) & (local[:, 2] < depth + tolerance)
    towards = camera.centre - points
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    facing = (_normals(world, faces).numpy() * towards).sum(1).clip(0, 1)
    return (clear * facing**2).astype(np.float32), (row, column)


def _normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[V, 3] unit normals, the area-weighted mean of the faces around each vertex."""
    a, b, c = vertices[faces].unbind(1)
    across = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in faces.unbind(1):
        total.index_add_(0, corner, across)
    lengths = total.norm(dim=1, keepdim=True)
    up = torch.tensor([0.0, 0.0, 1.0])
    return torch.where(lengths > 0, total / lengths.clamp_min(1e-30), up)


def _linear(colours: Array) -> Array:
    """sRGB to linear light, which glTF's vertex colours are in (IEC 61966-2-1)."""
    low, high = colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4
    return np.where(colours <= 0.04045, low, high).astype(np.float32)
