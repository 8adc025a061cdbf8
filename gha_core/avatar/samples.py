"""What a training step sees: one moment of the performance from a few cameras."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gha_core.artifacts.images import Image
from gha_core.avatar.super_resolution import SCALE
from gha_core.cameras import Camera
from gha_core.dataset import Dataset, Key, View
from gha_core.errors import StageError
from gha_core.pose import HeadPose

CACHE_BYTES = 1_500_000_000  # decoded pictures kept in memory


@dataclass(frozen=True)
class Frame:
    """One timestep with all of its training views; ``index`` counts the frames from 0."""

    index: int
    pose: HeadPose
    expression: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    views: tuple[View, ...]


@dataclass(frozen=True)
class Batch:
    """B views of one frame, W x H pixels, and the same at the features' size, w x h.

    Attributes:
        K: [B, 3, 3]; w2c: [B, 4, 4]; cameras: their numbers among the training cameras.
        truth: [B, 3, H, W] uint8 on white; small: [B, 3, h, w] float in 0..1.
        alpha: [B, 1, h, w] matte.
        weight: [B, 1, H, W] 1 inside the photo, 0 beyond its edge; small_weight likewise.
        focus: per view the pixel (x, y) about which to look closely; zoom: how much larger, when
            there is a super-resolution network.
    """

    K: Tensor
    w2c: Tensor
    truth: Tensor
    small: Tensor
    alpha: Tensor
    weight: Tensor
    small_weight: Tensor
    focus: list[tuple[float, float]]
    zoom: float = 1.0
    cameras: tuple[int, ...] = (0,)

    @property
    def scale(self) -> int:
        """Picture pixels per feature pixel, along each side."""
        return self.truth.shape[-1] // self.alpha.shape[-1]


@dataclass(frozen=True)
class _Decoded:
    """One view: picture [3, H, W] uint8 on white, and at the features' size small [3, h, w] and
    alpha [1, h, w] float in 0..1."""

    picture: Tensor
    small: Tensor
    alpha: Tensor


class TrainingViews:
    """The training rows of a dataset, and batches of them. Test rows are never read.

    Args:
        scale: picture pixels per feature pixel, along each side.
        augmentation: views are zoomed by 1 / (1 + this) to 1 + this.
        rare: how much more often frames of rare expressions are seen, see :func:`shares`.

    Raises:
        StageError: no training row, or cameras whose pictures differ in size.
    """

    def __init__(
        self,
        dataset: Dataset,
        seed: int,
        scale: int = SCALE,
        augmentation: float = 0.0,
        rare: float = 0.0,
    ) -> None:
        self._dataset, self.seed, self._scale = dataset, seed, scale
        self._augmentation = augmentation
        rows: OrderedDict[tuple[str, int], list[View]] = OrderedDict()
        for view in dataset.train:
            rows.setdefault((view.sequence, view.timestep), []).append(view)
        if not rows:
            raise StageError("No training view is left; look at the splits and at the rejects.")
        self.frames: list[Frame] = []
        for views in rows.values():
            first = views[0]
            if first.pose is None or first.expression is None or first.landmarks is None:
                raise StageError("Training an avatar needs tracked poses and expressions.")
            self.frames.append(
                Frame(len(self.frames), first.pose, first.expression, first.landmarks, tuple(views))
            )
        self.cameras = sorted({view.camera for view in dataset.train})
        sizes = {
            (dataset.cameras[name].width, dataset.cameras[name].height) for name in self.cameras
        }
        if len(sizes) > 1:
            raise StageError(
                f"The cameras store frames of different sizes: {sorted(sizes)}. Ingest them at one."
            )
        width, height = sizes.pop()
        self.width, self.height = width // scale * scale, height // scale * scale
        expressions = np.stack([frame.expression for frame in self.frames])
        self._until = np.cumsum(shares(expressions, rare))
        self._cache: OrderedDict[Key, _Decoded] = OrderedDict()
        self._capacity = max(CACHE_BYTES // (7 * width * height), 1)
        self._inside: dict[bytes, Tensor] = {}

    @property
    def count(self) -> int:
        """Number of training views."""
        return sum(len(frame.views) for frame in self.frames)

    def camera(self, view: View) -> Camera:
        return self._dataset.cameras[view.camera]

    def picture(self, view: View) -> tuple[Image, Image]:
        """[H, W, 3] uint8 on white, and the matte [H, W] uint8."""
        return self._dataset.over_white(view), self._dataset.alpha(view)

    def _decoded(self, view: View) -> _Decoded:
        key = view.key
        if key not in self._cache:
            picture, matte = (
                torch.from_numpy(image[: self.height, : self.width]) for image in self.picture(view)
            )
            planes = picture.permute(2, 0, 1).contiguous()
            small = F.avg_pool2d(planes.float() / 255, self._scale)
            alpha = F.avg_pool2d(matte[None].float() / 255, self._scale)
            self._cache[key] = _Decoded(planes, small, alpha)
            if len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        return self._cache[key]

    def at_step(self, step: int, views: int) -> list[tuple[Frame, list[Batch]]]:
        """What step number ``step`` sees: ``views`` views of a frame, each a batch of its own, or
        as many frames as it takes if they have fewer cameras than that. The frames of a pass come
        in an order shuffled anew for every pass. A function of (seed, step) alone."""
        cameras = min(max(len(frame.views) for frame in self.frames), views)
        count = -(-views // cameras)
        samples = []
        for number in range(step * count, (step + 1) * count):
            epoch, place = divmod(number, len(self.frames))
            order = np.random.default_rng((self.seed, 2, epoch)).permutation(len(self.frames))
            frame = self.frames[seen_in_pass(epoch, self._until)[order[place]]]
            rng = np.random.default_rng((self.seed, 3, number))
            chosen = rng.permutation(len(frame.views))[:cameras]
            samples.append((frame, [self.batch(frame, [frame.views[i]], rng) for i in chosen]))
        return samples

    def batch(self, frame: Frame, views: list[View], rng: np.random.Generator) -> Batch:
        cameras = [self.camera(view) for view in views]
        decoded = [self._decoded(view) for view in views]
        weight = torch.stack([self._inside_photo(view) for view in views])
        return Batch(
            K=torch.from_numpy(np.stack([camera.K for camera in cameras])).float(),
            w2c=torch.from_numpy(np.stack([camera.w2c for camera in cameras])).float(),
            truth=torch.stack([each.picture for each in decoded]),
            small=torch.stack([each.small for each in decoded]),
            alpha=torch.stack([each.alpha for each in decoded]),
            weight=weight,
            small_weight=(F.avg_pool2d(weight, self._scale) == 1).float(),
            focus=[self._focus(frame, view, rng) for view in views],
            zoom=(1 + self._augmentation) ** rng.uniform(-1, 1) if self._augmentation else 1.0,
            cameras=tuple(self.cameras.index(view.camera) for view in views),
        )

    def _focus(self, frame: Frame, view: View, rng: np.random.Generator) -> tuple[float, float]:
        """A landmark of the face as often as any place where the person is."""
        if rng.random() < 0.5:
            point = frame.landmarks[rng.integers(len(frame.landmarks))]
            x, y = self.camera(view).project(frame.pose.to_world(point))
            if np.isfinite([x, y]).all():
                return float(x), float(y)
        shown = (self._decoded(view).alpha[0] > 0.5).nonzero()
        if not len(shown):
            return self.width / 2, self.height / 2
        row, column = shown[rng.integers(len(shown))].tolist()
        return self._scale * (column + 0.5), self._scale * (row + 0.5)

    def _inside_photo(self, view: View) -> Tensor:
        """[1, H, W] 1 inside the photo, 0 beyond its edge."""
        key = view.camera.encode() + view.transform.tobytes() + repr(view.source_size).encode()
        if key not in self._inside:
            inside = self._dataset.inside(view)[: self.height, : self.width]
            self._inside[key] = torch.from_numpy(inside.astype(np.float32))[None]
        return self._inside[key]


def shares(expressions: NDArray[np.float32], rare: float) -> NDArray[np.float64]:
    """How often each of F frames is seen in a pass of F frames, on average.

    1/4 + 3/4 n^-rare / mean(n^-rare), where n is how many frames look like this one: the sum of
    exp(-d^2 / 2 s^2) over all frames, itself among them, d being the distance of their expressions
    and s a quarter of the root mean square distance of two frames.

    Args:
        expressions: [F, E]; rare: 0 for every frame as often, 1 for as often as it is rare. A frame
            that looks like no other may then fill much of a pass, be it rare or tracked wrongly.
    """
    if rare == 0:
        return np.ones(len(expressions))
    values = expressions.astype(float)
    spread = max(2 * values.var(0).sum() / 16, 1e-12)
    alike = [np.exp(-((values - one) ** 2).sum(1) / (2 * spread)).sum() for one in values]
    wanted = np.array(alike) ** -rare
    return np.asarray(0.25 + 0.75 * wanted / wanted.mean())


def seen_in_pass(number: int, until: NDArray[np.float64]) -> NDArray[np.int64]:
    """The F frames of a pass, ascending: those that a comb with teeth at a distance of 1 meets.

    The comb is shifted by the golden ratio from pass to pass. Of any 5 passes the shifts lie less
    than 1/4 apart (Steinhaus' three gaps), so every frame is seen in one of them.

    Args:
        until: [F] cumulative :func:`shares`.
    """
    shift = number * (5**0.5 - 1) / 2 % 1
    found = np.searchsorted(until, np.arange(len(until)) + shift, side="right")
    return found.clip(max=len(until) - 1)  # the last sum may be rounded down
