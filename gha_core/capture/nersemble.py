"""NeRSemble v2 and the trees of its benchmark: the folder of one participant.

::

    <ID>/calibration/camera_params.json         world_2_cam, intrinsics, optional height and width
    <ID>/calibration/color_calibration.json     optional
    <ID>/sequences/<SEQUENCE>/images/cam_<serial>.mp4
    <ID>/sequences/<SEQUENCE>/alpha_maps/cam_<serial>.mp4           benchmark: mattes
    <ID>/sequences/<SEQUENCE>/tracking/flame2023_tracking_v2.npz    benchmark: tracking
    <ID>/sequences/BACKGROUND/image_<serial>.jpg

``world_2_cam`` is OpenCV world-to-camera in metres, as this project stores it. The intrinsics are
read as having the image's corner at (0, 0), i.e. the first pixel's centre at (0.5, 0.5), which
makes scaling by the real frame size exact; had they been calibrated with that centre at (0, 0), the
error would be half a pixel of the 2200 x 3208 sensor.

Without height and width the intrinsics are those of the sensor, unless they fit the videos better:
in the benchmark's square crops the principal point is the middle of the crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera
from gha_core.capture.capture import Capture, Options
from gha_core.capture.colour import correct_colour, polynomial_expansion
from gha_core.capture.files import read_json, read_matrix
from gha_core.capture.rig import Correction, Found, RigCapture
from gha_core.capture.tracked import TrackedFaces, read_flame_sequence
from gha_core.capture.video import probe
from gha_core.errors import CaptureError

NAME = "nersemble"
WHAT = "NeRSemble v2 or its benchmark: one participant's folder with calibration and videos"

SENSOR_HEIGHT, SENSOR_WIDTH = 3208, 2200
CALIBRATION = "calibration/camera_params.json"
COLOUR_CALIBRATION = "calibration/color_calibration.json"
BACKGROUND = "BACKGROUND"


def detect(path: Path) -> bool:
    return (
        any(path.glob("sequences/*/images"))
        or any(path.glob("*/sequences/*/images"))
        or (path / CALIBRATION).is_file()
    )


def read(path: Path, options: Options) -> Capture:
    """Open one participant.

    Args:
        path: the ``<ID>`` folder, or its parent if it holds exactly one.
    """
    root = participant_folder(path)
    folders = sorted(each for each in root.glob("sequences/*/images"))
    pictures = {
        each.parent.name: serials(each, "cam_", [".mp4"])
        for each in folders
        if each.parent.name != BACKGROUND
    }
    mattes = {name: serials(root / f"sequences/{name}/alpha_maps", "cam_") for name in pictures}
    notes: list[str] = []
    return RigCapture(
        Found(
            format=NAME,
            path=root,
            calibration=root / CALIBRATION,
            cameras=calibrated_cameras(root / CALIBRATION, pictures, notes),
            pictures=pictures,
            place="sequences/{sequence}/images/cam_{camera}.mp4",
            mattes=mattes,
            backgrounds=serials(
                root / "sequences" / BACKGROUND, "image_", [".jpg", ".jpeg", ".png"]
            ),
            correction=_corrections(root / COLOUR_CALIBRATION),
            tracking=_tracking(root),
            # The benchmark keeps the videos of its test cameras to itself.
            optional=any(mattes.values()),
            notes=notes,
        ),
        options,
    )


def serials(folder: Path, prefix: str, suffixes: list[str] | None = None) -> dict[str, Any]:
    """The files ``<prefix><serial>.*`` of a folder by serial."""
    return {
        path.stem.removeprefix(prefix): path
        for path in sorted(folder.glob(f"{prefix}*"))
        if path.suffix.lower() in (suffixes or [".mp4"])
    }


def participant_folder(path: Path) -> Path:
    """``path`` itself if it is a participant's folder, or the only one in it.

    Raises:
        CaptureError: it holds none or several participants.
    """
    if (path / "calibration").is_dir() or (path / "sequences").is_dir():
        return path
    inside = sorted(each.parent for each in path.glob("*/sequences")) if path.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise CaptureError(
            f"{path} holds {len(inside)} participants ({', '.join(each.name for each in inside)}). "
            f"Add them one by one, e.g. {inside[0]}."
        )
    raise CaptureError(
        f"{path} is not a NeRSemble v2 participant: it has no folder 'sequences' or 'calibration'. "
        "Give the folder that is named by the participant's id."
    )


def read_calibration(path: Path) -> tuple[Camera, ...]:
    """All cameras of a ``camera_params.json``, sorted by serial; of size 0 x 0 if it names none.

    Raises:
        CaptureError: the file is missing, is not JSON, lacks a part, or has a matrix of another
            shape. What the numbers mean is checked by :func:`gha_core.cameras.check_camera`.
    """
    if not path.exists():
        raise CaptureError(
            f"The calibration {path} is missing; without it nothing can be reconstructed. Copy it "
            "from the dataset."
        )
    content = read_json(path)
    poses, intrinsics = content.get("world_2_cam"), content.get("intrinsics")
    if not isinstance(poses, dict) or not poses or intrinsics is None:
        raise CaptureError(
            f"{path} must have 'world_2_cam' (serial -> 4x4) and 'intrinsics' (3x3, or serial -> "
            f"3x3); it has: {', '.join(content) or 'nothing'}."
        )
    height, width = content.get("height", 0), content.get("width", 0)
    if not isinstance(height, int) or not isinstance(width, int):
        raise CaptureError(f"{path}: height {height!r} and width {width!r} must be whole numbers.")
    cameras = []
    for serial in sorted(poses):
        where = f"Camera {serial} in {path}"
        if isinstance(intrinsics, dict) and serial not in intrinsics:
            raise CaptureError(f"{where} has a pose but no intrinsics. Calibrate it again.")
        own = intrinsics[serial] if isinstance(intrinsics, dict) else intrinsics
        K = read_matrix(own, f"{where}, intrinsics", (3, 3))
        w2c = read_matrix(poses[serial], f"{where}, world_2_cam", (4, 4))
        cameras.append(Camera(serial, K, w2c, width, height))
    return tuple(cameras)


def calibrated_cameras(
    calibration: Path, pictures: Mapping[str, Mapping[str, Path]], notes: list[str]
) -> dict[str, Camera]:
    """The cameras of a ``camera_params.json`` with the size that their intrinsics are for; where
    the file names none, that of the sensor or of the videos, whichever fits, and a note."""
    cameras = {each.name: each for each in read_calibration(calibration)}
    first = next((each for files in pictures.values() for each in files.items()), None)
    if first is None or all(each.width and each.height for each in cameras.values()):
        return cameras
    serial, path = first
    size = np.array([SENSOR_WIDTH, SENSOR_HEIGHT])
    if serial in cameras:
        video = probe(path)
        shown, middle = np.array([video.width, video.height]), cameras[serial].K[:2, 2]
        if np.abs(middle / shown - 0.5).max() < np.abs(middle / size - 0.5).max():
            size = shown
            notes.append(
                f"{calibration.name} names no size; its intrinsics fit the videos' "
                f"{video.width}x{video.height} and were taken as they are."
            )
    width, height = map(int, size)
    return {name: Camera(name, each.K, each.w2c, width, height) for name, each in cameras.items()}


def _corrections(path: Path) -> Any:
    """The colour correction of every serial by ``color_calibration.json``."""
    if not path.exists():
        return lambda _: None
    content = read_json(path)

    def correction(serial: str) -> Correction | None:
        if serial not in content:
            raise CaptureError(
                f"{path} has no colour correction for camera {serial}. Add it, or set "
                "ingest.colour_correction: false."
            )
        matrix = read_matrix(content[serial], f"Camera {serial} in {path}")
        if matrix.ndim != 2 or matrix.shape[0] != 3 or not np.isfinite(matrix).all():
            raise CaptureError(
                f"Camera {serial} in {path}: the colour correction has shape "
                f"{'x'.join(map(str, matrix.shape))}; it must be 3 rows of finite numbers."
            )
        polynomial_expansion(np.zeros(3), matrix.shape[1])
        if np.array_equal(matrix, np.eye(3, matrix.shape[1])):
            return None
        return partial(_corrected, matrix)

    return correction


def _corrected(matrix: NDArray[np.float64], image: Any) -> Any:
    return correct_colour(image, matrix)


def _tracking(root: Path) -> TrackedFaces | None:
    """All sequences' tracking as one; their shape coefficients are of one person."""
    files = sorted(root.glob("sequences/*/tracking/flame*.npz"))
    parts = [read_flame_sequence(path, path.parents[1].name) for path in files]
    if not parts:
        return None
    frames = {key: face for part in parts for key, face in part.frames.items()}
    return TrackedFaces("FLAME", parts[0].source, parts[0].identity, frames)
