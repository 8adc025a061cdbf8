"""NeRSemble v1: one folder for all participants, its files sorted by kind first.

::

    camera_params/<ID>/camera_params.json
    sequence_<SEQUENCE>_part-<k>/<ID>/<SEQUENCE>/cam_<serial>.mp4
    sequence_BACKGROUND_part-1/<ID>/BACKGROUND/image_<serial>.jpg
    color_correction/<ID>/<serial>.npy       optional: affine, rgb @ A[:3, :3] + A[:3, 3]

The calibration is that of v2. A capture is one person, so where the folder holds several the path
to give is ``camera_params/<ID>``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.capture.capture import Capture, Options
from gha_core.capture.nersemble import BACKGROUND, calibrated_cameras, serials
from gha_core.capture.rig import Correction, Found, RigCapture
from gha_core.errors import CaptureError

NAME = "nersemble-v1"
WHAT = "NeRSemble v1: the folder with camera_params and sequence_*, or camera_params/<ID> in it"


def detect(path: Path) -> bool:
    return (path / "camera_params").is_dir() or (
        path.resolve().parent.name == "camera_params" and (path / "camera_params.json").is_file()
    )


def read(path: Path, options: Options) -> Capture:
    root, person = _person(path)
    pictures: dict[str, dict[str, Path]] = {}
    for folder in sorted(root.glob(f"sequence_*/{person}/*")):
        if folder.is_dir() and folder.name != BACKGROUND:
            # A large sequence is spread over several parts.
            pictures.setdefault(folder.name, {}).update(serials(folder, "cam_"))
    plates = next(iter(sorted(root.glob(f"sequence_{BACKGROUND}*/{person}/{BACKGROUND}"))), None)
    notes: list[str] = []
    calibration = root / "camera_params" / person / "camera_params.json"
    return RigCapture(
        Found(
            format=NAME,
            path=root,
            calibration=calibration,
            cameras=calibrated_cameras(calibration, pictures, notes),
            pictures=pictures,
            place=f"sequence_{{sequence}}_part-1/{person}/{{sequence}}/cam_{{camera}}.mp4",
            backgrounds=serials(plates, "image_", [".jpg", ".jpeg", ".png"]) if plates else {},
            correction=_corrections(root / "color_correction" / person),
            notes=notes,
        ),
        options,
    )


def _person(path: Path) -> tuple[Path, str]:
    """The folder of the data set, and whose files in it."""
    if path.resolve().parent.name == "camera_params":
        return path.resolve().parents[1], path.resolve().name
    people = sorted(each.parent.name for each in path.glob("camera_params/*/camera_params.json"))
    if len(people) == 1:
        return path, people[0]
    if not people:
        raise CaptureError(
            f"{path} has no camera_params/<ID>/camera_params.json; without calibration nothing can "
            "be reconstructed. Copy it from the dataset."
        )
    raise CaptureError(
        f"{path} holds {len(people)} participants ({', '.join(people)}). Add them one by one, e.g. "
        f"{path / 'camera_params' / people[0]}."
    )


def _corrections(folder: Path) -> Callable[[str], Correction | None]:
    if not folder.is_dir():
        return lambda _: None

    def correction(serial: str) -> Correction | None:
        path = folder / f"{serial}.npy"
        if not path.is_file():
            raise CaptureError(
                f"{path} is missing: the other cameras have a colour correction. Add it, or set "
                "ingest.colour_correction: false."
            )
        return partial(affine_correction, read_affine(path))

    return correction


def read_affine(path: Path) -> NDArray[np.float64]:
    """[3, 4] or [4, 4] from an npy file of plain numbers.

    Raises:
        CaptureError: it is none, or of another shape, or not finite.
    """
    try:
        matrix = np.asarray(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise CaptureError(f"{path} is not a readable npy file ({error}). Copy it again.") from None
    if matrix.shape not in ((3, 4), (4, 4)) or not np.isfinite(matrix).all():
        raise CaptureError(
            f"{path}: the colour correction has shape {'x'.join(map(str, matrix.shape))}; it must "
            "be 3x4 or 4x4 finite numbers."
        )
    return matrix


def affine_correction(matrix: NDArray[np.float64], image: Image) -> Image:
    """``rgb @ A[:3, :3] + A[:3, 3]`` of [H, W, 3] uint8 sRGB counted 0..1, clipped."""
    # 255 levels: only the offset has to be scaled.
    mixed = image.astype(np.float32) @ matrix[:3, :3].astype(np.float32)
    return np.rint(np.clip(mixed + 255 * matrix[:3, 3].astype(np.float32), 0, 255)).astype(np.uint8)
