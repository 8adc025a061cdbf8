"""Calibrated cameras and their pictures as a :class:`~gha_core.capture.Capture`.

An adapter only says what lies where (:class:`Found`); choosing, checking, scaling of intrinsics and
decoding are the same for all formats and are here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

import cv2
import numpy as np

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera, check_camera
from gha_core.capture.capture import Options, SequenceInfo, Timestep, matching
from gha_core.capture.streams import Source, Stream, open_stream, read_picture
from gha_core.capture.tracked import TrackedFaces
from gha_core.errors import CaptureError
from gha_core.processors import cores

Correction = Callable[[Image], Image]

# Rounding of a down-scaled video's size may change its aspect ratio by this much.
_ASPECT_TOLERANCE = 0.01
# Timesteps that are decoded ahead of the one that is asked for.
_AHEAD = 2


@dataclass(frozen=True)
class Found:
    """What an adapter found in a capture, all of it and nothing decoded.

    Attributes:
        cameras: as calibrated, by name; of no size (0 x 0) where the calibration names none, which
            then is that of the pictures.
        calibration: the file they came from, for sentences.
        pictures: the source of every sequence and camera.
        place: where the pictures of ``{sequence}`` and ``{camera}`` should be, for sentences.
        mattes: like ``pictures``; a matte is white where the person is.
        backgrounds: plates by camera.
        correction: the colour correction of a camera, or None.
        optional: cameras without any pictures are left out instead of refused.
    """

    format: str
    path: Path
    calibration: Path
    cameras: Mapping[str, Camera]
    pictures: Mapping[str, Mapping[str, Source]]
    place: str
    mattes: Mapping[str, Mapping[str, Source]] = field(default_factory=dict)
    backgrounds: Mapping[str, Path] = field(default_factory=dict)
    correction: Callable[[str], Correction | None] = lambda _: None
    tracking: TrackedFaces | None = None
    optional: bool = False
    notes: Sequence[str] = ()


class RigCapture:
    """A :class:`~gha_core.capture.Capture` of what was found.

    Raises:
        CaptureError: the calibration cannot be right, a camera has no pictures or pictures no
            camera, they are unreadable, of several sizes or lengths, a background or matte has
            another shape than the pictures, a pattern matches nothing.
    """

    calibrated = True

    def __init__(self, found: Found, options: Options) -> None:
        if options.focal_length is not None:
            raise CaptureError(
                f"ingest.focal_length is given, but {found.path} has a calibration. Remove the "
                "parameter."
            )
        self._found, self._options = found, options
        self.format, self.notes = found.format, list(found.notes)
        self._check_pictures_have_cameras()
        chosen = matching(list(found.cameras), options.cameras, "camera", found.calibration)
        names = matching(list(found.pictures), options.sequences, "sequence", found.path)
        if found.optional:
            chosen = self._with_pictures(chosen, names)
        for name in chosen:
            camera = found.cameras[name]
            known = camera if camera.width else replace(camera, width=1, height=1)
            check_camera(known, str(found.calibration))
        self._streams = {name: self._open(name, chosen) for name in names}
        self.cameras = self._scaled(chosen)
        self.sequences = tuple(self._sequence(name) for name in names)
        corrected = chosen if options.colour_correction else []
        self._corrections = {name: found.correction(name) for name in corrected}
        self._check_backgrounds()
        self._mattes = {name: self._open_mattes(name, chosen) for name in names}
        self.matted = frozenset(camera for each in self._mattes.values() for camera in each)
        self.tracking = found.tracking

    def frames(self, sequence: str, timesteps: Sequence[int]) -> Iterator[Timestep]:
        streams, mattes = self._streams[sequence], self._mattes[sequence]
        clock = streams[min(streams)]
        one_each = 1 if len(streams) + len(mattes) > 1 else 0
        readers = [_Reader(each, timesteps, one_each) for each in streams.values()]
        masks = [_Reader(each, timesteps, one_each) for each in mattes.values()]
        pending: deque[tuple[int, list[Future], list[Future]]] = deque()
        with ThreadPoolExecutor(min(len(readers) + len(masks), cores())) as pool:

            def finish() -> Timestep:
                timestep, images, masked = pending.popleft()
                decoded = zip(streams, [each.result() for each in images], strict=True)
                alphas = zip(mattes, [each.result() for each in masked], strict=True)
                return Timestep(
                    timestep,
                    clock.seconds(timestep),
                    {name: image[0] for name, image in decoded if image},
                    {
                        name: None if matte[0] is None else matte[0][..., 1]
                        for name, matte in alphas
                        if matte
                    },
                )

            for timestep in timesteps:
                ahead = [
                    [pool.submit(each.at, timestep) for each in group] for group in (readers, masks)
                ]
                pending.append((timestep, ahead[0], ahead[1]))
                if len(pending) >= _AHEAD:
                    yield finish()
            while pending:
                yield finish()

    def background(self, camera: str) -> Image | None:
        path = self._found.backgrounds.get(camera)
        if path is None:
            return None
        image = read_picture(path)
        wanted = next(each for each in self.cameras if each.name == camera)
        if image.shape[:2] == (wanted.height, wanted.width):
            return image
        size = (wanted.width, wanted.height)
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)

    def correct(self, camera: str, image: Image) -> Image:
        correction = self._corrections.get(camera)
        return image if correction is None else correction(image)

    def _check_pictures_have_cameras(self) -> None:
        found = self._found
        if not found.pictures:
            raise CaptureError(
                f"{found.path} holds no sequence with pictures ("
                f"{found.place.format(sequence='<SEQUENCE>', camera='<CAMERA>')}). Download or "
                "copy at least one."
            )
        for sources in found.pictures.values():
            for name in sorted(sources.keys() - found.cameras.keys()):
                raise CaptureError(
                    f"{_first_file(sources[name])} is of camera {name}, which {found.calibration} "
                    f"does not calibrate (it has {', '.join(sorted(found.cameras))}). Add its "
                    "calibration or remove its pictures."
                )

    def _with_pictures(self, chosen: list[str], sequences: list[str]) -> list[str]:
        seen = {name for each in sequences for name in self._found.pictures[each]}
        absent = [name for name in chosen if name not in seen]
        if absent:
            self.notes.append(f"No pictures of camera {', '.join(absent)}: left out.")
        if len(absent) == len(chosen):
            raise CaptureError(
                f"None of the cameras {', '.join(chosen)} of {self._found.path} has pictures in "
                f"the sequences {', '.join(sequences)}. Choose others (ingest.cameras)."
            )
        return [name for name in chosen if name in seen]

    def _open(self, sequence: str, chosen: list[str]) -> dict[str, Stream]:
        """The streams of a sequence by camera, one for each chosen camera."""
        found = self._found
        sources = found.pictures[sequence]
        for name in chosen:
            if name not in sources:
                place = found.path / found.place.format(sequence=sequence, camera=name)
                raise CaptureError(
                    f"Camera {name} is calibrated but has no pictures in sequence {sequence}: "
                    f"{place} does not exist. Add it, or list the cameras to use in "
                    "ingest.cameras."
                )
        return _opened({name: sources[name] for name in chosen})

    def _open_mattes(self, sequence: str, chosen: list[str]) -> dict[str, Stream]:
        sources = self._found.mattes.get(sequence, {})
        streams = _opened({name: sources[name] for name in chosen if name in sources})
        sizes = {camera.name: camera for camera in self.cameras}
        for name, stream in streams.items():
            camera = sizes[name]
            _check_aspect(camera, stream.width, stream.height, f"the matte {stream.path}")
            pictures = self._streams[sequence][name]
            if isinstance(stream.timesteps, range) and len(stream.timesteps) < len(
                pictures.timesteps
            ):
                raise CaptureError(
                    f"The mattes {stream.path} have {len(stream.timesteps)} frames, the pictures "
                    f"{pictures.path} have {len(pictures.timesteps)}. Copy the mattes again, or "
                    "remove them."
                )
        if streams and len(streams) < len(chosen):
            absent = [name for name in chosen if name not in streams]
            self.notes.append(f"Sequence {sequence} has no mattes of camera {', '.join(absent)}.")
        return streams

    def _scaled(self, chosen: list[str]) -> tuple[Camera, ...]:
        """The chosen cameras at the size of their pictures, which must be one per camera."""
        cameras, scaled = [], set()
        for name in chosen:
            streams = [each[name] for each in self._streams.values()]
            width, height = streams[0].width, streams[0].height
            for stream in streams:
                if (stream.width, stream.height) != (width, height):
                    raise CaptureError(
                        f"{stream.path} is {stream.width}x{stream.height}, but {streams[0].path} "
                        f"is {width}x{height}. Give all videos of a camera one size."
                    )
            camera = self._found.cameras[name]
            if not camera.width:
                camera = replace(camera, width=width, height=height)
            _check_aspect(camera, width, height, str(streams[0].path))
            if (width, height) != (camera.width, camera.height):
                scaled.add((camera.width, camera.height, width, height))
            cameras.append(camera.resized(width, height))
        self.notes += [
            f"The intrinsics are for {a}x{b} and were scaled to the videos' {c}x{d}."
            for a, b, c, d in sorted(scaled)
        ]
        return tuple(cameras)

    def _sequence(self, name: str) -> SequenceInfo:
        """The moments of a sequence: those that all its videos have, those that any of its
        numbered pictures is of."""
        streams = list(self._streams[name].values())
        videos = [each for each in streams if isinstance(each.timesteps, range)]
        timesteps: Sequence[int] = sorted({t for each in streams for t in each.timesteps})
        if videos:
            shortest = min(videos, key=lambda video: len(video.timesteps))
            longest = max(videos, key=lambda video: len(video.timesteps))
            few, many = len(shortest.timesteps), len(longest.timesteps)
            if few != many:
                found = (
                    f"The videos of sequence {name} differ in length: {longest.path} has {many} "
                    f"frames, {shortest.path} has {few}."
                )
                if self._options.unequal_length == "fail":
                    raise CaptureError(
                        f"{found} If they start together, set ingest.unequal_length: shortest; "
                        "otherwise cut them to the same moments."
                    )
                self.notes.append(f"{found} Frames from {few} on are left out.")
            timesteps = range(few)
        else:
            gaps = sum(len(timesteps) - len(each.timesteps) for each in streams)
            if gaps:
                self.notes.append(
                    f"Sequence {name} lacks {gaps} of {len(timesteps) * len(streams)} pictures."
                )
        return SequenceInfo(name, timesteps, streams[0].rate)

    def _check_backgrounds(self) -> None:
        files = self._found.backgrounds
        for camera in self.cameras:
            if camera.name in files:
                height, width = read_picture(files[camera.name]).shape[:2]
                _check_aspect(camera, width, height, f"the background {files[camera.name]}")
        missing = [camera.name for camera in self.cameras if camera.name not in files]
        if files and missing:
            self.notes.append(f"No background plate for camera {', '.join(missing)}.")


class _Reader:
    """One stream's pictures by timestep, each asked for once and about in order. Whichever of the
    few calls that are under way comes first reads on as far as it needs to and leaves the others
    theirs."""

    def __init__(self, stream: Stream, timesteps: Sequence[int], threads: int) -> None:
        has = stream.timesteps
        known = has if isinstance(has, range) else frozenset(has)
        own = [timestep for timestep in timesteps if timestep in known]
        self._has = frozenset(own)
        self._pictures = zip(own, stream.read(own, threads), strict=False)
        self._ready: dict[int, Image | None] = {}
        self._lock = Lock()

    def at(self, timestep: int) -> tuple[Image | None] | None:
        """(the picture,), or None if the camera has none of this moment."""
        if timestep not in self._has:
            return None
        with self._lock:
            while timestep not in self._ready:
                number, picture = next(self._pictures)
                self._ready[number] = picture
            return (self._ready.pop(timestep),)


def _opened(sources: Mapping[str, Source]) -> dict[str, Stream]:
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(sources, pool.map(open_stream, sources.values()), strict=True))


def _first_file(source: Source) -> Path:
    return source if isinstance(source, Path) else next(iter(source.files.values()))


def _check_aspect(camera: Camera, width: int, height: int, what: str) -> None:
    expected, found = camera.width / camera.height, width / height
    if abs(found / expected - 1) > _ASPECT_TOLERANCE:
        raise CaptureError(
            f"Camera {camera.name}: {what} is {width}x{height}, which is not the shape of the "
            f"{camera.width}x{camera.height} that the camera is calibrated for. Give the original "
            "picture, scaled but not cropped or turned."
        )
