"""The tracker: known heads are recovered, held-out rows teach nothing, bad calibration is named."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.spatial.transform import Rotation

from gha_core.artifacts import schemas
from gha_core.artifacts.images import encode_jpeg
from gha_core.artifacts.stage_folder import read_json
from gha_core.artifacts.tables import read_table, write_table
from gha_core.cameras import Camera, look_at
from gha_core.errors import StageError
from gha_core.faces import FaceModel, head_model
from gha_core.faces.identity_space import similarity_to
from gha_core.fitting import Observations, Settings, Track, track_head
from gha_core.fitting.expressions import ExpressionPrior
from gha_core.fitting.given_poses import GivenPoses
from gha_core.fitting.observations import LandmarkModel
from gha_core.fitting.residuals import Conditions, Quadratic, State, linearise, pull
from gha_core.fitting.solver import bounded, smoothness, solve_shared
from gha_core.landmarks import LANDMARKS
from gha_core.pose import HeadPose
from gha_core.splits import Splits
from gha_core.synthetic.sightings import SCALE, SIZE, Actor, rig
from tasks import tracking
from tasks.stage import Inputs

Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return head_model()


def errors_mm(model: FaceModel, actor: Actor, track: Track, aligned: bool = False) -> Floats:
    face = model.regions["face"].numpy()
    result = []
    for index in range(len(actor.rotation)):
        found, true = track.world(model, index)[face], actor.world(index)[face]
        if aligned:
            scale, rotation, shift = similarity_to(true, found)
            found = scale * found @ rotation.T + shift
        result.append(1000 * np.linalg.norm(found - true, axis=1).mean())
    return np.array(result)


def test_several_cameras_recover_shape_size_pose_and_expression(model: FaceModel) -> None:
    actor = Actor(model, 12)
    track = track_head(model, actor.seen(rig(4)))
    assert errors_mm(model, actor, track).mean() < 2.5
    assert track.scale == pytest.approx(SCALE, rel=0.03)
    for name in ("jawOpen", "mouthSmileLeft", "eyeBlinkRight"):
        column = model.expression_names.index(name)
        true, found = actor.expression[:, column], track.expression[:, column]
        assert np.corrcoef(true, found)[0, 1] > 0.9, name
    assert track.expression.min() >= 0
    assert track.expression.max() <= 1
    assert not track.failed.any()
    assert np.nanmean(track.residual) < 1.5


def test_one_camera_recovers_the_shape_up_to_size(model: FaceModel) -> None:
    actor = Actor(model, 16, scale=model.metres_per_unit)
    track = track_head(model, actor.seen(rig(1)))
    assert track.scale == model.metres_per_unit
    assert errors_mm(model, actor, track, aligned=True).mean() < 4
    column = model.expression_names.index("jawOpen")
    assert np.corrcoef(actor.expression[:, column], track.expression[:, column])[0, 1] > 0.9


def test_a_few_wild_landmarks_and_missing_views_do_no_harm(model: FaceModel) -> None:
    actor = Actor(model, 8)
    seen = actor.seen(rig(4))
    rng = np.random.default_rng(8)
    wild = rng.random(seen.points.shape[:3]) < 0.05
    seen.points[wild] += rng.normal(0, 40, (wild.sum(), 2))
    seen.points[3, 1:], seen.confidence[3, 1:] = np.nan, 0
    track = track_head(model, seen)
    assert errors_mm(model, actor, track).mean() < 3.5


def _frozen(seen: Observations, _: FaceModel) -> None:
    seen.points[:, 1] = seen.points[0, 1]


def _shuffled_names(seen: Observations, _: FaceModel) -> None:
    seen.points[:, [1, 4]] = seen.points[:, [4, 1]]


def _black_frames(seen: Observations, _: FaceModel) -> None:
    seen.points[2:5, ::2], seen.confidence[2:5, ::2] = np.nan, 0


def _half_the_cameras(seen: Observations, _: FaceModel) -> None:
    seen.points[:, ::2], seen.confidence[:, ::2] = np.nan, 0


def _outliers(seen: Observations, _: FaceModel) -> None:
    rng = np.random.default_rng(8)
    wild = rng.random(seen.points.shape[:3]) < 0.2
    seen.points[wild] = rng.uniform(0, SIZE, (wild.sum(), 2))


def _second_person(seen: Observations, model: FaceModel) -> None:
    other = Actor(model, len(seen.timesteps))
    other.translation += [0.3, 0.0, -0.1]
    seen.points[:, 5] = other.seen(seen.cameras).points[:, 5]


Damage = Callable[[Observations, FaceModel], None]


@pytest.mark.parametrize(
    ("damage", "worse"),
    [
        (_half_the_cameras, []),
        (_black_frames, []),
        (_outliers, []),
        (_frozen, [1]),
        (_shuffled_names, [1, 4]),
        (_second_person, [5]),
    ],
)
def test_damage_spoils_no_fit_and_shows_in_the_cameras_that_have_it(
    model: FaceModel, damage: Damage, worse: list[int]
) -> None:
    actor = Actor(model, 8)
    seen = actor.seen(rig(6))
    damage(seen, model)
    track = track_head(model, seen)
    assert errors_mm(model, actor, track).mean() < 2.5
    with warnings.catch_warnings():  # a camera may have no view at all
        warnings.simplefilter("ignore", RuntimeWarning)
        residual = np.nanmean(track.residual, 0)
    typical = np.nanmedian(track.residual)
    assert np.flatnonzero(residual > 2.5 * typical).tolist() == worse


def test_a_profile_view_adds_to_the_others(model: FaceModel) -> None:
    actor, cameras = Actor(model, 6), rig(3)
    side = look_at(np.array([1.1, 0.0, 0.04]), np.zeros(3), np.array([0.0, 1.0, 0.0]))
    seen = actor.seen((*cameras, replace(cameras[0], name="side", w2c=side)))
    assert errors_mm(model, actor, track_head(model, seen)).mean() < 2.5


def test_the_stage_names_the_camera_whose_calibration_is_wrong(
    model: FaceModel, tmp_path: Path
) -> None:
    seen = Actor(model, 5).seen(rig(5))
    turn = Rotation.from_euler("y", 10, degrees=True).as_matrix()
    wrong = seen.cameras[3].w2c.copy()
    wrong[:3] = turn @ wrong[:3]
    cameras = (*seen.cameras[:3], replace(seen.cameras[3], w2c=wrong), seen.cameras[4])
    inputs = write_inputs(tmp_path / "wrong", replace(seen, cameras=cameras))
    tracking.run(inputs, tracking.Params(photometric=False), tmp_path / "wrong/out")
    told = read_json(tmp_path / "wrong/out/summary.json")["warnings"]
    assert [text.split(" fits ")[0] for text in told] == ["Camera c3"]


def test_held_out_timesteps_teach_nothing(model: FaceModel) -> None:
    actor = Actor(model, 10)
    seen = actor.seen(rig(3))
    train = np.arange(10) % 5 != 4
    seen = replace(seen, is_train=train)
    other = replace(seen, points=seen.points.copy())
    other.points[~train] += np.random.default_rng(1).normal(0, 6, other.points[~train].shape)
    first, second = (track_head(model, each, Settings(iterations=6)) for each in (seen, other))
    np.testing.assert_array_equal(first.identity, second.identity)
    assert first.scale == second.scale
    np.testing.assert_array_equal(first.expression[train], second.expression[train])
    np.testing.assert_array_equal(first.rotation[train], second.rotation[train])
    assert np.abs(first.translation[~train] - second.translation[~train]).max() > 1e-5


def test_smoothing_removes_jitter_and_spares_motion(model: FaceModel) -> None:
    actor = Actor(model, 14)
    seen = actor.seen(rig(1), noise=2.0)
    rough, calm = (
        track_head(model, seen, Settings(acceleration=amount, iterations=8))
        for amount in (0.0, 1.0)
    )

    def jitter(track: Track) -> float:
        return float(np.abs(np.diff(track.expression, 2, axis=0)).sum())

    assert jitter(calm) < 0.7 * jitter(rough)
    column = model.expression_names.index("jawOpen")
    assert np.ptp(calm.expression[:, column]) > 0.7 * np.ptp(actor.expression[:, column])


def test_camera_to_world_matrices_are_recognised(model: FaceModel) -> None:
    seen = Actor(model, 3).seen(rig(3))
    wrong = tuple(replace(c, w2c=np.linalg.inv(c.w2c)) for c in seen.cameras)
    with pytest.raises(StageError, match="OpenCV world-to-camera"):
        track_head(model, replace(seen, cameras=wrong))


def test_millimetres_are_recognised(model: FaceModel) -> None:
    seen = Actor(model, 3).seen(rig(3))

    def in_millimetres(camera: Camera) -> Camera:
        w2c = camera.w2c.copy()
        w2c[:3, 3] *= 1000
        return replace(camera, w2c=w2c)

    with pytest.raises(StageError, match="millimetres"):
        track_head(model, replace(seen, cameras=tuple(map(in_millimetres, seen.cameras))))


@pytest.mark.parametrize("unit", [0.1, 10.0])
def test_any_unit_and_world_give_the_same_fit(model: FaceModel, unit: float) -> None:
    seen = Actor(model, 3).seen(rig(3))
    turn, shift = Rotation.random(rng=np.random.default_rng(4)).as_matrix(), np.array([9, -20, 3])

    def elsewhere(camera: Camera) -> Camera:
        w2c = camera.w2c.copy()
        w2c[:3, :3] @= turn.T
        w2c[:3, 3] = unit * (w2c[:3, 3] - w2c[:3, :3] @ shift)
        return replace(camera, w2c=w2c)

    plain = track_head(model, seen)
    moved = track_head(model, replace(seen, cameras=tuple(map(elsewhere, seen.cameras))))
    for index in range(3):
        back = (moved.world(model, index) / unit - shift) @ turn
        assert np.abs(back - plain.world(model, index)).max() < 0.001


def test_without_a_training_timestep_it_says_so(model: FaceModel) -> None:
    seen = Actor(model, 2).seen(rig(2))
    with pytest.raises(StageError, match="No training timestep"):
        track_head(model, replace(seen, is_train=np.zeros(2, bool)))


def test_normal_equations_match_finite_differences(model: FaceModel) -> None:
    actor = Actor(model, 2)
    seen = actor.seen(rig(2), noise=1.0)
    landmarks = LandmarkModel.of(model)
    rng = np.random.default_rng(3)
    state = State(
        reference=np.broadcast_to(np.eye(3), (2, 3, 3)),
        rotation=actor.rotation + 0.05,
        translation=actor.translation + 0.01,
        expression=np.full_like(actor.expression, 0.3),
        identity=rng.normal(0, 0.3, len(actor.identity)),
        scale=0.23,
    )
    conditions = Conditions.at(state, landmarks, seen)
    robust = 1e6  # a quadratic loss, whose gradient is exact
    found = pull(state, landmarks, seen, conditions, robust)
    quadratic = linearise(state, landmarks, found, "all")

    def energy(frames: Floats, shared: Floats) -> float:
        return pull(state.moved(frames, shared), landmarks, seen, conditions, robust).energy

    step = 1e-5
    for index in (0, 2, 3, 5, 6 + model.expression_names.index("jawOpen")):
        frames = np.zeros_like(quadratic.frames_gradient)
        frames[1, index] = step
        still = np.zeros(len(actor.identity) + 1)
        slope = (energy(frames, still) - energy(-frames, still)) / (2 * step)
        assert slope == pytest.approx(quadratic.frames_gradient[1, index], rel=2e-3, abs=1e-2)
    for index in (0, 5, -1):
        shared = np.zeros(len(actor.identity) + 1)
        shared[index] = step
        nothing = np.zeros_like(quadratic.frames_gradient)
        slope = (energy(nothing, shared) - energy(nothing, -shared)) / (2 * step)
        assert slope == pytest.approx(quadratic.shared_gradient[index], rel=2e-3, abs=1e-2)


def test_prior_of_expressions_matches_finite_differences(model: FaceModel) -> None:
    known = ExpressionPrior.of(model.expression_names)
    rng = np.random.default_rng(5)
    expression = rng.uniform(0.1, 0.9, (2, len(model.expression_names)))
    size = 6 + expression.shape[1]
    nothing = np.zeros((2, size, 0))
    quadratic = Quadratic(
        np.zeros((2, size, size)), np.zeros((2, size)), nothing, np.zeros((0, 0)), np.zeros(0)
    )
    known.add_to(quadratic, expression, 0.5)
    for index in (0, known.pucker, known.jaw):
        bumped = np.zeros_like(expression)
        bumped[1, index] = 1e-5
        values = [known.energy(expression + side * bumped, 0.5) for side in (1, -1)]
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(quadratic.frames_gradient[1, 6 + index], rel=1e-6)
    assert np.linalg.eigvalsh(quadratic.frames).min() > -1e-9


def test_lips_that_part_are_no_pucker(model: FaceModel) -> None:
    pucker, jaw = (model.expression_names.index(name) for name in ("mouthPucker", "jawOpen"))
    actor = Actor(model, 14)
    actor.expression[:] = 0
    actor.expression[5:8, pucker] = 0.7
    actor.expression[11:, [pucker, jaw]] = 0.7, 0.35  # against the definition
    found = track_head(model, actor.seen(rig(2))).expression[:, pucker]
    assert found[6] > 0.3
    assert found[12] < 0.6 * found[6]


def test_a_step_goes_to_bounds_and_not_beyond() -> None:
    rng = np.random.default_rng(4)
    root = rng.normal(size=(50, 12, 9))
    H, g = root.swapaxes(1, 2) @ root, 3 * rng.normal(size=(50, 9))
    now = rng.choice([0.0, 0.5, 1.0], size=(50, 3))
    quadratic = Quadratic(H, g, np.zeros((50, 9, 0)), np.zeros((0, 0)), np.zeros(0))
    free, _ = solve_shared(quadratic, np.full(g.shape, np.nan), 0.0)
    step, _ = bounded(now, g, lambda settled: solve_shared(quadratic, settled, 0.0))

    def clipped(by: Floats) -> Floats:
        return np.concatenate([by[:, :6], (now + by[:, 6:]).clip(0, 1) - now], axis=1)

    def energy(by: Floats) -> float:
        return float(np.sum(g * by) + np.einsum("tf,tfg,tg->", by, H, by) / 2)

    assert clipped(step) == pytest.approx(step)
    assert energy(step) < energy(clipped(free)) - 1
    # Those that are not at a bound are where the others make them best.
    inside = np.ones(g.shape, bool)
    inside[:, 6:] = (now + step[:, 6:] > 1e-9) & (now + step[:, 6:] < 1 - 1e-9)
    slope = g + (H @ step[..., None])[..., 0]
    assert np.abs(slope[inside]).max() < 1e-6


def test_smoothness_is_zero_on_straight_lines_and_ignores_gaps() -> None:
    timesteps = np.array([0, 1, 3, 4, 5, 50, 51, 52])
    smooth = smoothness(timesteps, np.ones(2))
    line = np.stack([2.0 * timesteps, 1 - timesteps], 1).astype(float)
    assert smooth.energy(line) == pytest.approx(0, abs=1e-18)
    jump = line + np.where(timesteps > 20, 7.0, 0.0)[:, None]
    assert smooth.energy(jump) == pytest.approx(0, abs=1e-18)
    bent = line.copy()
    bent[1] += 1
    gradient = smooth.gradient(bent)
    bumped = bent.copy()
    bumped[2, 0] += 1e-6
    slope = (smooth.energy(bumped) - smooth.energy(bent)) / 1e-6
    assert slope == pytest.approx(gradient[2, 0], rel=1e-4)


# the stage ----------------------------------------------------------------------------------------


def write_inputs(
    root: Path,
    seen: Observations,
    hidden: Camera | None = None,
    given: Sequence[dict[str, Any]] = (),
) -> Inputs:
    """Ingest and landmark artifacts of ``seen``; ``hidden`` gets landmarks of pure noise."""
    rng = np.random.default_rng(int.from_bytes(root.name.encode()[:4], "little"))
    cameras = [*seen.cameras, *([hidden] if hidden else [])]
    image = encode_jpeg(np.full((SIZE, SIZE, 3), 128, np.uint8))
    for stage in ("ingest", "matting", "landmarks", "out"):
        (root / stage).mkdir(parents=True)
    write_table(root / "matting/alpha.parquet", schemas.ALPHA, [])
    frames, rows = [], []
    for index, timestep in enumerate(seen.timesteps):
        for view, camera in enumerate(cameras):
            key = {
                "subject": "s",
                "sequence": seen.sequences[index],
                "timestep": timestep,
                "camera": camera.name,
            }
            frames.append(
                {
                    **key,
                    "image": image,
                    "width": SIZE,
                    "height": SIZE,
                    "source_width": SIZE,
                    "source_height": SIZE,
                    "time": timestep / 25,
                    "sharpness": 1.0,
                    "transform": np.eye(3).ravel(),
                }
            )
            noise = rng.uniform(0, SIZE, (LANDMARKS, 2))
            points = seen.points[index, view] if view < len(seen.cameras) else noise
            if np.isfinite(points).any():
                box = [*np.nanmin(points, 0), *np.nanmax(points, 0)]
                row = {**key, "detector": "facemesh", "confidence": 0.9, "box": box}
                rows.append({**row, "points": points.astype(np.float32).ravel()})
    write_table(root / "ingest/frames.parquet", schemas.FRAMES, frames)
    write_table(root / "ingest/cameras.parquet", schemas.CAMERAS, [c.row("s") for c in cameras])
    write_table(root / "ingest/given_tracking.parquet", schemas.GIVEN_TRACKING, given)
    write_table(root / "landmarks/landmarks.parquet", schemas.LANDMARKS, rows)
    splits = Splits(test_cameras=(hidden.name,) if hidden else (), test_last=0.25)
    return Inputs("s", root / "nowhere", "auto", root, root / "work", splits)


def test_stage_ignores_held_out_cameras_and_is_reproducible(
    model: FaceModel, tmp_path: Path
) -> None:
    actor = Actor(model, 6)
    seen = actor.seen(rig(3))
    seen.points[2], seen.confidence[2] = np.nan, 0
    hidden = replace(seen.cameras[0], name="z")
    params = tracking.Params(iterations=6)
    roots = [tmp_path / "once", tmp_path / "again"]
    for root in roots:
        tracking.run(write_inputs(root, seen, hidden), params, root / "out")
    for name in ("identity.safetensors", "tracking.parquet", "neutral.ply", "rejects.parquet"):
        assert (roots[0] / "out" / name).read_bytes() == (roots[1] / "out" / name).read_bytes()

    out = roots[0] / "out"
    rejected = read_table(out / "rejects.parquet", schemas.REJECTS).to_pylist()
    assert [(row["timestep"], row["camera"]) for row in rejected] == [(2, "")]
    assert "usable face" in rejected[0]["reason"]
    rows = read_table(out / "tracking.parquet", schemas.TRACKING).to_pylist()
    assert [row["timestep"] for row in rows] == [0, 1, 3, 4, 5]
    identity = load_file(out / "identity.safetensors")
    with safe_open(out / "identity.safetensors", framework="np") as file:
        names = json.loads(file.metadata()["expression_names"])
    assert tuple(names) == model.expression_names
    landmarks = np.array(rows[0]["landmarks"]).reshape(-1, 3)
    assert landmarks.shape == identity["landmarks"].shape
    assert identity["expression_basis"].shape[0] == len(rows[0]["expression"])
    assert identity["region.face"].sum() > 1000
    summary = read_json(out / "summary.json")
    assert summary["tracked"] == 5
    assert "tongueOut" in summary["expressions"]["unobserved"]
    strongest = model.expression_names[int(actor.expression[[0, 1, 3, 4, 5]].max(0).argmax())]
    assert strongest not in summary["expressions"]["never_moved"]
    for facts in summary["cameras"].values():
        assert facts["views"] == 5
        assert facts["p95_px"] > facts["residual_px"] > 0
        assert facts["worst"]["timestep"] in (0, 1, 3, 4, 5)
    assert summary["worst"][0]["residual_px"] >= summary["worst"][-1]["residual_px"]
    assert summary["verdict"].startswith("5 of 6 timesteps are tracked")
    moved = identity["neutral_vertices"] + np.tensordot(
        np.array(rows[0]["expression"]), identity["expression_basis"], 1
    )
    pose = HeadPose(
        np.array(rows[0]["rotation"]), np.array(rows[0]["translation"]), rows[0]["scale"]
    )
    face = identity["region.face"].astype(bool)
    off = np.linalg.norm(pose.to_world(moved) - actor.world(0), axis=1)[face]
    assert off.mean() < 0.004


def test_stage_says_when_nothing_was_seen(model: FaceModel, tmp_path: Path) -> None:
    seen = Actor(model, 2).seen(rig(2))
    seen.points[:], seen.confidence[:] = np.nan, 0
    inputs = write_inputs(tmp_path / "none", seen)
    with pytest.raises(StageError, match="None of 2 timesteps"):
        tracking.run(inputs, tracking.Params(), tmp_path / "none/out")


# poses of another tracker ------------------------------------------------------------------------


def given_poses(actor: Actor, shift: float = 0.0) -> GivenPoses:
    """The truth, told in coordinates of a model that lies elsewhere in the head and looks aside;
    the last timestep is not known."""
    head = Rotation.from_rotvec(actor.rotation)
    aside = Rotation.from_rotvec([0.2, -0.4, 0.1])
    inner = head * aside.inv()
    elsewhere = np.array([0.03, -0.05, 0.02])
    place = actor.translation - inner.apply(elsewhere)
    place[: len(place) // 2 + 1] += shift
    known = np.arange(len(place)) < len(place) - 1
    return GivenPoses(inner.as_matrix(), inner.as_matrix(), place, known)


def test_given_poses_are_taken_over_and_expressions_fitted_to_them(model: FaceModel) -> None:
    actor = Actor(model, 12)
    seen = actor.seen(rig(2), noise=2.0)
    own, track = track_head(model, seen), track_head(model, seen, given=given_poses(actor))

    def wobble(track: Track) -> float:
        """Radians of the found heads to the true ones, without the constant part."""
        off = Rotation.from_rotvec(track.rotation) * Rotation.from_rotvec(actor.rotation).inv()
        vectors = off.as_rotvec()[:-1]
        return float(np.linalg.norm(vectors - vectors.mean(0), axis=1).max())

    assert wobble(track) < 0.003 < wobble(own)
    jaw = model.expression_names.index("jawOpen")
    assert np.corrcoef(actor.expression[:, jaw], track.expression[:, jaw])[0, 1] > 0.9


def test_given_poses_of_other_frames_are_refused(model: FaceModel) -> None:
    actor = Actor(model, 8)
    with pytest.raises(StageError, match=r"contradicts the landmarks.*tracking\.poses"):
        track_head(model, actor.seen(rig(2)), given=given_poses(actor, shift=1.0))


def test_the_stage_uses_given_poses_and_says_so(model: FaceModel, tmp_path: Path) -> None:
    actor = Actor(model, 4)
    poses = given_poses(actor)
    rows = [
        {
            "subject": "s", "sequence": "talk", "timestep": k, "model": "FLAME",
            "rotation": Rotation.from_matrix(poses.rotation[k]).as_rotvec(),
            "root": Rotation.from_matrix(poses.root[k]).as_rotvec(),
            "translation": poses.translation[k], "scale": 1.0, "coefficients": [],
        }
        for k in range(3)
    ]  # fmt: skip
    params = tracking.Params(iterations=4, photometric=False)
    inputs = write_inputs(tmp_path / "with", actor.seen(rig(2)), given=rows)
    tracking.run(inputs, params, tmp_path / "with/out")
    summary = read_json(tmp_path / "with/out/summary.json")
    assert summary["poses"] == "given"
    assert any("1 timesteps are not in the capture's own" in each for each in summary["warnings"])
    inputs = write_inputs(tmp_path / "without", actor.seen(rig(2)))
    with pytest.raises(StageError, match=r"tracking\.poses is 'given'"):
        tracking.run(inputs, tracking.Params(poses="given"), tmp_path / "without/out")
