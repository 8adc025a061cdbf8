"""The tracker: how fast, against first-order optimisation; from how far off; and how exact.

    python -m benchmarks.tracking --quick --json FILE
    python -m benchmarks.tracking --subject data/subjects/talking

What is seen is generated from the head model with noise, so that landmarks are given and the truth
is known. The peer minimises the very energy of the tracker's joint fit by Adam, from the same start
and down to the tracker's value; reached or not, it stops at a change of 1e-10 or after --patience
seconds. Where no peer got there, "times_faster" is what it is at least. Seconds are of the CPU, so
that a busy machine does not count. Two more rows: fits of a rig whose unit or world is another must
be the same fit; with a tracked real subject, how far its landmarks stay from the fit (median over
views of the RMS of a view).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from gha_core.artifacts import schemas
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_rows
from gha_core.cameras import Camera
from gha_core.faces import FaceModel, head_model
from gha_core.fitting import Observations, Settings, track_head
from gha_core.fitting.expressions import PARTED, RIDGE, ExpressionPrior
from gha_core.fitting.initial_pose import initial_pose
from gha_core.fitting.observations import LandmarkModel
from gha_core.fitting.residuals import INDEPENDENT, SIGMA, Conditions, State, pull
from gha_core.fitting.tracker import SIZE, WORN, Fitter, first_state
from gha_core.landmarks import points
from gha_core.synthetic.sightings import Actor, rig

Floats = NDArray[np.float64]
RATES = 1e-3, 1e-2
STEPS = 30  # of the tracker, more than it needs
SAME_VALUE = 1e-4  # of the energy that the tracker removes: the peer is done when it is so near


class Energy:
    """The energy of the tracker's joint fit in PyTorch, as a function of :meth:`unknowns`."""

    def __init__(
        self,
        start: State,
        landmarks: LandmarkModel,
        seen: Observations,
        usual_scale: float,
        known: ExpressionPrior,
    ) -> None:
        conditions = Conditions.at(start, landmarks, seen)
        self.mean, self.identity = _tensors(landmarks.mean, landmarks.identity)
        (self.expression,) = _tensors(landmarks.expression.reshape(-1, start.expression.shape[1]))
        self.K, self.w2c = _tensors(seen.intrinsics, seen.extrinsics)
        self.seen, self.drift, self.unit = _tensors(
            conditions.seen.transpose(0, 2, 3, 1), conditions.drift.transpose(0, 2, 3, 1),
            conditions.unit[..., None, None],
        )  # fmt: skip
        (self.base,) = _tensors(conditions.trust / SIGMA**2 * INDEPENDENT)
        (self.reference,) = _tensors(start.reference)
        self.settings, self.usual_scale, self.known = Settings(), usual_scale, known
        self.strength = self.settings.identity_prior * float(seen.views.sum())

    def unknowns(self, state: State) -> list[Tensor]:
        """Rotation, translation and scale (in head lengths of the mean person), expression,
        identity."""
        scale = np.array(state.scale) / self.usual_scale
        moved = state.translation / self.usual_scale
        return _tensors(state.rotation, moved, scale, state.expression, state.identity)

    def __call__(self, unknowns: list[Tensor]) -> Tensor:
        rotation, moved, size, expression, identity = unknowns
        scale, translation = size * self.usual_scale, moved * self.usual_scale
        turn = torch.matrix_exp(_cross(rotation)) @ self.reference
        shape = self.mean + self.identity @ identity
        head = shape + (expression @ self.expression.T).reshape(-1, *shape.shape)
        world = scale * head @ turn.mT + translation[:, None]
        local = world[:, None] @ self.w2c[None, :, :, :3].mT + self.w2c[None, :, None, :, 3]
        plane = local[..., :2] / local[..., 2:]
        pixels = plane @ self.K[None, :, :2, :2].mT
        squared = (((pixels - self.seen) / self.unit + self.drift) ** 2).sum(-1)
        data = 0.5 * (self.base * squared / (1 + squared / self.settings.robust**2)).sum()
        person = 0.5 * self.strength * (identity @ identity + ((size - 1) / SIZE) ** 2)
        sparse = WORN * self.settings.expression_sparsity * expression.sum()
        parted = expression[:, self.known.pucker] * expression[:, self.known.jaw]
        squares = RIDGE * (expression**2).sum() + PARTED * (parted**2).sum()
        return data + person + sparse + 0.5 * squares


