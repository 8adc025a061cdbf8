"""Parameters: the committed files fit the types, overrides apply, and mistakes are sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gha_core.errors import ParameterError
from gha_core.splits import Splits
from tasks.parameters import (
    SECTIONS,
    STAGES,
    check_subject_name,
    params_type,
    read_subjects,
    read_yaml,
    resolve,
)

ROOT = Path(__file__).parents[1]
PARAMS = "seed: 3\nsplits: {test_every: 5}\ningest: {image_size: 128}\n"
SUBJECTS = "subjects:\n  ann:\n    capture: ann.mp4\n    format: monocular\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "subjects.yaml").write_text(SUBJECTS)
    return tmp_path


def model_of(section: str) -> type[BaseModel]:
    return Splits if section == "splits" else params_type(section)


@pytest.mark.parametrize("section", SECTIONS)
def test_params_yaml_names_every_parameter_and_no_other(section: str) -> None:
    listed = read_yaml(ROOT / "params.yaml")[section]
    assert list(listed) == list(model_of(section).model_fields)
    model_of(section).model_validate(listed)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_parameter_is_described(section: str) -> None:
    for name, field in model_of(section).model_fields.items():
        assert field.description, f"{section}.{name} has no description"


def test_all_committed_subjects_resolve() -> None:
    for subject in read_subjects(ROOT):
        for stage in STAGES:
            resolve(ROOT, stage, subject)


def test_a_subject_overrides_only_what_it_names(project: Path) -> None:
    with (project / "subjects.yaml").open("a") as file:
        file.write("    ingest: {stride: 2}\n    splits: {test_cameras: [left]}\n")
    resolved = resolve(project, "ingest", "ann")
    values = resolved.params.model_dump()
    assert (values["image_size"], values["stride"]) == (128, 2)
    assert resolved.splits == Splits(test_cameras=("left",), test_every=5)
    assert resolved.seed == 3


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("params", "image_size: 128", "image_siz: 128", "params.yaml: ingest: unknown "
         "parameter 'image_siz'; did you mean 'image_size'?"),
        ("params", "splits: {", "splits: {test_camera: [a], ", "did you mean 'test_cameras'?"),
        ("params", "ingest:", "injest:", "params.yaml: unknown key 'injest'; did you mean "
         "'ingest'?"),
        ("params", "size: 128", "size: big", "params.yaml: ingest.image_size is 'big'; it "
         "should be a valid integer"),
        ("params", "size: 128", "size: 1", "params.yaml: ingest.image_size is 1; it should "
         "be greater"),
        ("params", "seed: 3", "seed: -1", "params.yaml: seed is -1"),
        ("params", "seed: 3", "seed: 3\nseed: 4", "params.yaml, line 2"),
        ("params", "size: 128}", "size: 128", "params.yaml"),
        ("subjects", "format:", "fromat:", "subjects.ann: unknown key 'fromat'; did you mean "
         "'format'?"),
        ("subjects", "    capture: ann.mp4\n", "", "subjects.ann.capture is missing"),
        ("subjects", "ann:", "031:", "the subject name 31 is read as a int; put it in quotes"),
        ("subjects", "ann:", "a.b:", "'a.b' cannot be a subject's name"),
        ("subjects", "subjects:", "people:", "subjects.yaml: unknown key 'people'"),
        ("subjects", "monocular\n", "monocular\n    ingest: {sizes: 1}\n", "subjects.yaml: "
         "subjects.ann.ingest: unknown parameter 'sizes'"),
        ("subjects", "monocular\n", "monocular\n    splits: {test_cameras: [222200037]}\n",
         "subjects.ann.splits.test_cameras.0 is the number 222200037 but must be text: put it in "
         "quotes"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(
    project: Path, file: str, old: str, new: str, message: str
) -> None:
    path = project / f"{file}.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ParameterError, match=re.escape(message)):
        resolve(project, "ingest", "ann")


def test_unknown_subjects_and_stages_are_told_what_exists(project: Path) -> None:
    with pytest.raises(ParameterError, match="no subject 'anne'; did you mean 'ann'"):
        resolve(project, "ingest", "anne")
    with pytest.raises(ParameterError, match="no stage 'avatars'; did you mean 'avatar'"):
        resolve(project, "avatars", "ann")


@given(st.text(max_size=12))
def test_subject_names_are_safe_for_paths_and_for_dvc(name: str) -> None:
    try:
        check_subject_name(name)
    except ParameterError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_-]+", name)
    assert not name.startswith("-")
