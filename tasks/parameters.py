"""The files that people edit, ``params.yaml`` and ``subjects.yaml``, read into typed parameters.

``params.yaml`` has ``seed``, ``splits`` and one section per stage. ``subjects.yaml`` has one entry
per subject: the capture, its format, and per section whatever this subject wants otherwise. The
sections of a subject may be empty but are written out, because DVC tracks each of them by name.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from gha_core.errors import ParameterError
from gha_core.splits import Splits
from tasks.stage import StageParams

STAGES = ("ingest", "matting", "landmarks", "tracking", "geometry", "avatar", "evaluation")
SECTIONS = ("splits", *STAGES)
PARAMS_FILE = "params.yaml"
SUBJECTS_FILE = "subjects.yaml"
SUBJECT_FIELDS = ("capture", "format")

# DVC builds stage names and parameter paths from it, so no dots, at signs or slashes.
_SUBJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

Values = dict[str, Any]
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Subject:
    """One entry of ``subjects.yaml``.

    Attributes:
        capture: path of the raw capture, as the user gave it; relative ones start at the project.
        overrides: section name -> values that replace those of ``params.yaml``.
    """

    name: str
    capture: Path
    format: str
    overrides: Mapping[str, Values]


@dataclass(frozen=True)
class Resolved:
    """Everything that one stage of one subject is parameterised by."""

    params: StageParams
    splits: Splits
    seed: int


def check_subject_name(name: object) -> str:
    """``name`` if it can name a subject.

    Raises:
        ParameterError: it is not text or has characters that DVC or a folder name cannot take.
    """
    if not isinstance(name, str):
        raise ParameterError(
            f"{SUBJECTS_FILE}: the subject name {name!r} is read as a {type(name).__name__}; "
            "put it in quotes."
        )
    if not _SUBJECT_NAME.fullmatch(name):
        raise ParameterError(
            f"{name!r} cannot be a subject's name: use letters, digits, - and _ only."
        )
    return name


def read_subjects(root: Path) -> dict[str, Subject]:
    """All subjects by name, in the order of the file.

    Raises:
        ParameterError: the file is not valid YAML, or an entry has unknown or missing keys.
    """
    file = read_yaml(root / SUBJECTS_FILE)
    _refuse_unknown(file, ["subjects"], SUBJECTS_FILE)
    return {
        check_subject_name(name): _subject(name, entry)
        for name, entry in _mapping(file.get("subjects"), f"{SUBJECTS_FILE}: subjects").items()
    }


def find_subject(root: Path, name: str) -> Subject:
    """The entry of one subject.

    Raises:
        ParameterError: there is none of this name.
    """
    subjects = read_subjects(root)
    if name not in subjects:
        raise ParameterError(
            f"There is no subject {name!r}{_suggestion(name, subjects)} "
            f"Add it with: gha add {name} PATH."
        )
    return subjects[name]


def resolve(root: Path, stage: str, subject: str) -> Resolved:
    """The parameters of one stage of one subject: ``params.yaml`` with the subject's overrides.

    Raises:
        ParameterError: an unknown stage, subject or key, or a value of the wrong type or range; the
            text names file, section and key.
    """
    if stage not in STAGES:
        raise ParameterError(f"There is no stage {stage!r}{_suggestion(stage, STAGES)}")
    overrides = find_subject(root, subject).overrides
    file = read_yaml(root / PARAMS_FILE)
    _refuse_unknown(file, ["seed", *SECTIONS], PARAMS_FILE)
    seed = file.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ParameterError(f"{PARAMS_FILE}: seed is {seed!r}; it must be a whole number >= 0.")
    return Resolved(
        _section(params_type(stage), stage, file, subject, overrides),
        _section(Splits, "splits", file, subject, overrides),
        seed,
    )


def sections(file: Values) -> dict[str, BaseModel]:
    """Every section of the values of a ``params.yaml``, as it is for subjects without overrides.

    Raises:
        ParameterError: an unknown section or key, or a value of the wrong type or range.
    """
    _refuse_unknown(file, ["seed", *SECTIONS], PARAMS_FILE)
    types: dict[str, type[BaseModel]] = {"splits": Splits}
    types |= {stage: params_type(stage) for stage in STAGES}
    none: dict[str, Values] = {section: {} for section in SECTIONS}
    return {name: _section(model, name, file, "", none) for name, model in types.items()}


def params_type(stage: str) -> type[StageParams]:
    """``tasks.<stage>.Params``."""
    return importlib.import_module(f"tasks.{stage}").Params


def read_yaml(path: Path) -> Values:
    """A YAML mapping, read as DVC reads it; an absent file is an empty one.

    Raises:
        ParameterError: not valid YAML, a key is repeated, or not a mapping.
    """
    try:
        stat = path.stat()
        content = _parsed(path.resolve(), stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        return {}
    except MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ParameterError(f"{path.name}{where}: {error.problem or error.context}.") from None
    return _mapping(content, path.name)


@lru_cache(maxsize=4)
def _parsed(path: Path, _changed: int, _size: int) -> object:
    """The file's content, kept: a hundred subjects' stages ask for it seven hundred times."""
    return YAML(typ="safe", pure=True).load(path.read_text())


def _subject(name: str, entry: object) -> Subject:
    where = f"{SUBJECTS_FILE}: subjects.{name}"
    values = _mapping(entry, where)
    _refuse_unknown(values, [*SUBJECT_FIELDS, *SECTIONS], where)
    for key in SUBJECT_FIELDS:
        if not isinstance(values.get(key), str):
            raise ParameterError(f"{where}.{key} is missing or not text; gha add writes it.")
    overrides = {key: _mapping(values.get(key), f"{where}.{key}") for key in SECTIONS}
    return Subject(name, Path(values["capture"]), values["format"], overrides)


def _section(
    model: type[Model],
    section: str,
    file: Values,
    subject: str,
    overrides: Mapping[str, Values],
) -> Model:
    base = _mapping(file.get(section), f"{PARAMS_FILE}: {section}")
    override = overrides[section]
    try:
        return model.model_validate(merged(base, override))
    except ValidationError as error:
        first = error.errors()[0]
        overridden = _contains(override, first["loc"])
        file_of = f"{SUBJECTS_FILE}: subjects.{subject}" if overridden else PARAMS_FILE
        where = f"{file_of}{'.' if overridden else ': '}{section}"
        raise ParameterError(_sentence(first, model, where)) from None


def _sentence(error: Any, model: type[BaseModel], where: str) -> str:
    *parents, key = error["loc"] or ("",)
    if error["type"] == "extra_forbidden":
        known = _fields(model, parents)
        return f"{where}: unknown parameter {str(key)!r}{_suggestion(str(key), known)}"
    path = ".".join([where, *map(str, error["loc"])])
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        return f"{path} is the number {error['input']!r} but must be text: put it in quotes."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{path} is {error['input']!r}; it {message}."


def _fields(model: type[BaseModel], parents: Iterable[object]) -> list[str]:
    for name in parents:
        field = model.model_fields.get(str(name))
        inner = [field.annotation, *get_args(field.annotation)] if field else []
        nested = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def merged(base: Values, override: Values) -> Values:
    """``base`` with the values of ``override`` in their places, however deep."""
    result = dict(base)
    for key, value in override.items():
        inner = result.get(key)
        both = isinstance(inner, dict) and isinstance(value, dict)
        result[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return result


def _contains(values: Any, path: tuple[object, ...]) -> bool:
    for key in path:
        if isinstance(values, dict):
            if key not in values:
                return False
            values = values[key]
    return bool(path)


def _mapping(value: object, where: str) -> Values:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ParameterError(f"{where} must have keys and values, but is {value!r}.")
    return value


def _refuse_unknown(values: Values, known: list[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise ParameterError(f"{where}: unknown key {key!r}{_suggestion(str(key), known)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are: {', '.join(known)}." if known else "."


def main(subjects: list[str]) -> int:
    """Check the parameters of all stages of ``subjects``: ``python -m tasks.parameters NAME…``."""
    try:
        for subject in subjects:
            for stage in STAGES:
                resolve(Path(), stage, subject)
    except ParameterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
