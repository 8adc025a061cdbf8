"""One stretch of time, photo beside avatar: the report's video, and scores of what happens between
frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gha_core.artifacts.images import Image
from gha_core.dataset import Dataset, View
from gha_core.evaluation.metrics import flicker, jitter
from gha_core.evaluation.optional_metrics import VideoMetric
from gha_core.evaluation.regions import Mask
from gha_core.evaluation.scoring import Drivable, Judge, Score, side_by_side
from gha_core.reenactment import frontal_camera

Floats = NDArray[np.float32]


def clip_views(dataset: Dataset, most: int) -> list[View]:
    """At most ``most`` consecutive timesteps of one sequence, held out if any is, as the most
    frontal camera that shows them sees them."""
    new = [v for v in dataset.test if v.part != "novel_view"] or dataset.test or dataset.views
    sequence = new[0].sequence
    new = [view for view in new if view.sequence == sequence]
    cameras = [dataset.cameras[name] for name in sorted({view.camera for view in new})]
    camera = frontal_camera(cameras, [view.pose for view in new if view.pose is not None])
    return [view for view in new if view.camera == camera.name][:most]


def frame_rate(views: list[View]) -> float:
    """Of the clip, per second."""
    times = [view.time for view in views]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    return 1.0 / max(step, 1e-3)


@dataclass(frozen=True)
class _Shot:
    truth: Image
    image: Image
    head: Mask
    points: Floats | None  # [L, 2] px, keypoints of the rendering minus those of the photo


@dataclass
class Clip:
    """A clip that is watched once, frame by frame; afterwards ``scores`` has what was seen."""

    judge: Judge
    views: list[View]
    videos: Mapping[str, VideoMetric]
    scores: list[Score] = field(default_factory=list)

    def frames(self, avatar: Drivable) -> Iterator[Image]:
        """[H, 2 W, 3] photo and avatar, beside each other."""
        truths: list[Image] = []
        images: list[Image] = []
        recent: list[_Shot] = []
        shots = side_by_side(lambda view: self._shot(avatar, view), self.views)
        for number, shot in enumerate(shots):
            recent = [*recent[-2:], shot]
            self._between(recent, number)
            if self.videos:
                truths.append(shot.truth)
                images.append(shot.image)
            yield np.concatenate([shot.truth, shot.image], axis=1)
        if len(truths) > 1:
            rate = frame_rate(self.views)
            for name, metric in self.videos.items():
                value = metric(np.stack(truths), np.stack(images), rate)
                self.scores.append(Score(self.views[0], "full", name, value))

    def _shot(self, avatar: Drivable, view: View) -> _Shot:
        dataset = self.judge.dataset
        truth = dataset.over_white(view)
        image, _ = avatar.render(dataset.cameras[view.camera], *view.motion)
        seen, rendered = (self.judge.detector.detect(each) for each in (truth, image))
        offsets = rendered.points - seen.points if seen and rendered else None
        return _Shot(truth, image, self.judge.masks(view)["head"], offsets)

    def _between(self, recent: list[_Shot], number: int) -> None:
        if len(recent) < 2 or recent[-1].truth.shape != recent[-2].truth.shape:
            return
        view, (before, now) = self.views[number], recent[-2:]
        errors = [shot.image.astype(np.float32) - shot.truth for shot in (before, now)]
        value = flicker(errors[0], errors[1], before.head & now.head)
        self.scores.append(Score(view, "head", "flicker", value))
        offsets = [shot.points for shot in recent if shot.points is not None]
        if len(offsets) == 3:
            self.scores.append(Score(view, "full", "jitter", jitter(np.stack(offsets))))


def frames_per_second(render: Callable[[], object], clock: Callable[[], float]) -> float:
    """Of drawing one view after the other, all cores at work: median of five after a first."""
    render()
    seconds = []
    for _ in range(5):
        began = clock()
        render()
        seconds.append(clock() - began)
    return 1.0 / max(float(np.median(seconds)), 1e-9)
