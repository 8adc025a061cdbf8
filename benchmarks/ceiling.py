"""The best scores that any avatar of a synthetic person could reach: those of perfect pictures.

    python -m benchmarks.ceiling data/subjects/demo data/studio/demo/truth [--quick] [--json FILE]

The held-out frames are drawn again as they were filmed, without the sensor's noise and without the
video's compression, cut as ingest cut the footage, and scored against the footage as evaluation
does. Then with the true matte instead of the estimated one, which no avatar can know either, and
blurred, which tells how sharp an avatar has to be.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import stored_matte
from gha_core.artifacts.images import Image
from gha_core.artifacts.stage_folder import read_json
from gha_core.compositing import over_white
from gha_core.dataset import Dataset, View
from gha_core.evaluation.catalogue import TASKS
from gha_core.evaluation.metrics import masked_mean, psnr_of, squared_error, ssim_map
from gha_core.evaluation.regions import region_masks
from gha_core.splits import Splits
from gha_core.synthetic import capture
from gha_core.synthetic.render import render
from gha_core.synthetic.truth import load_truth
from gha_core.tracked_face import TrackedFace

BLURS = (0.5, 0.8, 1.2)  # px, standard deviations
REGIONS = ("head", "mouth_eyes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, help="data/subjects/NAME")
    parser.add_argument("truth", type=Path, help="data/studio/NAME/truth")
    parser.add_argument("--test-camera", default="222200037")
    parser.add_argument("--test-sequence", default="FREE")
    parser.add_argument("--quick", action="store_true", help="every eighth frame")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    given = parser.parse_args()
    stages = (given.artifacts / name for name in ("ingest", "matting", "tracking"))
    splits = Splits(test_cameras=(given.test_camera,), test_sequences=(given.test_sequence,))
    dataset = Dataset(*stages, splits)
    views = [view for view in dataset.test if view.part == next(iter(TASKS))][
        :: 8 if given.quick else 1
    ]
    face = TrackedFace.load(given.artifacts / "tracking")
    settings = capture.Settings(**_tuples(read_json(given.truth / "truth.json")["settings"]))
    mattes = load_truth(given.truth).mattes()
    scores: dict[str, list[list[float]]] = {}
    for view in views:
        filmed = perfect(settings, view)
        stored, alpha = filmed_as_stored(filmed, view, dataset), dataset.alpha(view)
        true = stored_matte(mattes[view.key], view.transform, alpha.shape)
        plate = dataset._plates.get(view.camera)
        clean = over_white(stored, alpha, plate)
        pictures = {
            "without noise": clean,
            "with the true matte": over_white(stored, np.round(255 * true).astype(np.uint8), plate),
            **{f"blurred by {sigma} px": cv2.GaussianBlur(clean, (0, 0), sigma) for sigma in BLURS},
        }
        footage, inside = dataset.over_white(view), dataset.inside(view)
        masks = region_masks(face, dataset.cameras[view.camera], *view.motion, alpha)
        for name, picture in pictures.items():
            error, similarity = squared_error(footage, picture), ssim_map(footage, picture)
            row = []
            for region in REGIONS:
                mask = masks[region] & inside
                row += [psnr_of(error, mask), masked_mean(similarity, mask)]
            scores.setdefault(name, []).append(row)
    names = [f"{region} {metric}" for region in REGIONS for metric in ("psnr", "ssim")]
    figures = {
        name: dict(zip(names, np.mean(rows, 0).round(4).tolist(), strict=True))
        for name, rows in scores.items()
    }
    text = json.dumps({"views": len(views), **figures}, indent=2)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


def perfect(settings: capture.Settings, view: View) -> Image:
    """[H, W, 3] what the camera would have filmed without noise and compression."""
    scene, actor = capture._scene(settings), capture._actor(settings)
    number = capture.SEQUENCES.index(view.sequence)
    acted = capture.perform(
        view.sequence, scene.model.expression_names, settings.timesteps[number], settings.fps,
        np.random.default_rng([settings.seed, 12, number]),
    )  # fmt: skip
    pose = capture._pose(acted, view.timestep, scene.rest)
    stage = actor.stage(acted.expression[view.timestep], pose, scene.rest)
    camera = next(each for each in scene.cameras if each.name == view.camera)
    picture = render(actor, stage, camera, scene.lights)
    behind = scene.plates[camera.name] * (1 - picture.alpha[..., None])
    quiet = replace(settings, noise=0.0)
    return capture.expose(picture.colour + behind, quiet, np.random.default_rng(0))


def filmed_as_stored(filmed: Image, view: View, dataset: Dataset) -> NDArray[np.uint8]:
    """A filmed picture in the pixels of the stored frame."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV's pixels have integer centres
    warp = (np.linalg.inv(half) @ view.transform @ half)[:2]
    camera = dataset.cameras[view.camera]
    shrinks = view.transform[0, 0] < 1
    way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.warpAffine(filmed, warp, (camera.width, camera.height), flags=way).astype(np.uint8)


def _tuples(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


if __name__ == "__main__":
    main()
