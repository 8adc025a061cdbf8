"""Checkpoints of a training: one safetensors file, replaced atomically.

Everything that a later process needs to go on as if nothing had happened: all tensors (model and
optimiser) and, in the file's header as JSON, the step and the history. Random numbers need no state
of their own: those of a step are drawn from (seed, step).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A training after ``step`` steps.

    Attributes:
        tensors: model and optimiser state, by name.
        history: rows (step, term, value).
        fingerprint: of parameters and inputs; a checkpoint of others is not continued.
    """

    step: int
    tensors: dict[str, Tensor]
    history: list[tuple[int, str, float]]
    fingerprint: str

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named ``prefix.…``, without that."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint; a kill at any moment leaves the old one or the new one."""
    header = {
        "step": checkpoint.step,
        "history": checkpoint.history,
        "fingerprint": checkpoint.fingerprint,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    temporary = folder / f".{FILE}.writing"
    with temporary.open("wb") as file:
        file.write(save(tensors, {"checkpoint": json.dumps(header)}))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / FILE)


def read_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The folder's checkpoint; None if there is none for this fingerprint or it is damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError):
        return None
    if header["fingerprint"] != fingerprint:
        return None
    history = [(int(step), str(term), float(value)) for step, term, value in header["history"]]
    return Checkpoint(header["step"], tensors, history, fingerprint)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat names, ``<parameter index>.<entry>``."""
    state = optimiser.state_dict()["state"]
    return {
        f"{index}.{entry}": torch.as_tensor(value)
        for index, entries in state.items()
        for entry, value in entries.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`optimiser_tensors`, for an optimiser built the same way."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, entry = name.split(".", 1)
        state.setdefault(int(index), {})[entry] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
