"""One video file of one person: one camera that stands still at the origin of the world.

Without calibration the head pose carries all motion, and the focal length is an assumption: unless
given, 1.2 x the longer side (a horizontal field of view of 45 degrees in landscape, as of a webcam
or a phone's main camera after stabilisation). Tracking improves it as far as the face's perspective
tells. A wrong one is absorbed by the head's distance; what remains is a slightly flattened or
deepened face.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, check_camera
from gha_core.capture.capture import Capture, Options, SequenceInfo, Timestep, matching
from gha_core.capture.streams import VIDEO_SUFFIXES
from gha_core.capture.video import probe, read_frames
from gha_core.errors import CaptureError

NAME = "monocular"
WHAT = "one video file of one person, no calibration"

CAMERA, SEQUENCE = "camera", "video"
FOCAL_PER_LONGER_SIDE = 1.2


def detect(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def read(path: Path, options: Options) -> Capture:
    matching([CAMERA], options.cameras, "camera", path)
    matching([SEQUENCE], options.sequences, "sequence", path)
    return MonocularCapture(path, options.focal_length)


class MonocularCapture:
    """A :class:`gha_core.capture.Capture` of one video file.

    Args:
        path: the file, in any container and codec that FFmpeg reads; its rotation is honoured.
        focal_length: in pixels of the video; None to assume one.

    Raises:
        CaptureError: the file is unreadable or truncated, or the focal length is not positive.
    """

    format = NAME
    calibrated = False
    matted: frozenset[str] = frozenset()
    tracking = None

    def __init__(self, path: Path, focal_length: float | None = None) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise CaptureError(
                f"{self.path} is a folder; a monocular capture is one video file. Give its path."
            )
        self._video = probe(self.path)
        width, height = self._video.width, self._video.height
        self.notes: list[str] = []
        if focal_length is None:
            focal_length = FOCAL_PER_LONGER_SIDE * max(width, height)
            angle = math.degrees(2 * math.atan(width / 2 / focal_length))
            self.notes.append(
                f"The focal length is assumed to be {focal_length:g} px "
                f"({FOCAL_PER_LONGER_SIDE:g} x the longer side, {angle:.0f} degrees across), until "
                "tracking finds a likelier one; give ingest.focal_length if you know it."
            )
        if self._video.rotation:
            turned = self._video.rotation * 90
            self.notes.append(
                f"Frames are turned by {turned} degrees, as the file's metadata says."
            )
        K = np.array([[focal_length, 0, width / 2], [0, focal_length, height / 2], [0, 0, 1.0]])
        camera = Camera(CAMERA, K, np.eye(4), width, height)
        check_camera(camera, "ingest.focal_length")
        self.cameras: tuple[Camera, ...] = (camera,)
        self.sequences = (SequenceInfo(SEQUENCE, range(self._video.frames), self._video.rate),)

    def frames(self, sequence: str, timesteps: Sequence[int]) -> Iterator[Timestep]:
        for index, image in read_frames(self._video, timesteps):
            yield Timestep(index, self._video.seconds(index), {CAMERA: image})

    def background(self, camera: str) -> Image | None:
        return None

    def correct(self, camera: str, image: Image) -> Image:
        return image
