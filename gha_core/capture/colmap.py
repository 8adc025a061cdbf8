"""COLMAP's sparse model, text or binary, with the pictures that it was made from.

::

    sparse/0/cameras.txt|bin, images.txt|bin     also sparse/, or the folder itself
    images/<name of the model>                   the pictures
    videos/<name without suffix>.mp4             optional: what the same cameras filmed

COLMAP's poses are world-to-camera with a quaternion w x y z, its axes are OpenCV's and the first
pixel's centre is at (0.5, 0.5): nothing is converted but the scale, which is arbitrary
(:mod:`gha_core.capture.scale`). What belongs together is told by the names: of
``<folder>/<number>``, a folder whose pictures all have one pose is a camera and the number its
timestep; otherwise all pictures are one moment, each of a camera of its own. All lengths
in binary files are held against the file's size before anything is read by them.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera
from gha_core.capture.capture import Capture, Options
from gha_core.capture.files import check_name, inside
from gha_core.capture.rig import Found, RigCapture
from gha_core.capture.scale import at_one_metre
from gha_core.capture.streams import VIDEO_SUFFIXES, PictureFiles, Source, numbered
from gha_core.errors import CaptureError

NAME = "colmap"
WHAT = "a COLMAP model (cameras and images, .txt or .bin) with images/ or videos/"
SEQUENCE = "sequence"
_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")
_STILL = 1e-3  # poses of one camera may differ by so much of the rig's extent
_MOST_BYTES = 4 << 30

# By name: COLMAP's number of the model, and the meaning of its parameters.
_MODELS: dict[str, tuple[int, str]] = {
    "SIMPLE_PINHOLE": (0, "f cx cy"),
    "PINHOLE": (1, "fx fy cx cy"),
    "SIMPLE_RADIAL": (2, "f cx cy k1"),
    "RADIAL": (3, "f cx cy k1 k2"),
    "OPENCV": (4, "fx fy cx cy k1 k2 p1 p2"),
    "FULL_OPENCV": (6, "fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6"),
}
_NUMBERED = {number: (name, len(order.split())) for name, (number, order) in _MODELS.items()}


@dataclass(frozen=True)
class Lens:
    """One entry of ``cameras``: K [3, 3], distortion [5], size in pixels."""

    K: NDArray[np.float64]
    distortion: NDArray[np.float64]
    width: int
    height: int


@dataclass(frozen=True)
class Shot:
    """One entry of ``images``: its pose [4, 4], its lens and its file's name."""

    name: str
    lens: int
    w2c: NDArray[np.float64]


def detect(path: Path) -> bool:
    return path.is_dir() and _model_folder(path) is not None


def read(path: Path, options: Options) -> Capture:
    folder = _model_folder(path)
    if folder is None:
        raise CaptureError(
            f"{path} has no COLMAP model: cameras and images, .bin or .txt, in sparse/0, sparse or "
            "the folder itself. Export it with COLMAP's model_converter."
        )
    lenses, shots = read_model(folder)
    cameras, pictures = _arranged(path, lenses, shots)
    cameras, note = at_one_metre(cameras)
    return RigCapture(
        Found(
            format=NAME,
            path=path,
            calibration=folder,
            cameras=cameras,
            pictures={SEQUENCE: pictures},
            place="images/{camera}",
            notes=[note],
        ),
        options,
    )


