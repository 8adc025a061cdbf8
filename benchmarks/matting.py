"""Mattes of a synthetic subject against the truth: error, flicker, and CPU time per image.

    python -m benchmarks.matting data/subjects/demo data/studio/demo/truth [--quick] [--json FILE]

Errors are of alpha (0..1): the mean over all pixels; the mean over the band of doubt, which is what
lies within 1/85 of the shorter side of the true outline; and the sum over that band per image, in
thousands (SAD). Flicker is the mean of |d(t+1) - d(t)| over the band, d being the error: what the
person's own motion cannot explain.

Time is of one thread, at 802x550 px: from the encoded frame to the encoded matte. Images are done
side by side, so that n cores do n times as many; under load CPU seconds stay comparable.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.accuracy import stored_matte, tell
from gha_core.artifacts import schemas
from gha_core.artifacts.images import Image, decode_image, encode_jpeg, encode_png
from gha_core.artifacts.tables import read_rows
from gha_core.matting import PlateMatting, SelfieMatting
from gha_core.matting.trimap import band_radius
from gha_core.synthetic.truth import load_truth

SPEED_SIZE = (550, 802)  # width, height
Matting = Callable[[Image], np.ndarray]
Frame = tuple[dict[str, Any], Image]


def mattings(plates: dict[str, Image]) -> dict[str, Callable[[str], Matting]]:
    """Name -> what makes a camera's matting. The first is the default."""
    return {
        "plate": lambda camera: PlateMatting(plates[camera]),
        "selfie": lambda camera: SelfieMatting(),
        "plate, closed_form": lambda camera: PlateMatting(plates[camera], "closed_form"),
    }


def accuracy(
    make: Callable[[str], Matting], frames: list[Frame], truth: dict[tuple, np.ndarray]
) -> dict[str, float]:
    whole, band, total, flicker = [], [], [], []
    before: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
    made: dict[str, Matting] = {}
    for row, image in frames:
        camera = row["camera"]
        matting = made.setdefault(camera, make(camera))
        wanted = stored_matte(
            truth[row["sequence"], row["timestep"], camera],
            np.reshape(row["transform"], (3, 3)),
            image.shape[:2],
        )
        error = matting(image) - wanted
        doubt = outline(wanted)
        whole.append(np.abs(error).mean())
        band.append(np.abs(error[doubt]).mean())
        total.append(np.abs(error[doubt]).sum() / 1000)
        if camera in before and before[camera][0] + 1 == row["timestep"]:
            _, last, around = before[camera]
            flicker.append(np.abs(error - last)[doubt | around].mean())
        before[camera] = row["timestep"], error, doubt
    return {
        "mean_absolute_error": round(float(np.mean(whole)), 5),
        "band_mean_absolute_error": round(float(np.mean(band)), 4),
        "band_sad_thousands": round(float(np.mean(total)), 4),
        "band_flicker": round(float(np.mean(flicker)), 4) if flicker else float("nan"),
    }


def outline(alpha: np.ndarray) -> np.ndarray:
    """[H, W] where a matte is neither nor, or near to it."""
    radius = band_radius(*alpha.shape)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    touched, solid = (alpha > 0.02).astype(np.uint8), (alpha > 0.98).astype(np.uint8)
    return cv2.dilate(touched, disc) > cv2.erode(solid, disc)


def speeds(
    plates: dict[str, Image], frames: list[Frame], names: list[str], rounds: int
) -> dict[str, float]:
    """CPU seconds per image, the median; the mattings take turns."""
    large = {camera: cv2.resize(plate, SPEED_SIZE) for camera, plate in plates.items()}
    makers = mattings(large)
    chosen = frames[:: max(1, len(frames) // rounds)][:rounds]
    spent: dict[str, list[float]] = {name: [] for name in names}
    for number, (row, image) in enumerate([chosen[0], *chosen]):
        encoded = encode_jpeg(cv2.resize(image, SPEED_SIZE, interpolation=cv2.INTER_CUBIC))
        for name in names:
            matting = makers[name](row["camera"])
            start = time.process_time()
            alpha = matting(decode_image(encoded))
            encode_png(np.rint(alpha * 255).astype(np.uint8))
            if number:  # the first one warms up
                spent[name].append(time.process_time() - start)
    return {name: round(float(np.median(values)), 4) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("artifacts", type=Path, help="data/subjects/NAME")
    parser.add_argument("truth", type=Path, help="data/studio/NAME/truth")
    parser.add_argument("--quick", action="store_true", help="fewer frames, no closed form")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    ingest = given.artifacts / "ingest"
    plates = {
        row["camera"]: decode_image(row["image"])
        for row in read_rows(ingest / "backgrounds.parquet", schemas.BACKGROUNDS)
    }
    # Runs of four timesteps: neighbours, for the flicker, from all over the recording.
    period = 48 if given.quick else 16
    frames = [
        (row, decode_image(row["image"]))
        for row in read_rows(ingest / "frames.parquet", schemas.FRAMES)
        if row["timestep"] % period < 4
    ]
    truth = load_truth(given.truth).mattes()
    makers = mattings(plates)
    names = list(makers)[: 2 if given.quick else 3]
    seconds = speeds(plates, frames, names, 4 if given.quick else 12)
    figures: dict[str, Any] = {"images": len(frames)}
    for name in names:
        figures[name] = {
            **accuracy(makers[name], frames, truth),
            "cpu_seconds_802x550": seconds[name],
            "images_per_second_2_cores_802x550": round(2 / seconds[name], 1),
        }
    tell(figures, given.json)


if __name__ == "__main__":
    main()
