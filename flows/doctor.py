"""What this machine can run: one row per thing that matters, and what to do about the rest."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from gha_core.assets import ASSETS, asset_folder, is_present
from gha_core.errors import GhaError

OPTIONAL = {
    "insightface": "identity similarity (its models: non-commercial research only)",
}


@dataclass(frozen=True)
class Finding:
    """One row; ``state`` "no" marks an optional thing that is absent, "bad" one to repair."""

    what: str
    state: Literal["ok", "no", "bad"]
    detail: str


def examine() -> Iterator[Finding]:
    """Everything there is to say, the most basic first."""
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield _torch()
    yield _gpu()
    yield _native()
    yield from _backends()
    for package in ("dvc", "prefect", "anny", "ai-edge-litert"):
        yield _package(package)
    for module, purpose in OPTIONAL.items():
        yield _optional(module, purpose)
    yield _disk()
    yield from _remotes()
    yield from _assets()


def _torch() -> Finding:
    import torch

    cores = os.cpu_count()
    return Finding(
        "PyTorch", "ok", f"{torch.__version__}, {torch.get_num_threads()} of {cores} cores"
    )


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "no", "none that PyTorch can use; everything runs on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("GPU", "ok", ", ".join(names))


def _native() -> Finding:
    try:
        importlib.import_module("gha_core._native")
    except ImportError as error:
        return Finding(
            "native kernels",
            "bad",
            f"not built ({error}); the PyTorch twins do the work, many times slower. "
            "Install a C++17 compiler and run: pip install -e .",
        )
    return Finding("native kernels", "ok", "built")


def _backends() -> Iterator[Finding]:
    """Per operation and device, what would do the work, why, and what is missing."""
    import torch

    from gha_core import mesh_rasterisation, perceptron, splatting

    absent = "" if torch.cuda.is_available() else " (there is none here)"
    for backends in (splatting.BACKENDS, mesh_rasterisation.BACKENDS, perceptron.BACKENDS):
        on_cpu, on_cuda = backends.explain("cpu"), backends.explain("cuda")
        best = not absent and backends.is_best("cuda")
        yield Finding(
            f"{backends.operation} on the CPU", "ok" if backends.is_best("cpu") else "no", on_cpu
        )
        yield Finding(f"{backends.operation} on CUDA{absent}", "ok" if best else "no", on_cuda)


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "bad", "not installed; run: make install")


def _optional(module: str, purpose: str) -> Finding:
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    return Finding(module, "ok" if found else "no", purpose)


def _disk() -> Finding:
    free = shutil.disk_usage(Path()).free / 2**30
    return Finding(
        "free disk", "ok" if free > 5 else "bad", f"{free:.0f} GiB in {Path().resolve()}"
    )


def _remotes() -> Iterator[Finding]:
    if not Path(".dvc").is_dir():
        return
    from flows import dvc_bridge

    for name in dvc_bridge.unverified():
        yield Finding(
            f"DVC remote {name}",
            "bad",
            "what it sends is not checked, so that damage there comes back as good; run: dvc "
            f"remote modify --local {name} verify true",
        )


def _assets() -> Iterator[Finding]:
    yield Finding("model files", "ok", f"in {asset_folder()}")
    for name, asset in ASSETS.items():
        try:
            present = is_present(name)
        except GhaError:
            present = False
        licence = asset.licence + ("" if asset.commercial else ", no commercial use")
        absent: Literal["no", "bad"] = "no" if asset.optional or not asset.source else "bad"
        fetch = "" if present else f"; absent: {asset.note or 'gha assets fetch'}"
        yield Finding(
            f"  {name}", "ok" if present else absent, f"{asset.purpose} ({licence}){fetch}"
        )
