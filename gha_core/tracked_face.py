"""The subject's face model as tracking fitted it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gha_core.artifacts.tensors import read_tensors
from gha_core.errors import ArtifactError

_REGION = "region."


@dataclass(frozen=True)
class TrackedFace:
    """A triangle mesh that expressions deform; head space.

    Attributes:
        vertices: [V, 3] neutral; faces: [F, 3] int64.
        basis: [E, V, 3] offsets per unit of each expression coefficient.
        landmarks: [M, 3] neutral; regions: name -> [V] bool.
        expression_names: what each of the E coefficients means; licence: of the face model.
    """

    vertices: Tensor
    faces: Tensor
    basis: Tensor
    landmarks: Tensor
    regions: dict[str, Tensor]
    expression_names: tuple[str, ...] = ()
    licence: str = ""

    @staticmethod
    def load(tracking: Path) -> TrackedFace:
        """Read ``identity.safetensors`` of a tracking artifact.

        Raises:
            ArtifactError: the file is absent, damaged or incomplete.
        """
        path = tracking / "identity.safetensors"
        tensors, metadata = read_tensors(path)
        try:
            return TrackedFace(
                vertices=tensors["neutral_vertices"].float(),
                faces=tensors["faces"].long(),
                basis=tensors["expression_basis"].float(),
                landmarks=tensors["landmarks"].float(),
                regions={
                    name.removeprefix(_REGION): tensor.bool()
                    for name, tensor in tensors.items()
                    if name.startswith(_REGION)
                },
                expression_names=tuple(json.loads(metadata.get("expression_names", "[]"))),
                licence=metadata.get("licence", ""),
            )
        except KeyError as missing:
            raise ArtifactError(
                f"{path} has no tensor {missing}. Run the tracking stage again."
            ) from None

    def deformed(self, expression: Tensor) -> Tensor:
        """[V, 3] the mesh under an [E] expression; differentiable."""
        return self.vertices + torch.tensordot(expression, self.basis, 1)
