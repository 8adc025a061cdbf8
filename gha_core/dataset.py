"""All views of one subject as training and evaluation read them.

Joins the ingest, matting and tracking artifacts and marks what the splits hold out.

Encoded bytes are read per timestep and decoded on demand, so memory does not grow with the capture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts import schemas
from gha_core.artifacts.blobs import Blobs, Key
from gha_core.artifacts.images import Image, decode_image, decode_matte
from gha_core.artifacts.tables import read_rows, read_table
from gha_core.cameras import Camera
from gha_core.compositing import over_white
from gha_core.errors import ArtifactError
from gha_core.pose import HeadPose
from gha_core.splits import Part, Splits, positions


@dataclass(frozen=True)
class View:
    """One image of the subject: its key, what is known about it, and whether it is held out.

    Attributes:
        pose, expression, landmarks: of its timestep as tracked; None without a tracking artifact.
            ``expression`` is [E] float32, ``landmarks`` [M, 3] float32 in head space.
        transform: [3, 3] source pixel -> stored pixel; source_size: (width, height) of the source.
        part: "train", or the evaluation task that it belongs to.
    """

    sequence: str
    timestep: int
    camera: str
    time: float
    transform: NDArray[np.float64]
    source_size: tuple[int, int]
    pose: HeadPose | None
    expression: NDArray[np.float32] | None
    landmarks: NDArray[np.float32] | None
    part: Part

    @property
    def key(self) -> Key:
        return self.sequence, self.timestep, self.camera

    @property
    def motion(self) -> tuple[HeadPose, NDArray[np.float32]]:
        """The tracked pose and the [E] expression.

        Raises:
            ArtifactError: the dataset was opened without a tracking artifact.
        """
        if self.pose is None or self.expression is None:
            raise ArtifactError("This dataset was opened without tracking.")
        return self.pose, self.expression

    @property
    def is_test(self) -> bool:
        return self.part != "train"


class Dataset:
    """Views that have everything that was asked for, sorted by (sequence, timestep, camera).

    Args:
        ingest: folder of the ingest artifact.
        matting, tracking: folders of those artifacts; with None, ``alpha`` or the poses are absent.
            Where tracking found the focal length of cameras, those are used.
        splits: the hold-out rules; a place in a sequence counts all ingested timesteps.

    Raises:
        ArtifactError: a table is missing or unreadable, or no view is in all of them.
    """

    def __init__(
        self, ingest: Path, matting: Path | None, tracking: Path | None, splits: Splits
    ) -> None:
        self.subject = ""
        corrected = tracking is not None and (tracking / "cameras.parquet").exists()
        folder = tracking if corrected and tracking else ingest
        rows = read_rows(folder / "cameras.parquet", schemas.CAMERAS)
        self.cameras = {row["camera"]: Camera.from_row(row) for row in rows}
        columns = [name for name in schemas.FRAMES.names if name != "image"]
        frames = read_table(ingest / "frames.parquet", schemas.FRAMES, columns).to_pylist()
        self._images = Blobs(ingest / "frames.parquet", schemas.FRAMES, "image")
        backgrounds = read_rows(ingest / "backgrounds.parquet", schemas.BACKGROUNDS)
        self._plates = {row["camera"]: decode_image(row["image"]) for row in backgrounds}
        self._mattes = Blobs(matting / "alpha.parquet", schemas.ALPHA, "alpha") if matting else None
        tracked: dict[tuple[str, int], dict[str, Any]] = {}
        if tracking:
            for row in read_rows(tracking / "tracking.parquet", schemas.TRACKING):
                tracked[row["sequence"], row["timestep"]] = row
        timesteps: dict[str, list[int]] = {}
        for row in frames:
            timesteps.setdefault(row["sequence"], []).append(row["timestep"])
        self.sequences = sorted(timesteps)
        splits.check(self.cameras, self.sequences)
        places = positions(timesteps)
        self.views: list[View] = []
        for row in frames:
            self.subject = row["subject"]
            key = (row["sequence"], row["timestep"], row["camera"])
            if tracking and key[:2] not in tracked:
                continue
            if self._mattes and key not in self._mattes:
                continue
            self.views.append(_view(row, tracked.get(key[:2]), splits, places[key[:2]]))
        if not self.views:
            raise ArtifactError(
                f"No frame of {ingest} has both a matte and a tracked pose; look at the rejects "
                "tables of matting and tracking."
            )

    @property
    def train(self) -> list[View]:
        return [view for view in self.views if not view.is_test]

    @property
    def test(self) -> list[View]:
        return [view for view in self.views if view.is_test]

    def image(self, view: View) -> Image:
        """[H, W, 3] uint8 sRGB."""
        return decode_image(self._images[view.key])

    def alpha(self, view: View) -> Image:
        """[H, W] uint8, 255 = foreground."""
        if self._mattes is None:
            raise ArtifactError("This dataset was opened without mattes.")
        return decode_matte(self._mattes[view.key])

    def over_white(self, view: View) -> Image:
        """[H, W, 3] uint8: the person alone over white, what a perfect avatar would render."""
        return over_white(self.image(view), self.alpha(view), self._plates.get(view.camera))

    def inside(self, view: View) -> NDArray[np.bool_]:
        """[H, W], False where the stored frame shows padding beyond the photo's edge."""
        camera = self.cameras[view.camera]
        back = np.linalg.inv(view.transform)
        x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        source = np.stack([x, y, np.ones_like(x)], -1) @ back.T
        width, height = view.source_size
        return (
            (source[..., 0] >= 0)
            & (source[..., 0] <= width)
            & (source[..., 1] >= 0)
            & (source[..., 1] <= height)
        )


def _view(
    row: dict[str, Any], tracked: dict[str, Any] | None, splits: Splits, place: float
) -> View:
    pose = expression = landmarks = None
    if tracked is not None:
        pose = HeadPose(
            np.array(tracked["rotation"]), np.array(tracked["translation"]), tracked["scale"]
        )
        expression = np.array(tracked["expression"], np.float32)
        landmarks = np.array(tracked["landmarks"], np.float32).reshape(-1, 3)
    return View(
        sequence=row["sequence"],
        timestep=row["timestep"],
        camera=row["camera"],
        time=row["time"],
        transform=np.array(row["transform"]).reshape(3, 3),
        source_size=(row["source_width"], row["source_height"]),
        pose=pose,
        expression=expression,
        landmarks=landmarks,
        part=splits.part(row["sequence"], place, row["timestep"], row["camera"]),
    )
