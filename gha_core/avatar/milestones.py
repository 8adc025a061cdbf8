"""Early states of a training, kept so that quality can be drawn against time.

Training never sees a held-out frame, and keeping a state reads none: whoever scores the finished
avatar scores these as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gha_core.avatar.avatar import Avatar

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7)
"""Of all steps, after which a state is kept."""
FILE = "milestones.safetensors"

Modules = Mapping[str, nn.Module | None]


def milestones(steps: int) -> list[int]:
    """After how many of ``steps`` steps a state is kept, ascending; never after the last."""
    return sorted({round(share * steps) for share in SHARES} - {steps})


def keep(work: Path, step: int, modules: Modules) -> None:
    """Write the state after ``step`` steps to the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    path = _kept(work, step)
    temporary = path.with_suffix(".writing")
    save_file({name: _short(name, tensor) for name, tensor in _state(modules)}, temporary)
    temporary.replace(path)


def collect(work: Path, steps: int, modules: Modules, out: Path) -> None:
    """Gather what :func:`keep` wrote into one file of the folder ``out``, without what is as it is
    in the finished ``modules``."""
    final = {name: _short(name, tensor) for name, tensor in _state(modules)}
    tensors = {
        f"{step}/{name}": tensor
        for step in milestones(steps)
        if _kept(work, step).is_file()
        for name, tensor in load_file(_kept(work, step)).items()
        if not torch.equal(tensor, final[name])
    }
    save_file(tensors, out / FILE)


def read_milestones(folder: Path, avatar: Avatar) -> Iterator[tuple[int, Avatar]]:
    """The avatar of ``folder`` as it was at each milestone, and after how many steps that was;
    none if it was made before there were any."""
    path = folder / FILE
    if not path.is_file():
        return
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        number, _, name = key.partition("/")
        states.setdefault(int(number), {})[name] = tensor
    for step in sorted(states):
        head, super_resolution = deepcopy(avatar.head), deepcopy(avatar.super_resolution)
        for name, tensor in _state({"head": head, "super_resolution": super_resolution}):
            if name in states[step]:
                tensor.copy_(states[step][name])
        head.count_controlled()
        yield step, replace(avatar, head=head, super_resolution=super_resolution)


def _state(modules: Modules) -> Iterator[tuple[str, Tensor]]:
    """Views of all tensors, by name."""
    for part, module in modules.items():
        for name, tensor in module.state_dict().items() if module else ():
            yield f"{part}.{name}", tensor


def _short(name: str, tensor: Tensor) -> Tensor:
    """In half the bits, which nobody sees; but for positions, where that is a tenth of a pixel."""
    if tensor.is_floating_point() and not name.endswith("positions"):
        return tensor.to(torch.float16).contiguous()
    return tensor.clone().contiguous()


def _kept(work: Path, step: int) -> Path:
    return work / f"milestone-{step}.safetensors"
