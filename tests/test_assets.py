"""Model files: fetched once, checked always, explained when absent."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gha_core.assets import (
    ASSETS,
    Asset,
    Url,
    Wheel,
    asset_folder,
    asset_path,
    fetch_all,
    is_present,
)
from gha_core.errors import AssetError

CONTENTS = {"one": b"weights of one", "two": b"weights of two"}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pip index that has nothing but a wheel with two models; assets go to an empty folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "tinymodels-1.0.dist-info"
    with zipfile.ZipFile(folder / "tinymodels-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in CONTENTS.items():
            wheel.writestr(f"tinymodels/{name}.bin", data)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinymodels\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("GHA_ASSETS", str(tmp_path / "assets"))
    return folder


@pytest.fixture
def assets() -> dict[str, Asset]:
    wheel = Wheel("tinymodels", "1.0")
    return {
        name: Asset(
            name, f"test {name}", "MIT", wheel, f"tinymodels/{name}.bin", _sha(data), len(data)
        )
        for name, data in CONTENTS.items()
    }


def test_fetches_from_a_wheel_and_reuses(index: Path, assets: dict[str, Asset]) -> None:
    assert not is_present("one", assets)
    paths = fetch_all(None, assets)
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    (index / "tinymodels-1.0-py3-none-any.whl").unlink()
    assert asset_path("one", assets) == paths[0]
    assert is_present("one", assets)
    left = {path.name for path in asset_folder().iterdir()} - {".lock"}
    assert left == {path.name for path in paths}


def test_damaged_file_is_replaced(index: Path, assets: dict[str, Asset]) -> None:
    path = asset_path("one", assets)
    path.write_bytes(b"x" * len(CONTENTS["one"]))
    assert not is_present("one", assets)
    assert asset_path("one", assets).read_bytes() == CONTENTS["one"]


def test_wrong_content_is_refused(index: Path, assets: dict[str, Asset]) -> None:
    wrong = {
        "one": Asset("one", "test", "MIT", assets["one"].source, assets["one"].member, "0" * 64)
    }
    with pytest.raises(AssetError, match=r"not the file that was pinned.*gha assets fetch"):
        asset_path("one", wrong)
    assert not list(asset_folder().glob("*.bin"))


def test_offline_error_says_what_why_and_how(index: Path, assets: dict[str, Asset]) -> None:
    (index / "tinymodels-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AssetError, match=r"one \(test one; MIT\).*tinymodels.*gha assets fetch"):
        asset_path("one", assets)


def test_concurrent_fetchers_agree(index: Path, assets: dict[str, Asset]) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: asset_path("two", assets).read_bytes(), range(3)))
    assert found == [CONTENTS["two"]] * 3


def test_url_source(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"from a url")
    asset = Asset("u", "test", "MIT", Url(file.as_uri()), sha256=_sha(b"from a url"), size=10)
    assert asset_path("u", {"u": asset}).read_bytes() == b"from a url"
    gone = Asset("g", "test", "MIT", Url((tmp_path / "no.bin").as_uri()), sha256="1" * 64, size=1)
    with pytest.raises(AssetError, match="gha assets fetch"):
        asset_path("g", {"g": gone})


def test_unwritable_folder_is_explained(
    index: Path, assets: dict[str, Asset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GHA_ASSETS", str(tmp_path / "file" / "assets"))
    with pytest.raises(AssetError, match="GHA_ASSETS"):
        asset_path("one", assets)


def test_non_commercial_models_are_listed_and_never_fetched() -> None:
    asset = ASSETS["insightface_buffalo_l"]
    assert asset.optional
    assert not asset.commercial
    with pytest.raises(AssetError, match="non-commercial"):
        asset_path("insightface_buffalo_l")


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(AssetError, match="facemesh"):
        asset_path("face_mesh")


def test_every_default_asset_is_pinned_and_free() -> None:
    for asset in ASSETS.values():
        if not asset.optional:
            assert len(asset.sha256) == 64
            assert asset.size > 0
            assert asset.commercial
            assert asset.source is not None


def test_library_imports_neither_prefect_nor_dvc() -> None:
    code = "import sys, gha_core.assets; assert not {'prefect', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
