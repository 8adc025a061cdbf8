"""The direction of imports, and that DVC knows all code that a stage can run.

DVC calls a stage up to date when a module that it imports changes without being listed: the lists
of dvc.yaml are held against the import closure of each stage, read from the source. Modules that
are nothing but a docstring need not be listed.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.parameters import SECTIONS, STAGES

ROOT = Path(__file__).parents[1]
PACKAGES = ("gha_core", "tasks", "flows")
NATIVE = {"CMakeLists.txt", "gha_core/native/module.cpp", "gha_core/native/kernels.h"}


def stage_declaration(stage: str) -> dict:
    return YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage]["do"]


def module_file(module: str) -> str | None:
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / file).is_file():
            return file.as_posix()
    return None


@cache
def tree(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


@cache
def imported(file: str) -> frozenset[str]:
    """All modules that a file names in imports, wherever in it they stand."""
    package = file.removesuffix("/__init__.py").removesuffix(".py").split("/")
    if not file.endswith("__init__.py"):
        package = package[:-1]
    modules = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            modules |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(modules)


def closure(file: str) -> set[str]:
    """The project's files that importing ``file`` can run, the native kernels' included."""
    found: set[str] = set()
    todo = {file}
    while todo:
        file = todo.pop()
        if file in found:
            continue
        found.add(file)
        for module in imported(file):
            parts = module.split(".")
            if parts[0] not in PACKAGES:
                continue
            if module == "gha_core._native":
                found |= NATIVE
            for end in range(1, len(parts) + 1):
                if (parent := module_file(".".join(parts[:end]))) is not None:
                    todo.add(parent)
    return found


def is_docstring(file: str) -> bool:
    return file.endswith(".py") and all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for node in tree(file).body
    )


def sources(package: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("gha_core", {"gha_core"}), ("tasks", {"gha_core", "tasks"}), ("flows", set(PACKAGES))],
)
def test_imports_flow_one_way(package: str, allowed: set[str]) -> None:
    forbidden = {*PACKAGES} - allowed
    if package != "flows":
        forbidden |= {"prefect", "dvc"}
    for file in sources(package):
        wrong = {module for module in imported(file) if module.split(".")[0] in forbidden}
        assert not wrong, f"{file} imports {sorted(wrong)}"


def test_only_the_bridge_touches_dvcs_internals() -> None:
    users = {f for f in sources("flows") if any(m.split(".")[0] == "dvc" for m in imported(f))}
    assert users == {"flows/dvc_bridge.py"}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_all_code_of_a_stage(stage: str) -> None:
    listed = [Path(dep) for dep in stage_declaration(stage)["deps"] if "${key}" not in dep]
    for dep in listed:
        assert (ROOT / dep).exists(), f"dvc.yaml, {stage}: {dep} does not exist"
    files = [Path(file) for file in closure(f"tasks/{stage}.py")]
    known = [any(file.is_relative_to(dep) for dep in listed) for file in files]
    missing = sorted(
        str(file)
        for file, covered in zip(files, known, strict=True)
        if not covered and not is_docstring(str(file))
    )
    assert not missing, f"dvc.yaml, {stage}: add {missing} or their folders to deps"
    useless = [str(d) for d in listed if d.parts[0] in PACKAGES]
    useless = [d for d in useless if not any(file.is_relative_to(d) for file in files)]
    assert not useless, f"dvc.yaml, {stage}: {useless} are not imported"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_the_inputs_and_parameters_of_a_stage(stage: str) -> None:
    declared = stage_declaration(stage)
    used = {
        node.attr
        for node in ast.walk(tree(f"tasks/{stage}.py"))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "inputs"
    }
    read = {
        node.slice.value
        for node in ast.walk(tree(f"tasks/{stage}.py"))
        if isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id == "inputs"
        and isinstance(node.slice, ast.Constant)
    }
    folder = "data/subjects/${key}/"
    inputs = {d.removeprefix(folder) for d in declared["deps"] if d.startswith(folder)}
    assert read <= inputs, f"{stage} reads {read - inputs} unknown to dvc.yaml"

    sections = {p for p in declared["params"] if isinstance(p, str)}
    overrides = {
        p.removeprefix("subjects.${key}.")
        for each in declared["params"]
        if isinstance(each, dict)
        for p in each["subjects.yaml"]
    }
    wanted = {stage} | ({"splits"} if "splits" in used else set())
    assert wanted == sections & set(SECTIONS) == overrides & set(SECTIONS)
    assert ("seed" in used) == ("seed" in sections)
    assert ("format" in used) == ("format" in overrides)
    assert ("capture" in used) == ("data/captures/${key}" in declared["deps"])
