"""The face model's data and its two formulas; nothing in here knows where the data came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gha_core.errors import AssetError

REGION = "region."


@dataclass(frozen=True)
class FaceModel:
    """A head with V vertices in head space: origin between the ears, +x the subject's left, +y up,
    +z out of the face, 1 unit = the mean head's length from chin to crown.

    Attributes:
        mean: [V, 3] the mean neutral head.
        identity_basis: [I, V, 3] for coefficients of unit variance.
        expression_basis: [E, V, 3] displacement at full expression (coefficient 1).
        expression_names: the E ARKit names.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        uv, uv_faces: [T, 2] texture coordinates (origin lower left) and [F, 3] indices into them.
        mirror: [V] int64, the vertex on the other side.
        regions: [V] bool masks: face, lips, mouth_interior, eyes (balls), eyelids, ears, scalp,
            neck, tongue, teeth, eye_sockets.
        landmark_indices: [L] int64, which points of the detector have a place on the head.
        landmark_triangles: [L] int64 and landmark_weights: [L, 3] barycentric: that place.
        landmark_confidence: [L] 0..1, how well the place is known.
        landmark_drift: [L, 2, 6] how the detector errs by view (:mod:`gha_core.faces.drift`).
        metres_per_unit: head length of the mean person in metres.
    """

    mean: Tensor
    identity_basis: Tensor
    expression_basis: Tensor
    expression_names: tuple[str, ...]
    faces: Tensor
    uv: Tensor
    uv_faces: Tensor
    mirror: Tensor
    regions: Mapping[str, Tensor]
    landmark_indices: Tensor
    landmark_triangles: Tensor
    landmark_weights: Tensor
    landmark_confidence: Tensor
    landmark_drift: Tensor
    metres_per_unit: float
    metadata: Mapping[str, str] = field(default_factory=dict)

    def vertices(self, identity: Tensor, expression: Tensor) -> Tensor:
        """[..., I] and [..., E] coefficients to [..., V, 3] in head space."""
        return (
            self.mean
            + torch.tensordot(identity, self.identity_basis, dims=1)
            + torch.tensordot(expression, self.expression_basis, dims=1)
        )

    def landmarks(self, vertices: Tensor) -> Tensor:
        """[..., V, 3] to the [..., L, 3] points that the detector finds."""
        corners = vertices[..., self.faces[self.landmark_triangles], :]
        return (corners * self.landmark_weights[:, :, None]).sum(-2)

    def with_landmarks(
        self,
        indices: Tensor,
        triangles: Tensor,
        weights: Tensor,
        confidence: Tensor,
        drift: Tensor,
    ) -> FaceModel:
        """The same head with another correspondence to the detector's points."""
        return replace(
            self,
            landmark_indices=indices,
            landmark_triangles=triangles,
            landmark_weights=weights,
            landmark_confidence=confidence,
            landmark_drift=drift,
        )

    def to_bytes(self, metadata: Mapping[str, str]) -> bytes:
        """The model as one safetensors file with ``metadata`` (provenance, licences) beside it."""
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        tensors |= {REGION + name: mask.to(torch.uint8) for name, mask in self.regions.items()}
        own = {
            "expression_names": json.dumps(self.expression_names),
            "metres_per_unit": repr(self.metres_per_unit),
        }
        return save(tensors, {**metadata, **own})

    @staticmethod
    def load(path: Path) -> FaceModel:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            AssetError: the file is missing, damaged or of another version.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return FaceModel(
                **{name: tensors[name] for name in _TENSORS},
                regions={
                    name.removeprefix(REGION): mask.bool()
                    for name, mask in tensors.items()
                    if name.startswith(REGION)
                },
                expression_names=tuple(json.loads(metadata["expression_names"])),
                metres_per_unit=float(metadata["metres_per_unit"]),
                metadata=metadata,
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise AssetError(
                f"{path} is not a readable head model ({error}). Delete it; it is built again."
            ) from None


_TENSORS = (
    "mean",
    "identity_basis",
    "expression_basis",
    "faces",
    "uv",
    "uv_faces",
    "mirror",
    "landmark_indices",
    "landmark_triangles",
    "landmark_weights",
    "landmark_confidence",
    "landmark_drift",
)