@dataclass(frozen=True)
class Descent:
    """CPU seconds that Adam took, its last energy, and whether that is the tracker's."""

    seconds: float
    steps: int
    energy: float
    reached: bool


def adam(energy: Energy, start: State, goal: float, rate: float, patience: float) -> Descent:
    """Adam from ``start`` until the energy is ``goal`` or less, or changes by less than 1e-10 of
    itself, or ``patience`` (s) is at its end."""
    unknowns = [each.requires_grad_() for each in energy.unknowns(start)]
    optimiser = torch.optim.Adam(unknowns, rate)
    before, steps, began = np.inf, 0, time.process_time()
    while True:
        optimiser.zero_grad()
        value = energy(unknowns)
        now, seconds = float(value.detach()), time.process_time() - began
        still = abs(before - now) <= 1e-10 * now
        if now <= goal or still or seconds > patience:
            return Descent(seconds, steps, now, now <= goal)
        torch.autograd.backward(value)
        optimiser.step()
        with torch.no_grad():
            unknowns[3].clamp_(0, 1)
        before, steps = now, steps + 1


def speed(model: FaceModel, views: int, timesteps: int, patience: float) -> dict[str, Any]:
    """CPU seconds of a whole fit; and of its joint part beside the peer's."""
    seen = Actor(model, timesteps).seen(rig(views))
    began = time.process_time()
    track_head(model, seen)
    whole = time.process_time() - began

    landmarks = LandmarkModel.of(model)
    pose = initial_pose(seen, landmarks, model.metres_per_unit)
    start = first_state(seen, landmarks, pose, np.zeros(landmarks.identity.shape[2]), {})
    fitter = Fitter(landmarks, Settings(), model, model.metres_per_unit)
    began = time.process_time()
    fitted = fitter.together(start, seen, True, STEPS)
    ours = time.process_time() - began
    energy = Energy(start, landmarks, seen, model.metres_per_unit, fitter.expressions)
    with torch.no_grad():
        first, last = (float(energy(energy.unknowns(state))) for state in (start, fitted))
    _check_energy(energy, start, landmarks, seen)
    goal = last + SAME_VALUE * (first - last)
    peers = {f"Adam {rate:g}": adam(energy, start, goal, rate, patience) for rate in RATES}
    arrivals = [each.seconds for each in peers.values() if each.reached]
    best = min(arrivals, default=patience)
    return {
        "views": views,
        "timesteps": timesteps,
        "whole_fit_s": round(whole, 2),
        "joint_fit_s": round(ours, 2),
        "energy": {"start": round(first, 1), "tracker": round(last, 1)},
        "peers": {
            name: {
                "s": round(each.seconds, 2),
                "steps": each.steps,
                "energy": round(each.energy, 1),
                "reached": each.reached,
            }
            for name, each in peers.items()
        },
        "times_faster": round(best / ours, 1),
        "at_least": not arrivals,
    }


def _check_energy(
    energy: Energy, start: State, landmarks: LandmarkModel, seen: Observations
) -> None:
    """Raises: RuntimeError: the peer's energy is not the tracker's."""
    at_rest = replace(start, scale=energy.usual_scale)  # nothing but the landmarks' part is left
    conditions = Conditions.at(start, landmarks, seen)
    wanted = pull(at_rest, landmarks, seen, conditions, energy.settings.robust).energy
    with torch.no_grad():
        found = float(energy(energy.unknowns(at_rest)))
    if not math.isclose(found, wanted, rel_tol=1e-4):
        raise RuntimeError(f"The peer's energy is {found}, the tracker's {wanted}.")


