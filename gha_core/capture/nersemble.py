"""NeRSemble v2: the folder of one participant.

::

    <ID>/calibration/camera_params.json         world_2_cam, intrinsics, optional height and width
    <ID>/calibration/color_calibration.json     optional
    <ID>/sequences/<SEQUENCE>/images/cam_<serial>.mp4
    <ID>/sequences/BACKGROUND/image_<serial>.jpg

``world_2_cam`` is OpenCV world-to-camera in metres, as this project stores it. The intrinsics are
read as having the image's corner at (0, 0), i.e. the first pixel's centre at (0.5, 0.5), which
makes scaling by the real frame size exact; had they been calibrated with that centre at (0, 0), the
error would be half a pixel of the 2200 x 3208 sensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, check_camera
from gha_core.capture.capture import SequenceInfo, Timestep, matching
from gha_core.capture.colour import correct_colour, polynomial_expansion
from gha_core.capture.video import Video, probe, read_frames
from gha_core.errors import CaptureError

SENSOR_HEIGHT, SENSOR_WIDTH = 3208, 2200
CALIBRATION = "calibration/camera_params.json"
COLOUR_CALIBRATION = "calibration/color_calibration.json"
BACKGROUND = "BACKGROUND"
UnequalLength = Literal["fail", "shortest"]

# Rounding of a down-scaled video's size may change its aspect ratio by this much.
_ASPECT_TOLERANCE = 0.01


class NersembleCapture:
    """A :class:`gha_core.capture.Capture` of one NeRSemble v2 participant.

    Args:
        path: the ``<ID>`` folder, or its parent if it holds exactly one.
        sequences, cameras: shell-style patterns of the sequences and serials to use.
        unequal_length: what to do where the videos of a sequence differ in length.
        colour_correction: apply ``color_calibration.json`` where it exists.

    Raises:
        CaptureError: the calibration is missing or cannot be right, a camera has no video or a
            video no camera, videos are unreadable, truncated, of several sizes or lengths, a
            background has another shape than the videos, a pattern matches nothing.
    """

    format = "nersemble"

    def __init__(
        self,
        path: Path,
        sequences: Sequence[str] = ("*",),
        cameras: Sequence[str] = ("*",),
        unequal_length: UnequalLength = "fail",
        colour_correction: bool = True,
    ) -> None:
        self.path = participant_folder(Path(path))
        self.notes: list[str] = []
        self._unequal_length = unequal_length
        source = self.path / CALIBRATION
        self._calibrated = {camera.name: camera for camera in read_calibration(source)}
        self._chosen = matching(list(self._calibrated), cameras, "camera", source)
        for serial in self._chosen:
            check_camera(self._calibrated[serial], str(source))
        folder = self.path / "sequences"
        names = matching(_sequence_names(self.path), sequences, "sequence", folder)
        self._videos = {name: self._open(name) for name in names}
        self.cameras = self._scaled_cameras()
        self.sequences = tuple(self._sequence(name) for name in names)
        self._matrices = self._colour_matrices() if colour_correction else {}
        self._backgrounds = self._find_backgrounds()

    def frames(self, sequence: str, timesteps: range) -> Iterator[Timestep]:
        videos = self._videos[sequence]
        one_each = 1 if len(videos) > 1 else 0
        readers = {
            name: read_frames(video, timesteps, threads=one_each) for name, video in videos.items()
        }
        clock = videos[min(videos)]
        with ThreadPoolExecutor(min(len(videos), 16)) as pool:
            for index in timesteps:
                decoded = pool.map(next, readers.values())
                images = {name: image for name, (_, image) in zip(readers, decoded, strict=True)}
                yield Timestep(index, clock.seconds(index), images)

    def background(self, camera: str) -> Image | None:
        path = self._backgrounds.get(camera)
        if path is None:
            return None
        image = _read_photo(path)
        wanted = next(each for each in self.cameras if each.name == camera)
        if image.shape[:2] == (wanted.height, wanted.width):
            return image
        size = (wanted.width, wanted.height)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)

    def correct(self, camera: str, image: Image) -> Image:
        matrix = self._matrices.get(camera)
        return image if matrix is None else correct_colour(image, matrix)

    @property
    def colour_corrected(self) -> bool:
        return bool(self._matrices)

    def _open(self, sequence: str) -> dict[str, Video]:
        """The videos of a sequence by serial, one for each chosen camera."""
        folder = self.path / "sequences" / sequence / "images"
        files = {path.stem.removeprefix("cam_"): path for path in sorted(folder.glob("cam_*.mp4"))}
        for serial in sorted(files.keys() - self._calibrated.keys()):
            raise CaptureError(
                f"{files[serial]} is a video of camera {serial}, which "
                f"{self.path / CALIBRATION} does not calibrate (it has "
                f"{', '.join(self._calibrated)}). Add its calibration or remove the video."
            )
        for serial in self._chosen:
            if serial not in files:
                raise CaptureError(
                    f"Camera {serial} is calibrated but has no video in sequence {sequence}: "
                    f"{folder / f'cam_{serial}.mp4'} does not exist. Add it, or list the cameras "
                    "to use in ingest.cameras."
                )
        with ThreadPoolExecutor(8) as pool:
            opened = pool.map(probe, (files[serial] for serial in self._chosen))
            return dict(zip(self._chosen, opened, strict=True))

    def _scaled_cameras(self) -> tuple[Camera, ...]:
        """The chosen cameras at the size of their videos, which must be one per camera."""
        cameras, scaled = [], set()
        for serial in self._chosen:
            camera = self._calibrated[serial]
            videos = [each[serial] for each in self._videos.values()]
            width, height = videos[0].width, videos[0].height
            for video in videos:
                if (video.width, video.height) != (width, height):
                    raise CaptureError(
                        f"{video.path} is {video.width}x{video.height}, but {videos[0].path} is "
                        f"{width}x{height}. Give all videos of a camera one size."
                    )
            _check_aspect(camera, width, height, str(videos[0].path))
            if (width, height) != (camera.width, camera.height):
                scaled.add((camera.width, camera.height, width, height))
            cameras.append(camera.resized(width, height))
        self.notes += [
            f"The intrinsics are for {a}x{b} and were scaled to the videos' {c}x{d}."
            for a, b, c, d in sorted(scaled)
        ]
        return tuple(cameras)

    def _sequence(self, name: str) -> SequenceInfo:
        """The frames that all videos of a sequence have."""
        videos = list(self._videos[name].values())
        shortest = min(videos, key=lambda video: video.frames)
        longest = max(videos, key=lambda video: video.frames)
        if shortest.frames != longest.frames:
            found = (
                f"The videos of sequence {name} differ in length: {longest.path} has "
                f"{longest.frames} frames, {shortest.path} has {shortest.frames}."
            )
            if self._unequal_length == "fail":
                raise CaptureError(
                    f"{found} If they start together, set ingest.unequal_length: shortest; "
                    "otherwise cut them to the same moments."
                )
            self.notes.append(f"{found} Frames from {shortest.frames} on are left out.")
        return SequenceInfo(name, shortest.frames, shortest.rate)

    def _find_backgrounds(self) -> dict[str, Path]:
        folder = self.path / "sequences" / BACKGROUND
        files = {
            path.stem.removeprefix("image_"): path
            for path in sorted(folder.glob("image_*"))
            if path.suffix.lower() in (".jpg", ".jpeg", ".png")
        }
        for camera in self.cameras:
            if camera.name in files:
                height, width = _read_photo(files[camera.name]).shape[:2]
                _check_aspect(camera, width, height, f"the background {files[camera.name]}")
        missing = [camera.name for camera in self.cameras if camera.name not in files]
        if files and missing:
            self.notes.append(f"No background plate for camera {', '.join(missing)}.")
        return files

    def _colour_matrices(self) -> dict[str, NDArray[np.float64]]:
        path = self.path / COLOUR_CALIBRATION
        if not path.exists():
            return {}
        content = _read_json(path)
        matrices = {}
        for serial in self._chosen:
            if serial not in content:
                raise CaptureError(
                    f"{path} has no colour correction for camera {serial}. Add it, or set "
                    "ingest.colour_correction: false."
                )
            matrix = _matrix(content[serial], f"Camera {serial} in {path}")
            if matrix.ndim != 2 or matrix.shape[0] != 3 or not np.isfinite(matrix).all():
                raise CaptureError(
                    f"Camera {serial} in {path}: the colour correction has shape "
                    f"{'x'.join(map(str, matrix.shape))}; it must be 3 rows of finite numbers."
                )
            polynomial_expansion(np.zeros(3), matrix.shape[1])
            if not np.array_equal(matrix, np.eye(3, matrix.shape[1])):
                matrices[serial] = matrix
        return matrices


def participant_folder(path: Path) -> Path:
    """``path`` itself if it is a participant's folder, or the only one in it.

    Raises:
        CaptureError: it does not exist, or holds none or several participants.
    """
    if not path.exists():
        raise CaptureError(f"The capture {path} does not exist.")
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
    """All cameras of a ``camera_params.json``, sorted by serial.

    Raises:
        CaptureError: the file is missing, is not JSON, lacks a part, or has a matrix of another
            shape. What the numbers mean is checked by :func:`gha_core.cameras.check_camera`.
    """
    if not path.exists():
        raise CaptureError(
            f"The calibration {path} is missing; without it nothing can be reconstructed. Copy it "
            "from the dataset."
        )
    content = _read_json(path)
    poses, intrinsics = content.get("world_2_cam"), content.get("intrinsics")
    if not isinstance(poses, dict) or not poses or intrinsics is None:
        raise CaptureError(
            f"{path} must have 'world_2_cam' (serial -> 4x4) and 'intrinsics' (3x3, or serial -> "
            f"3x3); it has: {', '.join(content) or 'nothing'}."
        )
    height = content.get("height", SENSOR_HEIGHT)
    width = content.get("width", SENSOR_WIDTH)
    if not isinstance(height, int) or not isinstance(width, int):
        raise CaptureError(f"{path}: height {height!r} and width {width!r} must be whole numbers.")
    cameras = []
    for serial in sorted(poses):
        where = f"Camera {serial} in {path}"
        if isinstance(intrinsics, dict) and serial not in intrinsics:
            raise CaptureError(f"{where} has a pose but no intrinsics. Calibrate it again.")
        own = intrinsics[serial] if isinstance(intrinsics, dict) else intrinsics
        K = _matrix(own, f"{where}, intrinsics", (3, 3))
        w2c = _matrix(poses[serial], f"{where}, world_2_cam", (4, 4))
        camera = Camera(serial, K, w2c, width, height)
        cameras.append(camera)
    return tuple(cameras)


def _matrix(value: Any, where: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float64]:
    try:
        matrix = np.array(value, np.float64)
    except (ValueError, TypeError):
        raise CaptureError(f"{where}: {str(value)[:60]!r} is not a matrix of numbers.") from None
    if shape and matrix.shape != shape:
        raise CaptureError(
            f"{where}: found a matrix of shape {'x'.join(map(str, matrix.shape)) or 'scalar'}, "
            f"expected {'x'.join(map(str, shape))}."
        )
    return matrix


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CaptureError(f"{path} is not valid JSON ({error}). Copy it again.") from None
    if not isinstance(content, Mapping):
        raise CaptureError(f"{path} must hold a JSON object; found {type(content).__name__}.")
    return dict(content)


def _read_photo(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise CaptureError(f"The picture {path} cannot be read. Copy it again.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8)


def _sequence_names(path: Path) -> list[str]:
    folder = path / "sequences"
    names = sorted(
        each.parent.name for each in folder.glob("*/images") if each.parent.name != BACKGROUND
    )
    if not names:
        raise CaptureError(
            f"{folder} holds no sequence with videos (<SEQUENCE>/images/cam_<serial>.mp4). "
            "Download or copy at least one."
        )
    return names


def _check_aspect(camera: Camera, width: int, height: int, what: str) -> None:
    expected, found = camera.width / camera.height, width / height
    if abs(found / expected - 1) > _ASPECT_TOLERANCE:
        raise CaptureError(
            f"Camera {camera.name}: {what} is {width}x{height}, which is not the shape of the "
            f"{camera.width}x{camera.height} that the camera is calibrated for. Give the original "
            "picture, scaled but not cropped or turned."
        )
