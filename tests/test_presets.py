"""Presets: plain files that name the same parameters and take effect by one command."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from gha_core.errors import ParameterError
from tasks import presets
from tasks.parameters import PARAMS_FILE, read_yaml, sections
from tasks.reference import reference


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _preset(name: str) -> dict[str, Any]:
    return dict(_leaves(read_yaml(presets.FOLDER / f"{name}.yaml")))


def _defaults() -> dict[str, Any]:
    return dict(
        _leaves({name: each.model_dump(mode="json") for name, each in sections({}).items()})
    )


def test_all_presets_name_the_same_parameters_and_cpu_is_the_default() -> None:
    assert presets.names() == ["cpu", "draft", "gpu", "paper"]
    cpu = _preset("cpu")
    for name in presets.names():
        assert _preset(name).keys() == cpu.keys(), name
    assert cpu.items() <= _defaults().items()


def test_a_preset_replaces_what_it_names_and_leaves_all_else(tmp_path: Path) -> None:
    before = re.sub(r"max_views: \d\d", "max_views: 77", reference().replace("seed: 0", "seed: 5"))
    (tmp_path / PARAMS_FILE).write_text(before)
    presets.use(tmp_path, "paper")
    paper = dict(_leaves(read_yaml(tmp_path / PARAMS_FILE)))
    assert paper["avatar.steps"] == 600_000
    assert _preset("paper").items() <= paper.items()
    assert (paper["seed"], paper["evaluation.max_views"]) == (5, 77)
    presets.use(tmp_path, "cpu")
    assert (tmp_path / PARAMS_FILE).read_text() == before


def test_an_unknown_preset_or_a_wrong_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="no preset 'fast'; known are: cpu, draft, gpu, paper"):
        presets.use(tmp_path, "fast")
    (tmp_path / PARAMS_FILE).write_text("avatar: {stepps: 3}\n")
    with pytest.raises(ParameterError, match=r"params.yaml: avatar: unknown parameter 'stepps'"):
        presets.use(tmp_path, "gpu")
    assert (tmp_path / PARAMS_FILE).read_text() == "avatar: {stepps: 3}\n"
