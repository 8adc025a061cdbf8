"""``transforms.json`` of VHAP, GaussianAvatars and nerfstudio.

One entry per picture: ``file_path``, ``transform_matrix`` (camera to world, OpenGL axes: y up, the
camera looks along -z) and intrinsics, of the entry or of the whole file. VHAP and GaussianAvatars
add the timestep and the camera of each picture, ``fg_mask_path`` and ``flame_param_path``; a union
of several captures reads its pictures from ``../<source>/``, and each source is a sequence. In a
plain nerfstudio file nothing says what belongs together: it is taken for one moment, every picture
of it for a camera of its own.

OpenGL to OpenCV turns the camera's y and z axes: ``w2c = (c2w @ diag(1, -1, -1, 1))^-1``. Pixels
are as this project counts them (the first one's centre at (0.5, 0.5)).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera
from gha_core.capture.capture import Capture, Options
from gha_core.capture.files import check_name, inside, read_json, read_matrix
from gha_core.capture.rig import Found, RigCapture
from gha_core.capture.scale import at_one_metre
from gha_core.capture.streams import PictureFiles
from gha_core.capture.tracked import TrackedFace, TrackedFaces, read_flame_frame
from gha_core.errors import CaptureError

NAME = "transforms"
WHAT = "transforms.json of VHAP, GaussianAvatars or nerfstudio"
PARTS = ("transforms_train.json", "transforms_val.json", "transforms_test.json")
SEQUENCE = "sequence"
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_MOVED = 1e-4  # a camera whose matrix changes by more than this moves
_MOST_TIMESTEP = 10_000_000


def detect(path: Path) -> bool:
    return any((path / name).is_file() for name in ("transforms.json", *PARTS))


def read(path: Path, options: Options) -> Capture:
    whole = path / "transforms.json"
    files = [whole] if whole.is_file() else [path / n for n in PARTS if (path / n).is_file()]
    content = _Content(path)
    held_out: dict[str, set[str]] = {}
    for file in files:
        held_out[file.name] = content.add(file)
    notes = []
    if not content.timed:
        notes.append("No picture names its timestep: all are taken for one moment.")
        content.cameras, factor = at_one_metre(content.cameras)
        notes.append(factor)
    train = held_out.get(PARTS[0], set())
    for name in PARTS[1:]:
        others = sorted(held_out.get(name, set()) - train)
        if train and others:
            listed = " ".join(f"--test-camera {each}" for each in others)
            notes.append(f"{name} holds cameras out; to do the same, add it with: {listed}.")
    return RigCapture(
        Found(
            format=NAME,
            path=path,
            calibration=files[0],
            cameras=content.cameras,
            pictures=_streams(content.pictures),
            place="a picture of {camera} in transforms.json",
            mattes=_streams(content.masks),
            tracking=_tracking(content.flame, files[0]),
            optional=True,
            notes=notes,
        ),
        options,
    )


@dataclass
class _Content:
    """What the entries of one or more files say, by (sequence, camera) and timestep."""

    root: Path
    cameras: dict[str, Camera] = field(default_factory=dict)
    pictures: dict[tuple[str, str], dict[int, Path]] = field(default_factory=dict)
    masks: dict[tuple[str, str], dict[int, Path]] = field(default_factory=dict)
    flame: dict[tuple[str, int], Path] = field(default_factory=dict)
    timed: bool = False

    def add(self, file: Path) -> set[str]:
        """Take over all entries; returns the names of their cameras.

        Raises:
            CaptureError: an entry lacks a part, leads out of the capture, or contradicts another.
        """
        content = read_json(file)
        entries = content.get("frames")
        if not isinstance(entries, list) or not entries:
            raise CaptureError(f"{file} has no 'frames', the list of pictures. Export it again.")
        names = set()
        for index, entry in enumerate(entries):
            where = f"{file}, frame {index}"
            if not isinstance(entry, Mapping):
                raise CaptureError(f"{where}: found {str(entry)[:40]!r}, expected an object.")
            names.add(self._add(entry, {**content, **entry}, where))
        return names

    def _add(self, entry: Mapping[str, Any], values: Mapping[str, Any], where: str) -> str:
        path = _file(self.root, entry.get("file_path"), where)
        timestep = entry.get("timestep_index", entry.get("time_index"))
        name = entry.get("camera_id", entry.get("camera_index"))
        self.timed |= timestep is not None
        if timestep is None:
            timestep, name = 0, _plain_name(str(entry["file_path"]))
        elif isinstance(timestep, bool) or not isinstance(timestep, int):
            raise CaptureError(f"{where}: timestep_index {timestep!r} is not a whole number.")
        if not 0 <= timestep < _MOST_TIMESTEP:
            raise CaptureError(f"{where}: timestep_index {timestep} is out of range.")
        # A video of one camera need not name it.
        name = check_name(str("camera" if name is None else name), where)
        sequence = self._sequence(str(entry["file_path"]))
        camera = _camera(name, values, where)
        known = self.cameras.setdefault(name, camera)
        _check_same(known, camera, where)
        pictures = self.pictures.setdefault((sequence, name), {})
        if pictures.setdefault(timestep, path) != path:
            raise CaptureError(
                f"{where}: {path} and {pictures[timestep]} are both of camera {name} at timestep "
                f"{timestep} of sequence {sequence}. Keep one."
            )
        if entry.get("fg_mask_path"):
            mask = _file(self.root, entry["fg_mask_path"], where)
            self.masks.setdefault((sequence, name), {})[timestep] = mask
        if entry.get("flame_param_path"):
            flame = _file(self.root, entry["flame_param_path"], where)
            self.flame[sequence, timestep] = flame
        return name

    def _sequence(self, name: str) -> str:
        """The source's folder in a union, else the one name."""
        parts = PurePosixPath(os.path.normpath(name.replace("\\", "/"))).parts
        return parts[1] if parts[0] == ".." and len(parts) > 2 else SEQUENCE


