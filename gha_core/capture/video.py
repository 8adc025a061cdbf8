"""Decoding of one video file: exact frame numbers, bounded memory, sentences for broken files.

A frame's number is the rank of its presentation time among the file's packets, not a running count
of what the decoder happened to return: a frame that cannot be decoded leaves a gap and never shifts
the ones behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from gha_core.artifacts.images import Image
from gha_core.errors import CaptureError
from gha_core.memory import keep_freed_memory
from gha_core.processors import cores

MOST_THREADS = 16  # of one decoder; FFmpeg advises against more


@dataclass(frozen=True)
class Video:
    """What :func:`probe` found in a file.

    Attributes:
        width, height: size in pixels as shown, i.e. after ``rotation``.
        rotation: quarter turns counter-clockwise that make the stored picture upright.
        timestamps: presentation times in ascending order, in units of ``time_base``; may be empty
            for containers without any, then frames are numbered in decoding order.
        frames: exact number of frames.
        time_base: seconds per unit of ``timestamps``.
        rate: mean frames per second.
    """

    path: Path
    width: int
    height: int
    rotation: int
    timestamps: tuple[int, ...]
    frames: int
    time_base: float
    rate: float

    def seconds(self, index: int) -> float:
        """Time of frame ``index`` since the first one."""
        if self.timestamps:
            return (self.timestamps[index] - self.timestamps[0]) * self.time_base
        return index / self.rate


def probe(path: Path) -> Video:
    """Count the frames of a video by reading its packets and decode the first one for its size.

    Raises:
        CaptureError: the file is missing, not a video, truncated, or holds no decodable frame.
    """
    path = Path(path)
    if not path.is_file():
        raise CaptureError(f"The video {path} does not exist.")
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            announced, rate = stream.frames, float(stream.average_rate or stream.base_rate or 25)
            time_base = float(stream.time_base or 0)
            shown = _shown_packets(container, stream)
            # Opened once only: a container looks at several frames before it says what it holds.
            container.seek(0)
            first = _first_frame(container, stream)
    except (FFmpegError, ValueError) as error:
        raise _unreadable(path, error) from None
    if first is None or not shown:
        raise CaptureError(f"The video {path} contains no frame. Copy or record it again.")
    if announced and len(shown) < announced:
        raise CaptureError(
            f"The video {path} is truncated: its header announces {announced} frames, only "
            f"{len(shown)} are there. Copy it again from where it was recorded."
        )
    timestamps = tuple(sorted({stamp for stamp in shown if stamp is not None}))
    # FFmpeg says "no number" with an absurd one where the display matrix is not a rotation.
    quarter = round(first.rotation / 90) % 4 if abs(first.rotation) <= 360 else 0
    size = (first.width, first.height) if quarter % 2 == 0 else (first.height, first.width)
    return Video(
        path=path,
        width=size[0],
        height=size[1],
        rotation=quarter,
        timestamps=timestamps if len(timestamps) == len(shown) else (),
        frames=len(shown),
        time_base=time_base,
        rate=rate,
    )


def read_frames(
    video: Video, wanted: Sequence[int] | None = None, threads: int = 0
) -> Iterator[tuple[int, Image | None]]:
    """Decode frames one at a time, in order, each exactly once.

    Args:
        wanted: ascending frame numbers to return (all by default); the rest is decoded but not
            converted, and nothing after the last one is read.
        threads: decoder threads, 0 = three per core: with fewer, cores wait while a frame is
            converted. Use 1 when many videos are read side by side.

    Yields:
        (number, H x W x 3 uint8 sRGB upright), or (number, None) where decoding failed.
    """
    wanted = range(video.frames) if wanted is None else wanted
    numbers = iter(wanted)
    expected = next(numbers, None)
    ranks = {stamp: rank for rank, stamp in enumerate(video.timestamps)}
    if expected is None:
        return
    last, damaged = -1, False
    keep_freed_memory()
    # One for all frames: setting one up takes a third as long as the conversion, which follows the
    # colour matrix that the file names, BT.601 where it names none.
    colours = partial(VideoReformatter().reformat, format="rgb24", threads=threads)
    for running, frame in enumerate(_decode(video.path, threads)):
        stamp = frame.pts
        number = ranks.get(stamp, -1) if ranks and stamp is not None else running
        # What is predicted from a lost or damaged frame shows smears, up to the next key frame.
        damaged = frame.is_corrupt or (not frame.key_frame and (damaged or number != last + 1))
        last = number
        while expected is not None and number > expected:
            yield expected, None
            expected = next(numbers, None)
        if expected is None:
            return
        if number == expected:
            yield number, None if damaged else _upright(colours(frame), video.rotation)
            expected = next(numbers, None)
            if expected is None:
                return
    while expected is not None:
        yield expected, None
        expected = next(numbers, None)


def _decode(path: Path, threads: int) -> Iterator[av.VideoFrame]:
    """All frames that can be decoded; a broken packet costs its own frames only."""
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, path)
            stream.thread_type = "AUTO" if threads != 1 else "SLICE"
            stream.codec_context.thread_count = threads or min(3 * cores(), MOST_THREADS)
            for packet in container.demux(stream):
                try:
                    yield from packet.decode()
                except FFmpegError:
                    continue
    except FFmpegError as error:
        raise _unreadable(path, error) from None


def _video_stream(
    container: av.container.InputContainer, path: Path
) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise CaptureError(f"{path} contains no video stream. Give a video file.")
    return container.streams.video[0]


def _shown_packets(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> list[int | None]:
    """Presentation times of the packets that become visible frames (an edit list hides some)."""
    return [
        packet.pts
        for packet in container.demux(stream)
        if packet.size and not packet.is_discard and not packet.is_corrupt
    ]


def _first_frame(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> av.VideoFrame | None:
    """The first frame that can be decoded by itself: one that must wait for others takes as long as
    these. Else the first that comes."""
    decoder = stream.codec_context
    decoder.thread_count = 1
    for packet in container.demux(stream):
        frames = packet.decode()
        if not frames and packet.is_keyframe:
            frames = decoder.decode(None)
            decoder.flush_buffers()
        if frames:
            return frames[0]
    return None


def _upright(rgb: av.VideoFrame, quarters: int) -> Image:
    plane = rgb.planes[0]
    # A view: the copy that av would make takes as long as half a conversion.
    shape, strides = (rgb.height, rgb.width, 3), (plane.line_size, 3, 1)
    image: Image = np.ndarray(shape, np.uint8, memoryview(plane), strides=strides)
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _unreadable(path: Path, error: Exception) -> CaptureError:
    reason = getattr(error, "strerror", None) or str(error)
    return CaptureError(
        f"The video {path} cannot be read ({reason}). It is truncated or not a video: copy "
        "it again from where it was recorded."
    )
