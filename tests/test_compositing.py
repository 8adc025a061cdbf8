"""Over white, nothing of the room is left in half-covered pixels."""

from __future__ import annotations

import numpy as np
import pytest

from gha_core.compositing import over_white
from gha_core.linear_light import to_light, to_srgb

HAIR, WALL = np.array([90, 60, 30]), np.array([40, 160, 200])


def photo(alpha: np.ndarray, foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    """What a camera sees: light adds up."""
    share = alpha[..., None] / 255
    front, behind = to_light(foreground / 255), to_light(background / 255)
    return np.rint(255 * to_srgb(share * front + (1 - share) * behind)).astype(np.uint8)


def splatted(alpha: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """What splatting draws over white."""
    share = alpha[..., None] / 255
    return np.rint(share * foreground + (1 - share) * 255).astype(np.uint8)


@pytest.mark.parametrize("known", [True, False], ids=["plate", "estimated"])
def test_an_edge_keeps_none_of_the_wall(known: bool) -> None:
    alpha = np.zeros((20, 60), np.uint8)
    alpha[:, 20:40], alpha[:, 40:] = np.linspace(0, 255, 20), 255
    seen = photo(alpha, HAIR, WALL)
    plate = np.broadcast_to(WALL, seen.shape).astype(np.uint8) if known else None
    expected = splatted(alpha, HAIR)
    error = np.abs(over_white(seen, alpha, plate).astype(int) - expected)
    assert error[:, 22:].max() <= (3 if known else 24)
    weighted = splatted(alpha, seen)
    assert np.abs(weighted.astype(int) - expected).max() > 40  # what this is not


def test_it_is_the_photo_inside_and_white_outside_whatever_the_noise() -> None:
    rng = np.random.default_rng(3)
    seen, plate = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
    alpha = np.zeros((16, 16), np.uint8)
    alpha[:, 8:] = 255
    for background in (plate, None):
        result = over_white(seen, alpha, background)
        assert (result[:, 8:] == seen[:, 8:]).all()
        assert (result[:, :8] == 255).all()


def test_the_wall_leaves_no_trace_in_a_strand_of_hair() -> None:
    alpha = np.arange(1, 255, dtype=np.uint8)[None].repeat(8, 0)
    walls = [np.full(3, level) for level in (20, 120, 220)]
    seen = [
        over_white(photo(alpha, HAIR, wall), alpha, np.broadcast_to(wall, (8, 254, 3)))
        for wall in walls
    ]
    for each in seen[1:]:
        assert np.abs(each.astype(int) - seen[0])[:, 60:].max() <= 6