def read_model(folder: Path) -> tuple[dict[int, Lens], list[Shot]]:
    """Lenses by id, and the images in the order of their names.

    Raises:
        CaptureError: a file is missing, truncated, damaged, or has a camera model that is not read.
    """
    binary = (folder / "cameras.bin").is_file() and (folder / "images.bin").is_file()
    suffix = ".bin" if binary else ".txt"
    cameras, images = folder / f"cameras{suffix}", folder / f"images{suffix}"
    lenses = _binary_lenses(cameras) if binary else _text_lenses(cameras)
    shots = _binary_shots(images) if binary else _text_shots(images)
    names = [shot.name for shot in shots]
    if not shots:
        raise CaptureError(f"{images} lists no image. Run COLMAP's mapper again.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CaptureError(f"{images} lists {twice!r} twice. Run COLMAP's mapper again.")
    for shot in shots:
        if shot.lens not in lenses:
            raise CaptureError(
                f"{images}: the image {shot.name!r} is of camera {shot.lens}, which {cameras} does "
                "not have. Copy both files of one model."
            )
    return lenses, sorted(shots, key=lambda shot: shot.name)


def _model_folder(path: Path) -> Path | None:
    for name in _FOLDERS:
        for suffix in (".bin", ".txt"):
            folder = path / name
            if all((folder / f"{each}{suffix}").is_file() for each in ("cameras", "images")):
                return folder
    return None


def _arranged(
    path: Path, lenses: Mapping[int, Lens], shots: list[Shot]
) -> tuple[dict[str, Camera], dict[str, Source]]:
    """Cameras and their pictures: by folder if every folder's camera stands still, else one camera
    per picture."""
    images = path / "images" if (path / "images").is_dir() else path
    files = {
        shot.name: inside(images, shot.name.replace("\\", "/"), f"COLMAP's model of {path}")
        for shot in shots
    }
    folders: dict[str, list[Shot]] = {}
    for shot in shots:
        folders.setdefault(os.path.dirname(shot.name.replace("\\", "/")), []).append(shot)  # noqa: PTH120
    extent = _extent(shots)
    cameras: dict[str, Camera] = {}
    sources: dict[str, Source] = {}
    if all(folders) and all(_stands_still(each, extent) for each in folders.values()):
        for folder, own in folders.items():
            name = _name(folder, path, cameras)
            cameras[name] = _camera(name, lenses[own[0].lens], own[0])
            sources[name] = PictureFiles(numbered([files[s.name] for s in own], folder))
        return cameras, sources
    videos = {
        each.stem: each
        for each in sorted((path / "videos").glob("*"))
        if each.suffix.lower() in VIDEO_SUFFIXES
    }
    for shot in shots:
        pure = PurePosixPath(shot.name.replace("\\", "/"))
        name = _name(str(pure.with_suffix("")), path, cameras)
        cameras[name] = _camera(name, lenses[shot.lens], shot)
        sources[name] = videos.get(pure.stem) or PictureFiles({0: files[shot.name]})
    if videos:  # what has no video was taken for the calibration only
        filmed = {name for name, source in sources.items() if isinstance(source, Path)}
        cameras = {name: cameras[name] for name in filmed or cameras}
        sources = {name: sources[name] for name in cameras}
    return cameras, sources


def _name(text: str, path: Path, taken: Mapping[str, Camera]) -> str:
    name = check_name(re.sub(r"[^A-Za-z0-9._+-]", "_", text), f"COLMAP's model of {path}")
    if name in taken:
        raise CaptureError(f"COLMAP's model of {path}: two images are named {name}. Rename one.")
    return name


def _camera(name: str, lens: Lens, shot: Shot) -> Camera:
    return Camera(name, lens.K, shot.w2c, lens.width, lens.height, lens.distortion)


def _extent(shots: list[Shot]) -> float:
    centres = np.array([-shot.w2c[:3, :3].T @ shot.w2c[:3, 3] for shot in shots])
    return float(np.linalg.norm(np.ptp(centres, axis=0))) or 1.0


def _stands_still(shots: list[Shot], extent: float) -> bool:
    unit = np.ones((4, 4))
    unit[:3, 3] = extent
    first = shots[0]
    return all(
        shot.lens == first.lens and np.abs((shot.w2c - first.w2c) / unit).max() < _STILL
        for shot in shots
    )


def _lens(model: str, size: tuple[int, int], values: list[float], where: str) -> Lens:
    if model not in _MODELS:
        raise CaptureError(
            f"{where}: the camera model {model} is not read ({', '.join(_MODELS)} are). Undistort "
            "the pictures with COLMAP's image_undistorter."
        )
    order = _MODELS[model][1]
    count = len(order.split())
    if len(values) != count:
        raise CaptureError(f"{where}: {model} has {count} parameters, found {len(values)}.")
    if min(size) < 1 or max(size) > 100_000:
        raise CaptureError(f"{where}: the image size is {size[0]}x{size[1]}.")
    if not np.isfinite(values).all():
        raise CaptureError(f"{where}: the parameters contain NaN or infinity.")
    # One focal length may stand for both.
    full = [values[0], *values] if order.startswith("f ") else values
    fx, fy, cx, cy = full[:4]
    distortion = np.zeros(8)
    distortion[: len(full) - 4] = full[4:]
    if distortion[5:].any():
        raise CaptureError(
            f"{where}: {model} uses k4 to k6, which are not read. Undistort the pictures with "
            "COLMAP's image_undistorter."
        )
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    return Lens(K, distortion[:5], *size)


def _pose(quaternion: list[float], translation: list[float], where: str) -> NDArray[np.float64]:
    """[4, 4] from a Hamilton quaternion w x y z."""
    q = np.array(quaternion, float)
    length = np.linalg.norm(q)
    if not np.isfinite([*quaternion, *translation]).all() or not 0.5 < length < 2:
        raise CaptureError(f"{where}: the pose is not finite, or its quaternion no rotation.")
    w, x, y, z = q / length
    w2c = np.eye(4)
    w2c[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    w2c[:3, 3] = translation
    return w2c


# text --------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are no comment; empty ones count in images.txt."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path} is not a readable text file ({error}).") from None
    return [(n, line) for n, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]


def _text_lenses(path: Path) -> dict[int, Lens]:
    lenses = {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = line.split()
        try:
            name, model, size = int(parts[0]), parts[1], (int(parts[2]), int(parts[3]))
            values = [float(each) for each in parts[4:]]
        except (ValueError, IndexError):
            raise CaptureError(
                f"{where}: expected CAMERA_ID MODEL WIDTH HEIGHT PARAMETERS, found {line[:60]!r}."
            ) from None
        if name in lenses:
            raise CaptureError(f"{where}: camera {name} is there twice.")
        lenses[name] = _lens(model, size, values, where)
    return lenses


def _text_shots(path: Path) -> list[Shot]:
    """Every second line is the image's points, possibly empty."""
    lines = _lines(path)
    while lines and not lines[0][1].strip():
        lines.pop(0)
    shots = []
    for number, line in lines[::2]:
        if not line.strip():
            continue
        parts = line.split(maxsplit=9)
        where = f"{path}, line {number}"
        try:
            values = [float(each) for each in parts[1:8]]
            lens, name = int(parts[8]), parts[9].strip()
        except (ValueError, IndexError):
            raise CaptureError(
                f"{where}: expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, found "
                f"{line[:60]!r}."
            ) from None
        shots.append(Shot(name, lens, _pose(values[:4], values[4:], where)))
    return shots


# binary ------------------------------------------------------------------------------------------


class _Bytes:
    """A binary file read from front to back; what is not there is a sentence."""

    def __init__(self, path: Path) -> None:
        self.path, self._at = path, 0
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise CaptureError(f"{path} is larger than any model that is read. Check the file.")
            self._data = path.read_bytes()
        except OSError as error:
            raise CaptureError(f"{path} cannot be read ({error.strerror}).") from None

    def take(self, layout: str) -> tuple:
        size = struct.calcsize(f"<{layout}")
        self.need(size)
        values = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += size
        return values

    def need(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise CaptureError(
                f"{self.path} is truncated or damaged: at byte {self._at} of {len(self._data)} "
                f"{size} more are expected. Copy it again."
            )

    def skip(self, size: int) -> None:
        self.need(size)
        self._at += size

    def text(self) -> str:
        end = self._data.find(b"\0", self._at, self._at + 4096)
        if end < 0:
            raise CaptureError(
                f"{self.path} is truncated or damaged: at byte {self._at} a name has no end. Copy "
                "it again."
            )
        name = self._data[self._at : end].decode("utf-8", "replace")
        self._at = end + 1
        return name

    def count(self, least: int) -> int:
        """A number of items of at least so many bytes each, which the file must be able to hold."""
        (count,) = self.take("Q")
        self.need(count * least)
        return count


def _binary_lenses(path: Path) -> dict[int, Lens]:
    file = _Bytes(path)
    lenses = {}
    for _ in range(file.count(24)):
        name, model, width, height = file.take("iiQQ")
        if model not in _NUMBERED:
            raise CaptureError(
                f"{path}: camera {name} has model number {model}, which is not read "
                f"({', '.join(_MODELS)} are). Undistort the pictures with COLMAP's "
                "image_undistorter."
            )
        title, count = _NUMBERED[model]
        if name in lenses:
            raise CaptureError(f"{path}: camera {name} is there twice.")
        values = list(file.take(f"{count}d"))
        lenses[name] = _lens(title, (width, height), values, f"{path}, camera {name}")
    return lenses


def _binary_shots(path: Path) -> list[Shot]:
    file = _Bytes(path)
    shots = []
    for _ in range(file.count(73)):
        number, *values, lens = file.take("i7di")
        name = file.text()
        file.skip(24 * file.count(24))  # the points that it shows
        pose = _pose(values[:4], values[4:], f"{path}, image {number}")
        shots.append(Shot(name, lens, pose))
    return shots
