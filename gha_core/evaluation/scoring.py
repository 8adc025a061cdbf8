"""Scoring an avatar on held-out views: scores of every view, and their means."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.dataset import Dataset, View
from gha_core.evaluation.catalogue import TASKS
from gha_core.evaluation.metrics import (
    keypoint_distance,
    masked_mean,
    psnr,
    psnr_of,
    squared_error,
    ssim_map,
)
from gha_core.evaluation.optional_metrics import ImageMetric
from gha_core.evaluation.regions import Mask, region_masks
from gha_core.landmarks import FaceMeshDetector
from gha_core.pose import HeadPose
from gha_core.tracked_face import TrackedFace

In = TypeVar("In")
Out = TypeVar("Out")


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
    """All scores of a view."""

    view: View
    scores: tuple[Score, ...]

    def value(self, region: str, metric: str) -> float:
        found = [s.value for s in self.scores if (s.region, s.metric) == (region, metric)]
        return found[0] if found else float("nan")


@dataclass(frozen=True)
class Judge:
    """All that scoring a view takes, beside the avatar.

    Attributes:
        optional: metrics by name.
        means: the mean training image of each camera, and ("") of all; see :func:`mean_images`.
        frozen: of which task the neutral expression is scored, too.
    """

    dataset: Dataset
    face: TrackedFace
    detector: FaceMeshDetector
    optional: Mapping[str, ImageMetric]
    means: Mapping[str, Image]
    frozen: str

    def masks(self, view: View) -> dict[str, Mask]:
        """The [H, W] mask of every region; padding beyond the photo's edge counts in none."""
        camera, alpha = self.dataset.cameras[view.camera], self.dataset.alpha(view)
        inside = self.dataset.inside(view)
        masks = region_masks(self.face, camera, *view.motion, alpha)
        return {name: mask & inside for name, mask in masks.items()}

    def score(self, avatar: Drivable, view: View) -> ScoredView:
        """Render one view and score it."""
        pose, expression = view.motion
        camera, truth = self.dataset.cameras[view.camera], self.dataset.over_white(view)
        image, _ = avatar.render(camera, pose, expression)
        masks = self.masks(view)
        error, similarity = squared_error(truth, image), ssim_map(truth, image)
        values: dict[tuple[str, str], float] = {}
        for region, mask in masks.items():
            values[region, "psnr"] = psnr_of(error, mask)
            values[region, "ssim"] = masked_mean(similarity, mask)
        if view.part == self.frozen:
            frozen, _ = avatar.render(camera, pose, np.zeros_like(expression))
            still = psnr(truth, frozen, masks["mouth_eyes"])
            values["mouth_eyes", "psnr_expression_frozen"] = still
        mean = self.means.get(view.camera, self.means.get(""))
        if mean is not None:
            values["head", "psnr_mean_image"] = psnr(truth, mean, masks["head"])
        values["full", "akd"] = self._keypoints(truth, image)
        for name, metric in self.optional.items():
            values["full", name] = metric(truth, image)
        return ScoredView(view, tuple(Score(view, *key, value) for key, value in values.items()))

    def head_psnr(self, avatar: Drivable, view: View) -> float:
        """That score alone, dB."""
        image, _ = avatar.render(self.dataset.cameras[view.camera], *view.motion)
        return psnr(self.dataset.over_white(view), image, self.masks(view)["head"])

    def _keypoints(self, truth: Image, image: Image) -> float:
        seen, rendered = self.detector.detect(truth), self.detector.detect(image)
        if seen is None or rendered is None:
            return float("nan")
        return keypoint_distance(seen.points, rendered.points)


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
        images = list(side_by_side(dataset.over_white, evenly(views, max(1, most // len(cameras)))))
        sums[camera] = (np.sum(images, axis=0, dtype=np.float64), len(images))
    means = {name: (total / count).astype(np.uint8) for name, (total, count) in sums.items()}
    shapes = {total.shape for total, _ in sums.values()}
    if len(shapes) == 1:
        count = sum(count for _, count in sums.values())
        total = np.sum([total for total, _ in sums.values()], axis=0)
        means[""] = (total / count).astype(np.uint8)
    return means


def side_by_side(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """``work`` of every item, in order, an item per core; no more than a few results wait.

    Views on a core each take little more than half the time of one after the other on all cores.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(threads, initializer=threadpool_limits, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def summarise(scores: Iterable[Score]) -> dict[str, Any]:
    """task -> region -> metric -> {mean, std, median, count} over the views where it is defined."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for score in scores:
        values[score.view.part, score.region, score.metric].append(score.value)
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
