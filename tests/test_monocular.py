"""One camera: its focal length, what it cannot know, people who turn away or take turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_fitting import errors_mm, write_inputs

from gha_core.artifacts import schemas
from gha_core.artifacts.stage_folder import read_json, write_json
from gha_core.artifacts.tables import read_rows, write_table
from gha_core.cameras import Camera, look_at
from gha_core.dataset import Dataset
from gha_core.faces import FaceModel, head_model
from gha_core.fitting import Settings, track_head
from gha_core.fitting.checks import drifts, squarest_views
from gha_core.fitting.curves import draw_curves
from gha_core.fitting.focal_length import estimate_focal_length, through
from gha_core.fitting.one_person import others
from gha_core.landmarks import LANDMARKS
from gha_core.splits import Splits
from gha_core.synthetic.sightings import SIZE, Actor
from tasks import tracking

Floats = NDArray[np.float64]
QUICK = tracking.Params(photometric=False, iterations=6)


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return head_model()


def camera(distance: float, degrees: float = 0.0) -> Camera:
    """One that sees the actor's head as large from anywhere."""
    focal = 0.55 * SIZE * distance / 0.22
    K = np.array([[focal, 0, SIZE / 2], [0, focal, SIZE / 2], [0, 0, 1]])
    angle = np.radians(degrees)
    eye = distance * np.array([np.sin(angle), 0.05, np.cos(angle)])
    return Camera("c0", K, look_at(eye, np.zeros(3), np.array([0.0, 1.0, 0.0])), SIZE, SIZE)


@pytest.mark.parametrize("wrong", [0.6, 1.6])
def test_the_focal_length_is_found_from_perspective(model: FaceModel, wrong: float) -> None:
    seen = Actor(model, 12).seen((camera(0.4),))
    true = seen.cameras[0].K[0, 0]
    found = estimate_focal_length(model, through(seen, wrong * true))
    assert found.usual == pytest.approx(wrong * true)
    off = abs(np.log(found.pixels / true))
    assert off < 0.75 * abs(np.log(wrong)), "nearer to the truth than the assumption"
    assert off < 2.5 * found.deviation


def test_far_away_there_is_no_perspective_and_the_usual_focal_length_stays(
    model: FaceModel,
) -> None:
    seen = Actor(model, 4).seen((camera(6.0),))
    found = estimate_focal_length(model, seen)
    assert found.pixels == pytest.approx(found.usual, rel=0.3)
    assert found.deviation > 0.2


def test_a_larger_head_is_taken_for_a_nearer_one(model: FaceModel) -> None:
    actor = Actor(model, 8, scale=1.2 * model.metres_per_unit)
    seen = actor.seen((camera(1.1),))
    track = track_head(model, seen, Settings(iterations=8))
    assert track.scale == model.metres_per_unit
    centre = seen.cameras[0].centre
    found, true = (
        np.linalg.norm(each - centre, axis=1) for each in (track.translation, actor.translation)
    )
    assert np.median(found / true) == pytest.approx(1 / 1.2, rel=0.05)
    assert np.abs(track.identity).max() < 3, "size must not be told as shape"
    assert errors_mm(model, actor, track, aligned=True).mean() < 5


def test_the_detectors_habits_with_a_person_are_taken_off(model: FaceModel) -> None:
    actor = Actor(model, 12)
    plain = actor.seen((camera(1.1),))
    habit = np.random.default_rng(1).normal(0, 2.0, (LANDMARKS, 2))
    seen = replace(plain, points=plain.points + habit)
    track = track_head(model, seen)
    assert np.median(track.residual) < 0.5 * np.sqrt(2) * 2.0
    assert errors_mm(model, actor, track, aligned=True).mean() < 5


def test_two_people_in_turns_show_as_drift(model: FaceModel) -> None:
    first, second = Actor(model, 16), Actor(model, 16)
    second.identity = -first.identity
    one, two = (actor.seen((camera(1.1),)) for actor in (first, second))
    both = replace(one, points=np.concatenate([one.points[:8], two.points[8:]]))
    found = {}
    for name, seen in (("one", one), ("both", both)):
        track = track_head(model, seen, Settings(iterations=8))
        found[name] = drifts(model, track, seen)["talk"]
    assert found["one"].shape < 0.5 * tracking.DRIFTING
    assert found["both"].shape > tracking.DRIFTING
    assert 0.7 < found["one"].residual < 1.4
    assert found["one"].distance == pytest.approx(1, abs=0.05)


def test_a_lone_profile_camera_is_not_trusted(model: FaceModel, tmp_path: Path) -> None:
    seen = Actor(model, 5).seen((camera(1.1, 65.0),))
    tracking.run(write_inputs(tmp_path / "side", seen), QUICK, tmp_path / "side/out")
    summary = read_json(tmp_path / "side/out/summary.json")
    assert summary["degrees_aside"] > 50
    assert "seen from the side only: not fit to train on" in summary["verdict"]
    assert any("Add a camera in front of the face" in each for each in summary["warnings"])


