"""The project's own format for a calibrated rig; docs/captures.md describes it to users.

::

    cameras.json                                 checked against rig.schema.json beside this file
    videos/<camera>.mp4                          or videos/<sequence>/<camera>.mp4
    images/<camera>/<frame>.jpg                  or images/<sequence>/<camera>/<frame>.jpg
    masks/                                       optional: like videos/ or images/
    backgrounds/<camera>.jpg                     optional: the empty scene
    tracking/<sequence>.npz                      optional: FLAME, as in the NeRSemble benchmark

``cameras.json`` has OpenCV world-to-camera matrices in metres and intrinsics whose first pixel has
its centre at (0.5, 0.5), as this project stores them: nothing is converted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from gha_core.cameras import Camera
from gha_core.capture.capture import Capture, Options
from gha_core.capture.files import read_json
from gha_core.capture.rig import Found, RigCapture
from gha_core.capture.streams import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    PictureFiles,
    Source,
    numbered,
    pictures_in,
)
from gha_core.capture.tracked import TrackedFaces, read_flame_sequence
from gha_core.errors import CaptureError

NAME = "rig"
WHAT = "any calibrated rig: cameras.json with videos/ or images/ (docs/captures.md)"
SCHEMA = Path(__file__).with_name("rig.schema.json")
CALIBRATION = "cameras.json"
SEQUENCE = "sequence"  # of a capture that names none


def detect(path: Path) -> bool:
    return (path / CALIBRATION).is_file() and any(
        (path / name).is_dir() for name in ("videos", "images")
    )


def read(path: Path, options: Options) -> Capture:
    content = read_json(path / CALIBRATION)
    check(content, path / CALIBRATION)
    cameras = {name: _camera(name, each) for name, each in content["cameras"].items()}
    rate = float(content.get("fps", 25.0))
    folder = "videos" if (path / "videos").is_dir() else "images"
    pictures = _sources(path / folder, rate, cameras)
    suffix = "{camera}.mp4" if folder == "videos" else "{camera}/"
    below = "" if set(pictures) <= {SEQUENCE} else "{sequence}/"
    return RigCapture(
        Found(
            format=NAME,
            path=path,
            calibration=path / CALIBRATION,
            cameras=cameras,
            pictures=pictures,
            place=f"{folder}/{below}{suffix}",
            mattes=_sources(path / "masks", rate, cameras) if (path / "masks").is_dir() else {},
            backgrounds=_files(path / "backgrounds", PICTURE_SUFFIXES),
            tracking=_tracking(path),
        ),
        options,
    )


def check(content: Mapping[str, Any], path: Path) -> None:
    """Hold ``cameras.json`` against its schema.

    Raises:
        CaptureError: it does not fit; the sentence names the place in it.
    """
    error = jsonschema.exceptions.best_match(_validator().iter_errors(content))
    if error is None:
        return
    where = ".".join(map(str, error.absolute_path)) or "the file"
    raise CaptureError(
        f"{path}: at {where}: {error.message[:200]}. The format is described in docs/captures.md."
    )


@lru_cache(maxsize=1)
def _validator() -> Any:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def _camera(name: str, entry: Mapping[str, Any]) -> Camera:
    distortion = np.zeros(5)
    given = entry.get("distortion", [])
    distortion[: len(given)] = given
    K, w2c = np.array(entry["K"], float), np.array(entry["w2c"], float)
    return Camera(name, K, w2c, entry["width"], entry["height"], distortion)


def _sources(
    folder: Path, rate: float, cameras: Mapping[str, Camera]
) -> dict[str, dict[str, Source]]:
    """The sources of every sequence and camera; one level of folders more names sequences."""
    flat = _cameras_in(folder, rate, cameras)
    if flat:
        return {SEQUENCE: flat}
    inside = {
        each.name: _cameras_in(each, rate, cameras)
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".")
    }
    return {name: each for name, each in inside.items() if each}


def _cameras_in(folder: Path, rate: float, cameras: Mapping[str, Camera]) -> dict[str, Source]:
    """Videos by their stem, or folders of pictures by their name.

    Raises:
        CaptureError: a camera has two videos, or a folder of a camera without pictures.
    """
    found: dict[str, Source] = dict(_files(folder, VIDEO_SUFFIXES))
    for each in sorted(folder.iterdir()):
        if not each.is_dir() or each.name.startswith("."):
            continue
        files = pictures_in(each)
        if files:
            found[each.name] = PictureFiles(numbered(files, str(each)), rate)
        elif each.name in cameras:
            raise CaptureError(f"{each} holds no pictures of camera {each.name}. Add them.")
    return found


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in suffixes and path.is_file():
            if path.stem in found:
                raise CaptureError(
                    f"{found[path.stem]} and {path} are both of camera {path.stem}. Keep one."
                )
            found[path.stem] = path
    return found


def _tracking(path: Path) -> TrackedFaces | None:
    parts = [read_flame_sequence(each, each.stem) for each in sorted(path.glob("tracking/*.npz"))]
    if not parts:
        return None
    frames = {key: face for part in parts for key, face in part.frames.items()}
    return TrackedFaces("FLAME", path / "tracking", parts[0].identity, frames)
