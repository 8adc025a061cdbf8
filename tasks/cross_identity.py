"""Scores of an avatar that another person drives, for which there is no photo to compare with.

The avatar is drawn as the driver moves, and what was drawn goes through landmarks and tracking as a
capture would. AED and APD are the mean differences of the expression and of the head's rotation
found there from those it was driven with; CSIM compares its face with the photos of its own person.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image, encode_jpeg, encode_png
from gha_core.artifacts.tables import write_table
from gha_core.cameras import Camera
from gha_core.dataset import Dataset
from gha_core.errors import GhaError, StageError
from gha_core.evaluation.optional_metrics import Embedding, Unavailable, identity_embedding
from gha_core.evaluation.scoring import Drivable, evenly, side_by_side
from gha_core.reenactment import Motion, frontal_camera, read_motion, retarget
from gha_core.splits import Splits
from tasks import landmarks, tracking
from tasks.stage import Inputs

FRAMES, CAMERAS, PHOTOS = 24, 4, 8
_SEQUENCE = "driven"


@dataclass(frozen=True)
class CrossIdentity:
    """Scores over ``frames`` driven frames seen by ``cameras`` of the avatar's own capture.

    Attributes:
        aed: mean absolute difference of the 0..1 coefficients; apd: mean angle, degrees.
        csim: mean cosine of identity embeddings; None if it is not available, then ``missing`` says
            why.
    """

    aed: float
    apd: float
    csim: float | None
    missing: str
    frames: int
    cameras: int


def score(artifacts: Path, avatar: Drivable, driver: Path, sequence: str | None) -> CrossIdentity:
    """Drive ``avatar``, whose artifacts these are, with the tracking artifact ``driver``.

    Args:
        sequence: of the driver; None: all of them.

    Raises:
        GhaError: the driver has no such sequence, or in what was drawn no face is found.
    """
    dataset = Dataset(artifacts / "ingest", artifacts / "matting", artifacts / "tracking", Splits())
    own = read_motion(artifacts / "tracking")
    motions: list[Motion] = evenly(retarget(read_motion(driver, sequence), own), FRAMES)
    poses = [motion.pose for motion in own]
    front = frontal_camera(list(dataset.cameras.values()), poses)
    others = [dataset.cameras[name] for name in sorted(dataset.cameras) if name != front.name]
    cameras = [front, *evenly(others, CAMERAS - 1)]
    with tempfile.TemporaryDirectory(prefix="gha-cross-") as folder:
        drawn = _draw(avatar, motions, cameras, Path(folder))
        found = _tracked_again(Path(folder))
    if not found:
        raise StageError(
            f"No face is found in the avatar of {artifacts} as {driver} drives it; look at it with "
            "gha reenact."
        )
    pairs = [(motions[each.timestep], each) for each in found]
    turns = [
        Rotation.from_rotvec(wanted.pose.rotation).inv() * Rotation.from_rotvec(got.pose.rotation)
        for wanted, got in pairs
    ]
    differences = [np.abs(wanted.expression - got.expression).mean() for wanted, got in pairs]
    csim, missing = _csim(dataset, front.name, drawn)
    return CrossIdentity(
        float(np.mean(differences)),
        float(np.degrees(np.mean([turn.magnitude() for turn in turns]))),
        csim,
        missing,
        len(pairs),
        len(cameras),
    )


def _draw(
    avatar: Drivable, motions: Sequence[Motion], cameras: Sequence[Camera], artifacts: Path
) -> list[Image]:
    """Write what the cameras see as the artifacts of ingest and matting; returns the first's."""
    for stage in ("ingest", "matting"):
        (artifacts / stage).mkdir()
    jobs = [(place, motion, camera) for place, motion in enumerate(motions) for camera in cameras]
    pictures = list(
        side_by_side(lambda job: avatar.render(job[2], job[1].pose, job[1].expression), jobs)
    )
    frames, mattes = [], []
    for (place, _, camera), (image, matte) in zip(jobs, pictures, strict=True):
        key: dict[str, Any] = {
            "subject": _SEQUENCE,
            "sequence": _SEQUENCE,
            "timestep": place,
            "camera": camera.name,
            "width": camera.width,
            "height": camera.height,
        }
        frames.append(
            {
                **key,
                "image": encode_jpeg(image, 98),
                "time": place / 25,
                "sharpness": 0.0,
                "transform": np.eye(3).ravel().tolist(),
                "source_width": camera.width,
                "source_height": camera.height,
            }
        )
        mattes.append({**key, "alpha": encode_png(matte)})
    ingest = artifacts / "ingest"
    write_table(ingest / "frames.parquet", schemas.FRAMES, frames)
    rows = [camera.row(_SEQUENCE) for camera in cameras]
    unknown = {"source_K": None, "source_distortion": None}
    write_table(ingest / "cameras.parquet", schemas.CAMERAS, [row | unknown for row in rows])
    write_table(ingest / "backgrounds.parquet", schemas.BACKGROUNDS, [])
    write_table(ingest / "given_tracking.parquet", schemas.GIVEN_TRACKING, [])
    write_table(artifacts / "matting" / "alpha.parquet", schemas.ALPHA, mattes)
    return [image for image, _ in pictures[:: len(cameras)]]


def _tracked_again(artifacts: Path) -> list[Motion]:
    for stage in (landmarks, tracking):
        name = stage.__name__.rpartition(".")[2]
        work, out = artifacts / f".{name}.work", artifacts / name
        work.mkdir()
        out.mkdir()
        inputs = Inputs(_SEQUENCE, artifacts, "", artifacts, work)
        stage.run(inputs, stage.Params(), out)
    return read_motion(artifacts / "tracking")


def _csim(dataset: Dataset, camera: str, drawn: Sequence[Image]) -> tuple[float | None, str]:
    try:
        embed, _ = identity_embedding()
    except (Unavailable, GhaError) as reason:
        return None, str(reason)
    photos = evenly([view for view in dataset.views if view.camera == camera], PHOTOS)
    known = list(_embeddings(embed, [dataset.over_white(view) for view in photos]))
    shown = list(_embeddings(embed, drawn))
    if not known or not shown:
        return None, "ArcFace finds no face in the photos or in the renderings"
    mean = np.mean(known, axis=0)
    return float(np.mean([each @ mean / np.linalg.norm(mean) for each in shown])), ""


def _embeddings(embed: Embedding, images: Sequence[Image]) -> Iterator[NDArray[np.float32]]:
    for image in images:
        found = embed(image)
        if found is not None:
            yield found
