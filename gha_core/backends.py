"""Several implementations of one operation: the choice between them, and why it fell so.

An operation's folder declares its :class:`Backends`, the preferred first. Nothing outside of that
folder needs to know their names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Generic, Literal, TypeVar

import torch

from gha_core.errors import ParameterError

T = TypeVar("T")
DeviceType = Literal["cpu", "cuda"]


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Backend(Generic[T]):
    """One implementation of an operation.

    Attributes:
        kernels: what does the work, in the form that the operation's folder describes.
        licence: of the code that it runs.
        device: where its tensors must be; None for a twin, which takes tensors of any kind.
        missing: says why it cannot work in this installation, and what to do; None if it can.
        cost: what it costs to do without it, said once when the twin has to stand in for it.
        caution: said once when it is chosen without having been asked for.
    """

    name: str
    kernels: T
    licence: str = "Apache-2.0"
    device: DeviceType | None = None
    missing: Callable[[], str | None] = _nothing
    cost: str = ""
    caution: str = ""

    def takes(self, device: str, dtype: torch.dtype) -> bool:
        """Whether it is made for such tensors, were it installed."""
        return self.device is None or (device == self.device and dtype == torch.float32)


@dataclass(frozen=True)
class Backends(Generic[T]):
    """All implementations of one operation.

    Attributes:
        operation: its name, in lower case, as people read it.
        known: the preferred first; the last is the twin, which takes everything.
    """

    operation: str
    known: tuple[Backend[T], ...]

    @property
    def names(self) -> list[str]:
        return [backend.name for backend in self.known]

    def usable(self, device: str, dtype: torch.dtype = torch.float32) -> list[Backend[T]]:
        """The installed ones that take such tensors, the preferred first; never empty."""
        return [b for b in self.known if b.takes(device, dtype) and b.missing() is None]

    def choose(
        self, wanted: str, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Backend[T]:
        """The backend called ``wanted``, or the preferred one that can do it if that is "auto".

        Raises:
            ParameterError: there is no such backend, or it cannot take such tensors.
        """
        if wanted != "auto":
            return self._named(wanted, device, dtype)
        chosen = self.usable(device.type, dtype)[0]
        if chosen.caution:
            _warn_once(chosen.caution)
        if chosen is self.known[-1]:
            for backend in self.known:
                if backend.cost and backend.takes(device.type, dtype):
                    _warn_once(
                        f"{self.operation.capitalize()} is done by the PyTorch twin, "
                        f"{backend.cost}, because {backend.name} {backend.missing()}"
                    )
        return chosen

    def is_best(self, device: str) -> bool:
        """Whether float32 tensors on the device get what is preferred for them."""
        preferred = next(b for b in self.known if b.takes(device, torch.float32))
        return preferred.missing() is None

    def explain(self, device: DeviceType) -> str:
        """For people: what float32 tensors on the device would get, why, and what is missing."""
        fitting = [b for b in self.known if b.takes(device, torch.float32)]
        reasons = {backend.name: backend.missing() for backend in fitting}
        chosen, *others = [b for b in fitting if reasons[b.name] is None]
        parts = [f"{chosen.name} ({chosen.licence})"]
        if others:
            parts.append("also here: " + ", ".join(f"{b.name} ({b.licence})" for b in others))
        parts += [f"{b.name} ({b.licence}) {reasons[b.name]}" for b in fitting if reasons[b.name]]
        return "; ".join(parts)

    def _named(self, wanted: str, device: torch.device, dtype: torch.dtype) -> Backend[T]:
        by_name = {backend.name: backend for backend in self.known}
        if wanted not in by_name:
            raise ParameterError(
                f"There is no backend {wanted!r} for {self.operation}; choose one of: "
                f"auto, {', '.join(by_name)}."
            )
        backend = by_name[wanted]
        if reason := backend.missing():
            raise ParameterError(f"For {self.operation}, {wanted} {reason}.")
        if not backend.takes(device.type, dtype):
            place = "the CPU" if backend.device == "cpu" else "a CUDA device"
            raise ParameterError(
                f"For {self.operation}, {wanted} takes float32 tensors on {place}, these are "
                f"{dtype} on {device}. Convert them, or choose backend {self.known[-1].name}."
            )
        return backend


def installed(module: str) -> bool:
    """Whether a module could be imported; it is not."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def no_compiler(extension: object) -> str | None:
    """The ``missing`` of our own C++ kernels."""
    if extension is not None:
        return None
    return (
        "is not part of this installation: no C++ compiler was found when gha was installed "
        "(install one, e.g. gcc, and gha again)"
    )


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=4)
