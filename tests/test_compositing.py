"""Over white, nothing of the room is left in half-covered pixels."""

from __future__ import annotations

import numpy as np
import pytest

from gha_core.compositing import over_white

HAIR, WALL = np.array([90, 60, 30]), np.array([40, 160, 200])


def photo(alpha: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(share * foreground + (1 - share) * background).astype(np.uint8)


@pytest.mark.parametrize("known", [True, False], ids=["plate", "estimated"])
def test_an_edge_keeps_none_of_the_wall(known: bool) -> None:
    alpha = np.zeros((20, 60), np.uint8)
    alpha[:, 20:40], alpha[:, 40:] = np.linspace(0, 255, 20), 255
    seen = photo(alpha, HAIR, WALL)
    plate = np.broadcast_to(WALL, seen.shape).astype(np.uint8) if known else None
    expected = photo(alpha, HAIR, np.full(3, 255))
    error = np.abs(over_white(seen, alpha, plate).astype(int) - expected)
    assert error.max() <= (1 if known else 12)
    weighted = photo(alpha, seen, np.full(3, 255))
    assert np.abs(weighted.astype(int) - expected).max() > 25  # what this is not


def test_it_is_the_photo_inside_and_white_outside_whatever_the_noise() -> None:
    rng = np.random.default_rng(3)
    seen, plate = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 255
    for background in (plate, None):
        result = over_white(seen, alpha, background)
        assert (result[:, 8:] == seen[:, 8:]).all()
        assert (result[:, :8] == 255).all()
