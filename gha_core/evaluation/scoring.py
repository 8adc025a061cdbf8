"""Scoring an avatar on held-out views: scores of every view, and their means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.dataset import Dataset, View
from gha_core.evaluation.metrics import (
    keypoint_distance,
    masked_mean,
    psnr,
    ssim_map,
)
from gha_core.evaluation.optional_metrics import Metric
from gha_core.evaluation.regions import region_masks
from gha_core.landmarks import FaceMeshDetector
from gha_core.pose import HeadPose
from gha_core.tracked_face import TrackedFace

TASKS = ("novel_view_and_expression", "novel_expression", "novel_view")
"""From the hardest to the easiest; the first one that has views is the headline."""

HIGHER_IS_BETTER = {"psnr", "ssim", "psnr_expression_frozen", "psnr_mean_image", "csim"}


class Drivable(Protocol):
    """What is scored: anything that renders a head from a camera, a pose and an expression."""

    def render(
        self, camera: Camera, pose: HeadPose, expression: NDArray[np.float32]
    ) -> tuple[Image, Image]: ...


@dataclass(frozen=True)
class Score:
    """One number: ``metric`` of one view, over one region."""

    view: View
    region: str
    metric: str
    value: float


@dataclass(frozen=True)
class ScoredView:
    """A view's pictures beside its scores.

    Attributes:
        truth, image: [H, W, 3] over white; frozen: the same pose with a neutral expression.
        head: [H, W] the head mask.
    """

    view: View
    truth: Image
    image: Image
    frozen: Image
    head: NDArray[np.bool_]
    scores: tuple[Score, ...]

    def value(self, region: str, metric: str) -> float:
        found = [s.value for s in self.scores if (s.region, s.metric) == (region, metric)]
        return found[0] if found else float("nan")


def choose_views(dataset: Dataset, most: int) -> dict[str, list[View]]:
    """At most ``most`` views of every task, evenly spaced in key order (``most`` 0: all)."""
    by_task: dict[str, list[View]] = defaultdict(list)
    for view in dataset.test:
        by_task[view.part].append(view)
    return {
        task: evenly(by_task[task], most or len(by_task[task])) for task in TASKS if by_task[task]
    }


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, evenly spaced, the first one included."""
    if len(items) <= most:
        return list(items)
    return [items[int(index * len(items) / most)] for index in range(most)]


def mean_images(dataset: Dataset, most: int = 120) -> dict[str, Image]:
    """The mean training image over white, of each training camera and ("") of all of them.

    The baseline that any avatar must beat.
    """
    sums: dict[str, tuple[NDArray[np.float64], int]] = {}
    cameras = sorted({view.camera for view in dataset.train})
    for camera in cameras:
        views = [view for view in dataset.train if view.camera == camera]
        images = [dataset.over_white(v) for v in evenly(views, max(1, most // len(cameras)))]
        sums[camera] = (np.sum(images, axis=0, dtype=np.float64), len(images))
    means = {name: (total / count).astype(np.uint8) for name, (total, count) in sums.items()}
    shapes = {total.shape for total, _ in sums.values()}
    if len(shapes) == 1:
        count = sum(count for _, count in sums.values())
        total = np.sum([total for total, _ in sums.values()], axis=0)
        means[""] = (total / count).astype(np.uint8)
    return means


def score_views(
    avatar: Drivable,
    dataset: Dataset,
    face: TrackedFace,
    views: Iterable[View],
    detector: FaceMeshDetector,
    optional: dict[str, Metric],
) -> Iterator[ScoredView]:
    """Render and score every view, several at a time; in order.

    Pixels beyond the photo's edge (padding of the crop) count in no region.
    """
    means = mean_images(dataset)

    def score(view: View) -> ScoredView:
        return _score_view(avatar, dataset, face, view, detector, optional, means)

    # Views on a core each take little more than half the time of one after the other on all cores.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=threadpool_limits, initargs=(1,)) as pool:
        yield from pool.map(score, views)


def _score_view(
    avatar: Drivable,
    dataset: Dataset,
    face: TrackedFace,
    view: View,
    detector: FaceMeshDetector,
    optional: dict[str, Metric],
    means: dict[str, Image],
) -> ScoredView:
    pose, expression = view.motion
    camera, alpha = dataset.cameras[view.camera], dataset.alpha(view)
    truth = dataset.over_white(view)
    image, _ = avatar.render(camera, pose, expression)
    frozen, _ = avatar.render(camera, pose, np.zeros_like(expression))
    masks = region_masks(face, camera, pose, expression, alpha)
    inside = dataset.inside(view)
    masks = {name: mask & inside for name, mask in masks.items()}
    similarity = ssim_map(truth, image)
    scores: list[Score] = []
    for region, mask in masks.items():
        scores.append(Score(view, region, "psnr", psnr(truth, image, mask)))
        scores.append(Score(view, region, "ssim", masked_mean(similarity, mask)))
    detail = masks["mouth_eyes"]
    scores.append(Score(view, "mouth_eyes", "psnr_expression_frozen", psnr(truth, frozen, detail)))
    mean = means.get(view.camera, means.get(""))
    if mean is not None:
        scores.append(Score(view, "head", "psnr_mean_image", psnr(truth, mean, masks["head"])))
    scores.append(Score(view, "full", "akd", _keypoints(detector, truth, image)))
    for name, metric in optional.items():
        scores.append(Score(view, "full", name, metric(truth, image)))
    return ScoredView(view, truth, image, frozen, masks["head"], tuple(scores))


def _keypoints(detector: FaceMeshDetector, truth: Image, image: Image) -> float:
    seen, rendered = detector.detect(truth), detector.detect(image)
    if seen is None or rendered is None:
        return float("nan")
    return keypoint_distance(seen.points, rendered.points)


def summarise(scores: Iterable[tuple[str, Score]]) -> dict[str, Any]:
    """task -> region -> metric -> {mean, std, median, count} over the views where it is defined."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for task, score in scores:
        values[task, score.region, score.metric].append(score.value)
    table: dict[str, Any] = {}
    for (task, region, metric), numbers in sorted(values.items()):
        known = np.array([value for value in numbers if np.isfinite(value)])
        if len(known):
            table.setdefault(task, {}).setdefault(region, {})[metric] = {
                "mean": round(float(known.mean()), 4),
                "std": round(float(known.std()), 4),
                "median": round(float(np.median(known)), 4),
                "count": len(known),
            }
    return table
