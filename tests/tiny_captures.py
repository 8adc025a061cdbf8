"""Tiny raw captures for tests: videos of a few frames, calibrations that can be spoilt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from gha_core.cameras import Camera, look_at

Image = NDArray[np.uint8]

WIDTH, HEIGHT = 48, 64
SERIALS = ("220700191", "222200036", "222200037")
SEQUENCES = ("EMO-1-shout+laugh", "FREE")


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> Image:
    """A smooth picture that differs from seed to seed, so that a codec keeps it."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(20, 235, (4, 3, 3)).astype(np.float32)
    return np.rint(cv2.resize(coarse, (width, height))).astype(np.uint8)


def numbered(index: int, width: int = WIDTH, height: int = HEIGHT) -> Image:
    """A picture from whose mean brightness the frame's number can be read, see :func:`number_of`.

    A ramp across keeps it from being blank."""
    ramp = np.linspace(-10, 10, width)[None, :, None]
    return np.rint(np.broadcast_to(20 + 10 * index + ramp, (height, width, 3))).astype(np.uint8)


def number_of(image: Image) -> int:
    return round((float(image.mean()) - 20) / 10)


def write_video(
    path: Path,
    frames: Sequence[Image],
    rate: int = 25,
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options=dict(container or {})) as file:
        stream = file.add_stream("libx264", rate=rate, options={"crf": "8", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path


def rig(serials: Sequence[str] = SERIALS) -> list[Camera]:
    """Cameras on an arc that look at the origin."""
    K = np.array([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    cameras = []
    for index, serial in enumerate(serials):
        angle = 0.5 * (index - (len(serials) - 1) / 2)
        eye = np.array([np.sin(angle), 0.1 * index, np.cos(angle)])
        cameras.append(Camera(serial, K, look_at(eye, np.zeros(3), np.array([0, 1.0, 0])), 48, 64))
    return cameras


def write_nersemble(
    folder: Path,
    frames: int = 4,
    serials: Sequence[str] = SERIALS,
    sequences: Sequence[str] = SEQUENCES,
    backgrounds: bool = True,
) -> Path:
    """A valid NeRSemble v2 participant; returns its folder."""
    root = folder / "018"
    cameras = rig(serials)
    write_calibration(
        root,
        {
            "world_2_cam": {each.name: each.w2c.tolist() for each in cameras},
            "intrinsics": cameras[0].K.tolist(),
            "height": HEIGHT,
            "width": WIDTH,
        },
    )
    for sequence in sequences:
        for serial in serials:
            path = root / "sequences" / sequence / "images" / f"cam_{serial}.mp4"
            write_video(path, [numbered(index) for index in range(frames)])
    if backgrounds:
        for k, serial in enumerate(serials):
            write_picture(root / f"sequences/BACKGROUND/image_{serial}.png", picture(k))
    return root


def write_picture(path: Path, image: Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])
    return path


def calibration(root: Path) -> dict[str, Any]:
    return json.loads((root / "calibration/camera_params.json").read_text())


def write_calibration(root: Path, content: Mapping[str, Any]) -> None:
    path = root / "calibration/camera_params.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def video_packets(path: Path) -> list[tuple[int, int]]:
    """(offset, size) in the file of every packet, in the order of the file."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def damage(path: Path, where: tuple[int, int]) -> None:
    offset, size = where
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = b"\xff" * size
    path.write_bytes(data)


def turn_clockwise(path: Path, degrees: int) -> None:
    """Write a display matrix into the header of an mp4's video track, as phones do."""
    sin, cos = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[degrees]
    one = 1 << 16
    matrix = [cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30]
    data = bytearray(path.read_bytes())
    # A track header of version 0: its type, 40 bytes of fields, the matrix.
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = np.array(matrix, ">i4").tobytes()
    path.write_bytes(data)
