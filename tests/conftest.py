"""Shared set-up: nothing a test does reaches the user's caches, configuration or the network."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import browser, page, screenshots  # noqa: F401  fixtures

from gha_core.memory import keep_freed_memory


@pytest.fixture(autouse=True, scope="session")
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """DVC's site cache, Prefect's home and the like are this session's."""
    keep_freed_memory()  # as every stage does
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "dvc"))
        patch.setenv("DVC_GLOBAL_CONFIG_DIR", str(folder / "dvc-config"))
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        for name in [name for name in os.environ if name.startswith(("GIT_", "GHA_PROGRESS"))]:
            patch.delenv(name)
        yield


@pytest.fixture
def dvc_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder under git and DVC, with this repository's DVC settings; entered."""
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q", "."], check=True)
    (tmp_path / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".dvc/plots.html", ".dvcignore", ".gitignore"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def tiny_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footage of the synthetic person, some frames at 128 px. Read it only."""
    from gha_core.synthetic.capture import SIZES, film

    return film(tmp_path_factory.mktemp("studio"), SIZES["small"])


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory: pytest.TempPathFactory, tiny_capture: Path) -> Path:
    """What all seven stages make of it, a folder per stage; half a minute. Read it only."""
    from tiny_run import make

    return make(tmp_path_factory.mktemp("tiny"), tiny_capture)


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose one subject, ``tiny_avatar.NAME``, has an avatar; copy it to change it."""
    from tiny_avatar import make_project

    root = tmp_path_factory.mktemp("tiny_project")
    make_project(root)
    return root
