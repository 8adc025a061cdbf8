"""Does the avatar do what its driver does? A video of anyone drives it, and the same detector looks
at both.

    python -m benchmarks.reenactment NAME VIDEO [--quick] [--json FILE]

Run it in a project whose subject NAME has an avatar. Mouth opening is the distance between the
inner lips' middles, eye opening that between the lids (mean of both eyes), mouth width that between
its corners, all in distances between the eyes' outer corners; the figures are Pearson's
correlations of driver and avatar over the clip. Flicker is the mean change of the avatar's pixels
(levels) between neighbouring frames minus half of that between frames two apart: zero for steady
motion.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import tell
from flows.drivers import find_driver, stage_folder
from flows.reenact import Options, stage
from gha_core.artifacts.images import Image
from gha_core.avatar import Avatar
from gha_core.dataset import Dataset
from gha_core.landmarks import FaceMeshDetector
from gha_core.splits import Splits

_EYES = (33, 263)
_OPENINGS = {
    "mouth_opening": [(13, 14)],
    "mouth_width": [(78, 308)],
    "eye_opening": [(159, 145), (386, 374)],
}


def openings(points: NDArray[np.floating]) -> dict[str, float]:
    """The distances of one face, in distances between its eyes.

    Args:
        points: [478, 2] of FaceMesh.
    """

    def distance(a: int, b: int) -> float:
        return float(np.linalg.norm(points[a] - points[b]))

    return {
        name: float(np.mean([distance(*pair) for pair in pairs])) / distance(*_EYES)
        for name, pairs in _OPENINGS.items()
    }


def correlation(driver: Sequence[float], avatar: Sequence[float]) -> float:
    """Pearson's, over what both know (NaN: no face was found)."""
    pairs = np.array([driver, avatar])
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    return float(np.corrcoef(pairs)[0, 1])


def flicker(frames: Sequence[Image]) -> float:
    """Change from frame to frame that goes back and forth, levels."""
    values = np.array(frames, np.float32)
    near = np.abs(values[1:] - values[:-1]).mean(axis=(1, 2, 3))
    far = np.abs(values[2:] - values[:-2]).mean(axis=(1, 2, 3))
    return float(np.mean((near[:-1] + near[1:]) / 2 - far / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", help="the subject whose avatar is driven")
    parser.add_argument("video", type=Path)
    parser.add_argument("--quick", action="store_true", help="every fourth frame")
    parser.add_argument("--height", type=int, default=256, help="of the avatar's picture, px")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()

    began = time.process_time()
    driver = find_driver(str(given.video), given.name, 0.0, Path.cwd())
    tracked = time.process_time() - began
    own = Dataset(
        stage_folder(given.name, "ingest"), None, stage_folder(given.name, "tracking"), Splits()
    )
    scene = stage(given.name, driver, Options(height=given.height), own)
    avatar = Avatar.load(stage_folder(given.name, "avatar"))
    detector = FaceMeshDetector()
    assert driver.photos
    photos = {(view.sequence, view.timestep): view for view in driver.photos.views}
    seen: dict[str, list[dict[str, float]]] = {"driver": [], "avatar": []}
    frames, drawing = [], 0.0
    for motion, camera in list(zip(scene.motions, scene.cameras, strict=True))[
        :: 4 if given.quick else 1
    ]:
        began = time.process_time()
        image, _ = avatar.render(camera, motion.pose, motion.expression)
        drawing += time.process_time() - began
        frames.append(image)
        photo = driver.photos.image(photos[motion.sequence, motion.timestep])
        for who, picture in (("driver", photo), ("avatar", image)):
            face = detector.detect(picture)
            nothing = dict.fromkeys(_OPENINGS, float("nan"))
            seen[who].append(openings(face.points) if face else nothing)
    found = [face for face in seen["avatar"] if np.isfinite(face["mouth_opening"])]
    figures = {
        "frames": len(frames),
        "avatar_faces_found": len(found),
        "correlation": {
            name: round(correlation(*([each[name] for each in seen[who]] for who in seen)), 3)
            for name in _OPENINGS
        },
        "spread_avatar_over_driver": {
            name: round(
                float(np.nanstd([each[name] for each in seen["avatar"]]))
                / float(np.nanstd([each[name] for each in seen["driver"]])),
                2,
            )
            for name in _OPENINGS
        },
        "flicker_levels": round(flicker(frames), 3),
        "cpu_seconds_tracking": round(tracked, 1),
        "cpu_milliseconds_per_frame": round(1000 * drawing / len(frames), 1),
    }
    tell(figures, given.json)


if __name__ == "__main__":
    main()
