"""Writing videos: H.264 in MP4, playable in any browser, complete or not there at all."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from gha_core.artifacts.images import Image
from gha_core.errors import ArtifactError


def write_video(
    path: Path,
    frames: Iterable[Image],
    rate: float,
    crf: int = 16,
    pixel_format: str = "yuv420p",
) -> int:
    """Encode [H, W, 3] uint8 frames of one size at ``rate`` frames per second.

    Odd sizes are padded by repeating the last row or column, which 4:2:0 video needs. The file is
    written beside ``path`` and renamed at the end; one thread, so equal frames give equal bytes.

    Returns:
        the number of frames.

    Raises:
        ArtifactError: there is no frame.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.writing{path.suffix}")
    count = 0
    try:
        with av.open(str(temporary), "w", options={"movflags": "+faststart"}) as container:
            stream = None
            for frame in frames:
                frame = np.pad(
                    frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge"
                )
                if stream is None:
                    fraction = Fraction(rate).limit_denominator(1001)
                    stream = container.add_stream("libx264", rate=fraction)
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = pixel_format
                    stream.options = {"crf": str(crf), "threads": "1"}
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture))
                count += 1
            if stream is None:
                raise ArtifactError(f"There is no frame to write to {path}.")
            container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count
