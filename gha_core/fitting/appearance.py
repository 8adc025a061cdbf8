"""Poses and expressions from what the skin looks like, where landmarks err together.

A detector's points slide with the view and the expression: all of them a little, the same way for
seconds on end, and the fitted head nods along. Freckles, brows and nostrils do not slide. So each
camera learns how every point of the face looks, as a mean over training timesteps, and each
timestep's head is moved to where its photos look like that; in rounds, from coarse to fine.

Points that look different from one timestep to the next (lids, lips) have little say. An error that
all timesteps share cannot be seen this way; there the landmarks have the word. And as their errors
change slowly, so do the corrections: what one camera can hardly see, depth above all, must not
tremble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from gha_core.artifacts.images import Image
from gha_core.cameras import Camera
from gha_core.fitting import rotations
from gha_core.fitting.pictures import lookup, shrunk, slope
from gha_core.fitting.residuals import Quadratic
from gha_core.fitting.solver import smoothness, solve_smooth
from gha_core.progress import track

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]
Photos = Callable[[int], Mapping[int, Image]]
"""Timestep -> camera -> [H, W, 3] uint8; both are indices. Called from several threads."""

_BLURS = 2.0, 1.4, 1.0, 0.7, 0.5, 0.5  # px, of the rounds; landmarks are a pixel or two off
_SHADING = 4.0  # what is this much wider than the blur may be light, and is left out
_HEAD = 160.0  # px; larger heads are shrunk to it
_STEPS = 2  # Gauss-Newton steps of a timestep in a round
_FACING = 0.15  # cosine between normal and ray from which on a point is seen well
# Standard deviations of what landmarks leave to do: rad, head lengths, of a coefficient.
_TURN, _MOVE, _EXPRESSION = 0.03, 0.03, 0.08
# Of the second differences in time of that.
_TURN_BENDS, _MOVE_BENDS, _EXPRESSION_BENDS = 0.002, 0.002, 0.03
_NOISE = 0.002  # of the photos' range: least standard deviation of how a point looks
_ROBUST = 3.0  # standard deviations beyond which a point counts as covered
_INDEPENDENT = 0.1  # points err together; this share of them counts as independent
_LEAST = 3  # timesteps that a camera must have seen a point in


@dataclass(frozen=True)
class Skin:
    """Points of the face in head space.

    Attributes:
        neutral: [N, 3]; normals: [N, 3] unit; moves: [N, 3, E] displacement at full expression.
    """

    neutral: Floats
    normals: Floats
    moves: Floats


@dataclass(frozen=True)
class Motion:
    """What the head does: matrices [T, 3, 3] head to world, translation [T, 3] m, expression
    [T, E]; scale: metres per unit of head space."""

    matrices: Floats
    translation: Floats
    expression: Floats
    scale: float


def align(
    motion: Motion,
    skin: Skin,
    cameras: Sequence[Camera],
    photos: Photos,
    teachers: Sequence[int],
    runs: Sequence[tuple[Indices, Indices]],
) -> Motion:
    """The motion at which all photos of a camera look alike on the skin.

    Args:
        motion: from landmarks; the result stays near to it.
        cameras: those that training may use.
        teachers: the training timesteps that say how the skin looks.
        runs: timesteps that follow each other, and their numbers, some of which may be missing.
    """
    aligner = _Aligner(motion, skin, cameras)
    looks: dict[float, _Look] = {}
    known = None
    others = sorted(set(range(len(motion.expression))) - set(teachers))
    workers = torch.get_num_threads()
    # BLAS adds up in another order when its threads happen to be taken by another of ours.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for blur in _BLURS:
            taught = partial(aligner.taught, photos, known, blur)
            rounds = track(pool.map(taught, teachers), "learning the skin's looks", len(teachers))
            known = looks[blur] = _Look.of(blur, rounds)
        improved = partial(aligner.improved, photos, list(looks.values()))
        for _ in track(pool.map(improved, others), "aligning the photos", len(others)):
            pass
    for indices, numbers in runs:
        aligner.smooth(indices, numbers)
    return aligner.motion


@dataclass(frozen=True)
class _Look:
    """How the points look to the cameras in photos that are blurred by ``blur``.

    Attributes:
        mean: [C, N]; weight: [C, N] 1 / variance, 0 where unknown.
    """

    blur: float
    mean: Floats
    weight: Floats

    @staticmethod
    def of(blur: float, samples: Iterable[tuple[Bools, Floats]]) -> _Look:
        """From visibility and values [C, N] of every timestep."""
        sums = sum(np.stack([seen, seen * value, seen * value**2]) for seen, value in samples)
        count, total, squares = np.asarray(sums)
        mean = total / np.maximum(count, 1)
        variance = np.maximum(squares / np.maximum(count, 1) - mean**2, 0) + _NOISE**2
        return _Look(blur, mean, np.where(count >= _LEAST, 1 / variance, 0))


class _Aligner:
    """A motion that can be improved one timestep at a time, several of them side by side."""

    def __init__(self, motion: Motion, skin: Skin, cameras: Sequence[Camera]) -> None:
        self._start, self._skin, self._cameras = motion, skin, cameras
        self._centre = skin.neutral.mean(0)
        self.motion = replace(
            motion,
            matrices=motion.matrices.copy(),
            translation=motion.translation.copy(),
            expression=motion.expression.copy(),
        )
        expressions = motion.expression.shape[1]
        self._precision = _precision(_TURN, _MOVE, _EXPRESSION, expressions)
        self._bends = _precision(_TURN_BENDS, _MOVE_BENDS, _EXPRESSION_BENDS, expressions)
        self._information = np.tile(np.diag(self._precision), (len(motion.expression), 1, 1))
        self._small = [shrunk(each, motion.translation, motion.scale, _HEAD) for each in cameras]

    def taught(
        self, photos: Photos, known: _Look | None, blur: float, t: int
    ) -> tuple[Bools, Floats]:
        """Improve timestep ``t``, if there is a look to compare with, and say how the points look
        to the cameras then: visibility and values [C, N]."""
        pictures = photos(t)
        if known:
            self._improve(t, pictures, known)
        seen = np.zeros((len(self._cameras), len(self._skin.neutral)), bool)
        value = np.zeros(seen.shape)
        for c, picture in pictures.items():
            found = self._project(t, c)
            seen[c] = found.visible
            value[c] = lookup(self._band(c, picture, blur), found.pixels[:, None])[:, 0]
        return seen, value

    def improved(self, photos: Photos, looks: Sequence[_Look], t: int) -> None:
        """Improve timestep ``t`` by one look after the other."""
        pictures = photos(t)
        for look in looks:
            self._improve(t, pictures, look)

    def _improve(self, t: int, pictures: Mapping[int, Image], look: _Look) -> None:
        """Gauss-Newton on pose and expression of timestep ``t``."""
        bands = {c: self._band(c, picture, look.blur) for c, picture in pictures.items()}
        for _ in range(_STEPS):
            H, g = np.diag(self._precision), self._precision * self._moved(t)
            arms = self._points(t) - self._centre
            for c, band in bands.items():
                found = self._project(t, c)
                use = np.flatnonzero(found.visible & (look.weight[c] > 0))
                error = lookup(band, found.pixels[use][:, None])[:, 0] - look.mean[c, use]
                weight = look.weight[c, use]
                weight = _INDEPENDENT * weight / (1 + weight * (error / _ROBUST) ** 2) ** 2
                # A point is at R (exp(turn) arm + centre + shift): derivatives in head space.
                shift = slope(band, found.pixels[use])[:, None] @ found.by_point[use]
                moves = (shift @ self._skin.moves[use])[:, 0]
                J = np.concatenate([np.cross(arms[use], shift[:, 0]), shift[:, 0], moves], axis=1)
                H += (J * weight[:, None]).T @ J
                g += (J * weight[:, None]).T @ error
            self._move(t, np.linalg.solve(H, -g).astype(float))
            self._information[t] = H

    def smooth(self, indices: Indices, numbers: Indices) -> None:
        """Let the corrections of timesteps that follow each other agree, where the photos leave
        room for it."""
        found = np.stack([self._moved(t) for t in indices])
        none = np.zeros((*found.shape, 0))
        photos = Quadratic(
            self._information[indices], np.zeros_like(found), none, np.zeros((0, 0)), np.zeros(0)
        )
        bends = smoothness(numbers, self._bends)
        free = np.full(found.shape, np.nan)
        for t, moved in zip(
            indices, found + solve_smooth(photos, bends, found, free, 0), strict=True
        ):
            self._place(t, moved)

    def _points(self, t: int) -> Floats:
        return self._skin.neutral + self._skin.moves @ self.motion.expression[t]

    def _moved(self, t: int) -> Floats:
        """[6 + E] turn and shift of the face, and change of its expression, from the landmarks'."""
        start, now = self._start, self.motion
        before, matrix = start.matrices[t], now.matrices[t]
        shift = (now.translation[t] - start.translation[t]) / now.scale
        shift = matrix.T @ (shift + (matrix - before) @ self._centre)
        turn = rotations.logarithm(before.T @ matrix)
        return np.concatenate([turn, shift, now.expression[t] - start.expression[t]])

    def _move(self, t: int, step: Floats) -> None:
        now, turn = self.motion, rotations.exponential(step[:3])
        matrix = now.matrices[t]
        shift = self._centre - turn @ self._centre + step[3:6]
        now.translation[t] += now.scale * matrix @ shift
        now.matrices[t] = matrix @ turn
        now.expression[t] = np.clip(now.expression[t] + step[6:], 0, 1)

    def _place(self, t: int, moved: Floats) -> None:
        """The inverse of :meth:`_moved`."""
        start, now = self._start, self.motion
        before = start.matrices[t]
        matrix = before @ rotations.exponential(moved[:3])
        shift = matrix @ moved[3:6] - (matrix - before) @ self._centre
        now.matrices[t] = matrix
        now.translation[t] = start.translation[t] + now.scale * shift
        now.expression[t] = np.clip(start.expression[t] + moved[6:], 0, 1)

    def _project(self, t: int, c: int) -> _Projection:
        now, camera = self.motion, self._small[c]
        matrix = now.matrices[t]
        world = now.scale * self._points(t) @ matrix.T + now.translation[t]
        rays = world - camera.centre
        facing = -((rays @ matrix) * self._skin.normals).sum(1) / np.linalg.norm(rays, axis=1)
        local = world @ camera.w2c[:3, :3].T + camera.w2c[:3, 3]
        depth = np.maximum(local[:, 2], 1e-6)
        plane = local[:, :2] / depth[:, None]
        pixels = plane @ camera.K[:2, :2].T + camera.K[:2, 2]
        inside = ((pixels > 2) & (pixels < (camera.width - 2, camera.height - 2))).all(1)
        turned = camera.w2c[:3, :3] @ matrix * now.scale
        across = (turned[None, :2] - plane[:, :, None] * turned[2]) / depth[:, None, None]
        return _Projection(
            (facing > _FACING) & inside & (local[:, 2] > 0), pixels, camera.K[:2, :2] @ across
        )

    def _band(self, c: int, picture: Image, blur: float) -> NDArray[np.float32]:
        """[H, W] luma 0..1 without noise and without shading, undistorted and shrunk."""
        full, small = self._cameras[c], self._small[c]
        luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if np.any(full.distortion):
            luma = cv2.undistort(luma, full.K, full.distortion)
        luma = cv2.resize(luma / 255, (small.width, small.height), interpolation=cv2.INTER_AREA)
        fine = cv2.GaussianBlur(luma, (0, 0), blur)
        # So wide a blur is as good, and ten times faster, at a quarter of the size.
        quarter = cv2.resize(fine, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        shading = cv2.GaussianBlur(quarter, (0, 0), _SHADING * blur / 4)
        shading = cv2.resize(shading, luma.shape[::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(fine - shading, np.float32)


@dataclass(frozen=True)
class _Projection:
    """The points in one camera: visible [N], pixels [N, 2] and their derivatives by the point's
    place in head space by_point [N, 2, 3]."""

    visible: Bools
    pixels: Floats
    by_point: Floats


def _precision(turn: float, move: float, expression: float, expressions: int) -> Floats:
    """[6 + E] 1 / variance."""
    deviations = np.repeat([turn, move, expression], [3, 3, expressions])
    return np.asarray(1 / deviations**2)