def _file(root: Path, name: Any, where: str) -> Path:
    """A file of the capture, or of a capture that lies beside it and is named as a source."""
    root = root.resolve()
    if isinstance(name, str) and name.startswith("../"):
        path = inside(root.parent, f"{root.name}/{name}", where)
        source = root.parent / PurePosixPath(os.path.normpath(name)).parts[1]
        if not detect(source):
            raise CaptureError(
                f"{where}: the file {name!r} lies outside {root}, in {source}, which has no "
                "transforms.json. Only files of the capture and of its sources are read."
            )
        return Path(os.path.normpath(path))
    return Path(os.path.normpath(inside(root, name, where)))


def _plain_name(file: str) -> str:
    """A camera's name from its picture's, ``images/frame_00001.jpg`` -> ``frame_00001``."""
    path = PurePosixPath(os.path.normpath(file.replace("\\", "/")))
    parts = [part for part in (*path.parts[:-1], path.stem) if part not in ("..", "/", "images")]
    return re.sub(r"[^A-Za-z0-9._+-]", "_", "_".join(parts))


def _camera(name: str, values: Mapping[str, Any], where: str) -> Camera:
    model = values.get("camera_model", "OPENCV")
    if "FISHEYE" in str(model).upper() or str(model).upper() in ("EQUIRECTANGULAR", "SPHERICAL"):
        raise CaptureError(
            f"{where}: the camera model {model} is not read. Undistort the pictures."
        )
    width, height = (_number(values, key, where) for key in ("w", "h"))
    if width < 1 or height < 1 or width > 1e5 or height > 1e5:
        raise CaptureError(f"{where}: the picture's size is {width:g}x{height:g}.")
    if "fl_x" in values:
        fx = _number(values, "fl_x", where)
        fy = _number(values, "fl_y", where) if "fl_y" in values else fx
    elif "camera_angle_x" in values:
        fx = fy = width / 2 / np.tan(_number(values, "camera_angle_x", where) / 2)
    else:
        raise CaptureError(f"{where}: there is no focal length (fl_x or camera_angle_x).")
    cx = _number(values, "cx", where) if "cx" in values else width / 2
    cy = _number(values, "cy", where) if "cy" in values else height / 2
    lens = np.array(
        [_number(values, key, where) if key in values else 0.0 for key in
         ("k1", "k2", "p1", "p2", "k3")]
    )  # fmt: skip
    c2w = read_matrix(values.get("transform_matrix"), f"{where}, transform_matrix", (4, 4))
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    return Camera(name, K, opencv_w2c(c2w, where), int(width), int(height), lens)


def opencv_w2c(c2w: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """[4, 4] OpenGL camera-to-world to OpenCV world-to-camera."""
    if not np.isfinite(c2w).all():
        raise CaptureError(f"{where}: transform_matrix contains NaN or infinity.")
    try:
        return np.asarray(np.linalg.inv(c2w @ _OPENGL), float)
    except np.linalg.LinAlgError:
        raise CaptureError(f"{where}: transform_matrix is singular.") from None


def _number(values: Mapping[str, Any], key: str, where: str) -> float:
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise CaptureError(f"{where}: {key} is {value!r}; it must be a finite number.")
    return float(value)


def _check_same(known: Camera, camera: Camera, where: str) -> None:
    if (known.width, known.height) != (camera.width, camera.height) or not (
        np.allclose(known.K, camera.K, atol=0.01)
        and np.allclose(known.w2c, camera.w2c, atol=_MOVED)
        and np.allclose(known.distortion, camera.distortion, atol=1e-6)
    ):
        raise CaptureError(
            f"{where}: camera {camera.name} has another calibration than in an earlier frame. "
            "Cameras must stand still, for the head carries the motion; give every camera its own "
            "camera_id."
        )


def _streams(
    pictures: Mapping[tuple[str, str], Mapping[int, Path]],
) -> dict[str, dict[str, PictureFiles]]:
    found: dict[str, dict[str, PictureFiles]] = {}
    for (sequence, camera), files in pictures.items():
        found.setdefault(sequence, {})[camera] = PictureFiles(files)
    return found


def _tracking(files: Mapping[tuple[str, int], Path], source: Path) -> TrackedFaces | None:
    if not files:
        return None

    def frames() -> Iterator[tuple[tuple[str, int], TrackedFace]]:
        for key, path in sorted(files.items()):
            yield key, read_flame_frame(path)[0]

    _, shape = read_flame_frame(min(files.items())[1])
    return TrackedFaces("FLAME", source, shape, dict(frames()))