def test_a_second_of_turning_away_harms_only_itself(model: FaceModel, tmp_path: Path) -> None:
    actor = Actor(model, 44)
    seen = actor.seen((camera(1.1),))
    away = (seen.points.copy(), seen.confidence.copy())
    away[0][12:32], away[1][12:32] = np.nan, 0
    # Meanwhile somebody else is the only face for a moment.
    other = Actor(model, 44)
    other.translation += [0.25, 0.0, 0.0]
    away[0][18:22] = other.seen(seen.cameras).points[18:22]
    away[1][18:22] = 1
    damaged = replace(seen, points=away[0], confidence=away[1])
    inputs = write_inputs(tmp_path / "away", damaged)
    tracking.run(inputs, QUICK, tmp_path / "away/out")
    reasons = {
        row["timestep"]: row["reason"]
        for row in read_rows(tmp_path / "away/out/rejects.parquet", schemas.REJECTS)
    }
    assert sorted(reasons) == list(range(12, 32))
    assert {t for t, why in reasons.items() if "another person's" in why} == {18, 19, 20, 21}

    kept = np.array([*range(12), *range(32, 44)])
    rows = list(read_rows(tmp_path / "away/out/tracking.parquet", schemas.TRACKING))
    assert [row["timestep"] for row in rows] == kept.tolist()
    jaw = model.expression_names.index("jawOpen")
    found = np.array([row["expression"][jaw] for row in rows])
    assert np.corrcoef(found, actor.expression[kept, jaw])[0, 1] > 0.9
    turns = np.array([row["rotation"] for row in rows])
    apart = np.linalg.norm(turns - actor.rotation[kept], axis=1)
    assert np.degrees(apart - np.median(apart)).max() < 2, "the edges of the gap are as good"


@settings(max_examples=25, deadline=None)
@given(
    start=st.integers(25, 40),
    length=st.integers(1, 24),
    gap=st.integers(0, 10),
    speed=st.floats(-0.02, 0.02),
)
def test_faces_elsewhere_are_others(start: int, length: int, gap: int, speed: float) -> None:
    count = 90
    rng = np.random.default_rng(0)
    face = rng.uniform(-20, 20, (30, 2))
    points = face + 40 * speed * np.arange(count)[:, None, None]
    points = points + rng.normal(0, 1, points.shape)
    stranger = slice(start, start + length)
    points[stranger, :, 0] += 120
    points[start - gap : start] = np.nan
    timesteps = range(count)
    assert np.flatnonzero(others(points, timesteps)).tolist() == list(timesteps[stranger])


def test_a_likelier_lens_is_used_from_then_on(model: FaceModel, tmp_path: Path) -> None:
    seen = Actor(model, 12).seen((camera(0.4),))
    true = seen.cameras[0].K[0, 0]
    inputs = write_inputs(tmp_path / "lens", through(seen, 1.6 * true))
    write_json(tmp_path / "lens/ingest/summary.json", {"focal_length": "assumed"})
    write_table(tmp_path / "lens/ingest/backgrounds.parquet", schemas.BACKGROUNDS, [])
    tracked = inputs.artifacts / "out"
    tracking.run(inputs, QUICK, tracked)
    told = read_json(tracked / "summary.json")["focal_length"]
    assert told["pixels"] < 1.4 * true
    dataset = Dataset(inputs["ingest"], None, tracked, Splits())
    K = dataset.cameras["c0"].K
    assert K[0, 0] == pytest.approx(told["pixels"], rel=1e-4)
    assert K[1, 1] == pytest.approx(told["pixels"], rel=1e-4)
    assert K[:2, 2].tolist() == seen.cameras[0].K[:2, 2].tolist()


def test_the_squarest_view_counts(model: FaceModel) -> None:
    actor = Actor(model, 3)
    seen = actor.seen((camera(1.1, 60.0), replace(camera(1.1, 20.0), name="c1")))
    seen.confidence[2, 1] = 0
    track = track_head(model, seen, Settings(iterations=4))
    angles = np.degrees(squarest_views(track, seen))
    assert (angles[:2] < 40).all()
    assert angles[2] > 45


def test_curves_show_a_blink_and_leave_gaps_empty() -> None:
    names = ("eyeBlinkLeft", "jawOpen")
    steps = np.concatenate([np.arange(20), np.arange(60, 80)])
    early, late = np.zeros((2, 40, 2))
    early[8, 0] = late[12, 0] = 1
    rotation = np.tile([0.0, 0.1, 0.0], (40, 1))

    def drawn(expression: Floats) -> Floats:
        picture = draw_curves(["talk"] * 40, steps.tolist(), expression, names, rotation, 800)
        assert picture.shape[1] == 800
        return picture.astype(float)

    changed = np.abs(drawn(early) - drawn(late)).sum(-1) > 100
    rows, columns = np.nonzero(changed)
    assert rows.size
    assert rows.max() < changed.shape[0] / 5, "only the curve of the eyes"
    assert np.ptp(columns) < 800 / 10
