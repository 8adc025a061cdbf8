"""Checkpoints of the geometry training: one safetensors file, replaced as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gha_core.errors import ArtifactError

if TYPE_CHECKING:
    from gha_core.geometry.training import TrainingState


def save_checkpoint(path: Path, state: TrainingState) -> None:
    """Networks, landmarks, optimiser, step and history. (Batches need no random state: they are
    drawn from seed and step.)"""
    tensors = {f"net.{name}": value for name, value in state.networks.state_dict().items()}
    tensors["landmarks"] = state.landmarks.detach()
    for index, moments in state.optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
    metadata = {
        "step": str(state.step),
        "history": json.dumps(state.history),
    }
    temporary = path.with_suffix(".writing")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
    temporary.replace(path)


def load_checkpoint(path: Path, state: TrainingState) -> None:
    """Bring ``state`` to where :func:`save_checkpoint` left it.

    Raises:
        ArtifactError: the file is damaged or belongs to other parameters.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = {
            name.removeprefix("net."): value
            for name, value in tensors.items()
            if name.startswith("net.")
        }
        state.networks.load_state_dict(weights)
        with torch.no_grad():
            state.landmarks.copy_(tensors["landmarks"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, kind = name.split(".")
                moments.setdefault(int(index), {})[kind] = value
        groups = state.optimiser.state_dict()["param_groups"]
        state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        state.step = int(metadata["step"])
        state.history = json.loads(metadata["history"])
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"The checkpoint {path} cannot be continued from ({error}). Delete it to start over."
        ) from None
