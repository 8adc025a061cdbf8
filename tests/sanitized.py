"""A pytest plugin (make sanitize): the native kernels are those of the folder GHA_SANITIZED."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import gha_core

(_path,) = Path(os.environ["GHA_SANITIZED"], "gha_core").glob("_native.*.so")
_loader = importlib.machinery.ExtensionFileLoader("gha_core._native", str(_path.resolve()))
_spec = importlib.util.spec_from_loader("gha_core._native", _loader)
assert _spec is not None
_native = importlib.util.module_from_spec(_spec)
_loader.exec_module(_native)
sys.modules["gha_core._native"] = _native
gha_core._native = _native  # type: ignore[attr-defined]
