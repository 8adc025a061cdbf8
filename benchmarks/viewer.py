"""How fast the viewer follows: CPU milliseconds of its pictures, from a change to the bytes sent.

    python -m benchmarks.viewer data/subjects/demo [--quick] [--json FILE]

Of one thread, at 256, 512 and 1024 px: when only the camera moves, when the face moves, and the
picture in full that follows at rest. A picture that takes 100 ms is 10 a second on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.accuracy import tell
from gha_core.artifacts.images import encode_jpeg
from gha_core.cameras import Camera
from gha_core.viewer.painter import Painter
from gha_core.viewer.subject import Subject


def milliseconds(run: Callable[[int], object], turns: int) -> float:
    """Median CPU time, after a run to warm up."""
    run(0)
    spent = []
    for turn in range(1, turns + 1):
        began = time.process_time()
        run(turn)
        spent.append(time.process_time() - began)
    return round(1000 * float(np.median(spent)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("artifacts", type=Path, help="data/subjects/NAME")
    parser.add_argument("--quick", action="store_true", help="at 256 px only")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(1)
    subject = Subject.load(given.artifacts.name, given.artifacts)
    painter = Painter(subject.avatar)
    moment = next(iter(subject.sequences.values()))[0]
    camera = next(iter(subject.dataset.cameras.values()))
    figures: dict[str, dict[str, float]] = {}
    for size in (256,) if given.quick else (256, 512, 1024):
        seen = camera.resized(size, size)

        def turned(_: int, seen: Camera = seen) -> object:
            return encode_jpeg(painter.sketch(seen, moment.pose, moment.expression), 80)

        def speaking(turn: int, seen: Camera = seen) -> object:
            face = moment.expression + np.float32(0.01 * turn)
            return encode_jpeg(painter.sketch(seen, moment.pose, face), 80)

        def resting(_: int, seen: Camera = seen) -> object:
            return encode_jpeg(painter.picture(seen, moment.pose, moment.expression), 95)

        figures[f"{size}x{size}"] = {
            "camera_moves_ms": milliseconds(turned, 9),
            "face_moves_ms": milliseconds(speaking, 9),
            "at_rest_ms": milliseconds(resting, 5),
        }
    tell({"gaussians": subject.avatar.head.config.gaussians, **figures}, given.json)


if __name__ == "__main__":
    main()
