"""Whose face it is, where one camera sees several people: heads do not jump.

While the subject looks away a detector takes whoever else is in the picture. From the longest time
without a jump we go to both ends, and what is too far from where the face was last is another's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_JUMP = 0.75  # face widths from one timestep to the next
_LOST = 1.0  # further widths per second in which no face was found
_RATE = 25.0  # timesteps per second, about


def others(points: Floats, timesteps: Sequence[int]) -> NDArray[np.bool_]:
    """[T] whether the face is another person's, in one sequence of one camera.

    Args:
        points: [T, P, 2] pixels; NaN where nothing was found.
        timesteps: T ascending numbers.
    """
    result = np.zeros(len(points), bool)
    known = np.isfinite(points[..., 0])
    found = np.flatnonzero(known.any(1))
    if len(found) < 2:
        return result
    places = np.array([np.median(points[t, known[t]], axis=0) for t in found])
    width = float(np.median([np.ptp(points[t, known[t], 0]) for t in found]))
    moments = np.array(timesteps)[found]
    usual = max(1.0, float(np.median(np.diff(moments))))

    def near(a: int, b: int) -> bool:
        """Whether found[a] and found[b] can be one face."""
        gap = abs(float(moments[a] - moments[b])) - usual
        reach = width * (_JUMP + _LOST * gap / _RATE)
        return float(np.linalg.norm(places[a] - places[b])) <= reach

    starts = [0, *(n for n in range(1, len(found)) if not near(n - 1, n)), len(found)]
    longest = int(np.argmax(np.diff(starts)))
    first, last = starts[longest], starts[longest + 1] - 1
    for start, order in ((first, range(first - 1, -1, -1)), (last, range(last + 1, len(found)))):
        before = start
        for n in order:
            if near(before, n):
                before = n
            else:
                result[found[n]] = True
    return result
