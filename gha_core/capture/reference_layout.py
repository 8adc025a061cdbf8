"""The folder layout of the published Gaussian head avatar code's preprocessing.

::

    images/<timestep>/image_<cam>.jpg        also mask_<cam>.jpg and visible_<cam>.jpg
    cameras/<timestep>/camera_<cam>.npz      extrinsic 3x4 (OpenCV world to camera), intrinsic 3x3
    background/image_<cam>.jpg               optional: the empty scene
    params/<timestep>/params.npz             optional: pose 6 (axis-angle, translation), scale, ...

The pictures are crops already; ``visible`` marks their padding, and the matte is empty there. The
``_lowres`` pictures and ``lmk_3d.npy`` are not read: both are made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gha_core.cameras import Camera
from gha_core.capture.capture import Capture, Options
from gha_core.capture.files import check_name
from gha_core.capture.rig import Found, RigCapture
from gha_core.capture.streams import PictureFiles
from gha_core.capture.tracked import TrackedFace, TrackedFaces, read_npz
from gha_core.errors import CaptureError

NAME = "reference"
WHAT = "the layout images/<timestep>/image_<cam>.jpg with cameras/<timestep>/camera_<cam>.npz"
SEQUENCE = "sequence"


def detect(path: Path) -> bool:
    return any(path.glob("cameras/*/camera_*.npz"))


def read(path: Path, options: Options) -> Capture:
    steps = _timesteps(path / "images")
    pictures = _by_camera(steps, "image_")
    cameras = {name: _camera(path, name, files) for name, files in pictures.items()}
    mattes = _by_camera(steps, "mask_")
    visible = _by_camera(steps, "visible_")
    plates = {
        each.stem.removeprefix("image_"): each
        for each in sorted((path / "background").glob("image_*.jpg"))
        if "lowres" not in each.stem
    }
    return RigCapture(
        Found(
            format=NAME,
            path=path,
            calibration=path / "cameras",
            cameras=cameras,
            pictures={SEQUENCE: {name: PictureFiles(each) for name, each in pictures.items()}},
            place="images/<timestep>/image_{camera}.jpg",
            mattes={
                SEQUENCE: {
                    name: PictureFiles(each, limits=visible.get(name, {}))
                    for name, each in mattes.items()
                    if name in cameras
                }
            },
            backgrounds=plates,
            tracking=_tracking(path, steps),
        ),
        options,
    )


def _timesteps(folder: Path) -> dict[int, Path]:
    """The folders of pictures by their number."""
    found: dict[int, Path] = {}
    for each in sorted(folder.glob("*")):
        if each.is_dir() and each.name.isdecimal() and len(each.name) < 10:
            if int(each.name) in found:
                raise CaptureError(f"{found[int(each.name)]} and {each} are the same timestep.")
            found[int(each.name)] = each
    if not found:
        raise CaptureError(f"{folder} has no folder 0000, 0001, … of pictures. Add them.")
    return dict(sorted(found.items()))


def _by_camera(steps: Mapping[int, Path], prefix: str) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for timestep, folder in steps.items():
        for path in sorted(folder.glob(f"{prefix}*.jpg")):
            name = path.stem.removeprefix(prefix)
            if not name.startswith("lowres"):
                found.setdefault(check_name(name, str(path)), {})[timestep] = path
    return found


def _camera(path: Path, name: str, pictures: Mapping[int, Path]) -> Camera:
    """The one calibration that all timesteps of a camera have; of the pictures' size."""
    known: Camera | None = None
    for timestep in pictures:
        file = path / "cameras" / pictures[timestep].parent.name / f"camera_{name}.npz"
        parts = read_npz(file)
        if not {"extrinsic", "intrinsic"} <= parts.keys():
            raise CaptureError(f"{file} must have 'extrinsic' and 'intrinsic'; it has {[*parts]}.")
        extrinsic, K = parts["extrinsic"], parts["intrinsic"]
        if extrinsic.shape not in ((3, 4), (4, 4)) or K.shape != (3, 3):
            raise CaptureError(
                f"{file}: extrinsic is {extrinsic.shape} and intrinsic {K.shape}; expected 3x4 and "
                "3x3."
            )
        w2c = np.eye(4)
        w2c[:3] = extrinsic[:3]
        camera = Camera(name, K, w2c, 0, 0)
        known = known or camera
        same = np.allclose(known.K, K, atol=0.01) and np.allclose(known.w2c, w2c, atol=1e-4)
        if not same and np.isfinite(w2c).all() and np.isfinite(K).all():
            raise CaptureError(
                f"{file}: camera {name} moves: its calibration differs from that of the first "
                "timestep. Cameras must stand still."
            )
        if not same:
            raise CaptureError(f"{file}: the calibration of camera {name} contains NaN.")
    assert known is not None
    return known


def _tracking(path: Path, steps: Mapping[int, Path]) -> TrackedFaces | None:
    frames: dict[tuple[str, int], TrackedFace] = {}
    identity = np.zeros(0)
    for timestep, folder in steps.items():
        file = path / "params" / folder.name / "params.npz"
        if not file.is_file():
            continue
        parts = read_npz(file)
        pose = parts.get("pose", np.zeros(0)).ravel()
        scale = parts.get("scale", np.ones(1)).ravel()
        if pose.size != 6 or scale.size != 1 or not np.isfinite([*pose, *scale]).all():
            raise CaptureError(f"{file} must have 'pose' of 6 and 'scale' of 1 finite numbers.")
        identity = parts.get("id_coeff", identity).ravel()
        coefficients = {n: parts[n].ravel() for n in ("exp_coeff",) if n in parts}
        turn, place = pose[:3], pose[3:]
        face = TrackedFace(turn, turn, place, float(scale[0]), coefficients)
        frames[SEQUENCE, timestep] = face
    return TrackedFaces("BFM", path / "params", identity, frames) if frames else None