def basin(model: FaceModel, draws: int) -> dict[str, Any]:
    """Largest difference (mm on the face) of fits in turned and shifted worlds to the plain one,
    and whether rigs in units from a tenth to ten times a metre are fitted or named."""
    actor, cameras = Actor(model, 6), rig(4)
    seen = actor.seen(cameras)
    plain = _places(model, seen)
    rng = np.random.default_rng(2)
    worst = 0.0
    for _ in range(draws):
        turn, shift = Rotation.random(rng=rng).as_matrix(), rng.uniform(-20, 20, 3)
        moved = tuple(_elsewhere(camera, turn, shift, 1.0) for camera in cameras)
        found = _places(model, replace(seen, cameras=moved))
        worst = max(worst, _apart(found, plain @ turn.T + shift))
    units = {}
    for unit in (0.1, 0.5, 2.0, 10.0):
        moved = tuple(_elsewhere(camera, np.eye(3), np.zeros(3), unit) for camera in cameras)
        found = _places(model, replace(seen, cameras=moved))
        units[f"x{unit:g}"] = round(_apart(found / unit, plain), 4)
    return {"worlds": draws, "worst_mm": round(worst, 4), "units_mm": units}


def _places(model: FaceModel, seen: Observations) -> Floats:
    """[T, N, 3] the fitted face."""
    track = track_head(model, seen)
    face = model.regions["face"]
    return np.stack([track.world(model, t)[face.numpy()] for t in range(len(seen.timesteps))])


def _apart(one: Floats, other: Floats) -> float:
    return 1000 * float(np.linalg.norm(one - other, axis=-1).max())


def _elsewhere(camera: Camera, turn: Floats, shift: Floats, unit: float) -> Camera:
    """The camera in the world x' = unit * (turn @ x + shift)."""
    w2c = camera.w2c.copy()
    w2c[:3, :3] = camera.w2c[:3, :3] @ turn.T
    w2c[:3, 3] = unit * (camera.w2c[:3, 3] - w2c[:3, :3] @ shift)
    return replace(camera, w2c=w2c)


def footage(subject: Path) -> dict[str, Any]:
    """Median reprojection error as a share of the distance between the irises, of a tracked
    subject; and how many timesteps were lost."""
    summary = read_json(subject / "tracking/summary.json")
    rows = read_rows(subject / "tracking/tracking.parquet", schemas.TRACKING)
    errors = {(row["sequence"], row["timestep"]): row["residual"] for row in rows}
    share = []
    for row in read_rows(subject / "landmarks/landmarks.parquet", schemas.LANDMARKS):
        places = np.array(row["points"]).reshape(-1, 2)
        apart = np.linalg.norm(places[points.RIGHT_IRIS[0]] - places[points.LEFT_IRIS[0]])
        if (row["sequence"], row["timestep"]) in errors:
            share.append(errors[row["sequence"], row["timestep"]] / apart)
    return {
        "median_share_of_interocular": round(float(np.median(share)), 5),
        "timesteps": summary["timesteps"],
        "lost": summary["rejected"],
    }


def _tensors(*arrays: Floats) -> list[Tensor]:
    return [torch.from_numpy(np.array(each, np.float32)) for each in arrays]


def _cross(vectors: Tensor) -> Tensor:
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 views x 12 timesteps, few worlds")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--patience", type=float, help="CPU seconds that each peer may take")
    parser.add_argument("--subject", type=Path, help="a tracked subject of one camera")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model = head_model()
    size = (4, 12, chosen.patience or 15.0) if chosen.quick else (16, 100, chosen.patience or 60.0)
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(model, *size),
        "basin": lambda: basin(model, 2 if chosen.quick else 20),
    }
    if chosen.subject:
        rows["footage"] = lambda: footage(chosen.subject)
    figures = {}
    for name, row in rows.items():
        figures[name] = row()
        print(json.dumps({name: figures[name]}, indent=2), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
