"""Poses of another tracker, taken over into our head's coordinates."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from gha_core.fitting.given_poses import GivenPoses, adopt


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), neck=st.booleans())
def test_constants_between_two_models_are_found_in_spite_of_outliers(seed: int, neck: bool) -> None:
    """FLAME's formula with joints that nobody tells: the head moves exactly as it did."""
    random = np.random.default_rng(seed)
    count = 40
    root = Rotation.from_rotvec(0.4 * random.normal(size=(count, 3)))
    turn = Rotation.from_rotvec((0.3 if neck else 0) * random.normal(size=(count, 3)))
    place = random.normal(size=(count, 3))
    j, k, ear = 0.2 * random.normal(size=(3, 3))  # two joints, and our head's origin
    axes = Rotation.from_rotvec(random.normal(size=3))  # our axes in FLAME's
    head = root * turn
    true_place = place + j + root.apply(k - j) + head.apply(ear - k)
    true_turn = head * axes
    noise = Rotation.from_rotvec(0.01 * random.normal(size=(count, 3)))
    ours, where = true_turn * noise, true_place + 0.001 * random.normal(size=(count, 3))
    where[:4] += 5.0
    turned = ours.as_matrix()
    turned[:4] = Rotation.random(4, random).as_matrix()
    known = np.ones(count, bool)
    known[-1] = False
    poses = GivenPoses(head.as_matrix(), root.as_matrix(), place, known)
    train = np.arange(count) < 30
    found = adopt(poses, turned, where, train)
    error = (true_turn.inv() * Rotation.from_matrix(found.rotation)).magnitude()
    assert error.max() < 0.02
    assert np.linalg.norm(found.translation - true_place, axis=1).max() < 0.01
    assert len(found.turned) == 30
    assert np.median(found.moved) < 0.005
