"""What is known about expressions before anything is seen.

They are sparse, and those that no landmark shows stay at rest. And lips that pucker are closed. A
detector's points show that a mouth is small and round, but hardly whether its lips are pressed
together (mouthPucker) or form a funnel (mouthFunnel), which move the same skin the same way. The
definitions tell them apart: ARKit's pucker is of closed lips, its funnel of an open mouth. So an
open jaw speaks against a pucker; what is seen can still outvote it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gha_core.fitting.residuals import POSE, Quadratic

Floats = NDArray[np.float64]

RIDGE = 0.3  # weight of squared expressions: those that no landmark shows stay at rest
PARTED = 1 / 0.015**2  # 0.015 is the standard deviation of mouthPucker times jawOpen


@dataclass(frozen=True)
class ExpressionPrior:
    """The prior's energy of expressions [T, E], and its quadratic.

    Attributes:
        pucker, jaw: columns of mouthPucker and jawOpen.
    """

    pucker: int
    jaw: int

    @staticmethod
    def of(names: tuple[str, ...]) -> ExpressionPrior:
        """For the E expressions ``names``, which are ARKit's."""
        return ExpressionPrior(names.index("mouthPucker"), names.index("jawOpen"))

    def energy(self, expression: Floats, sparsity: float) -> float:
        """With ``sparsity`` as the weight of the sum of coefficients."""
        parted = expression[:, self.pucker] * expression[:, self.jaw]
        squares = RIDGE * float((expression**2).sum()) + PARTED * float(parted @ parted)
        return sparsity * float(expression.sum()) + 0.5 * squares

    def add_to(self, quadratic: Quadratic, expression: Floats, sparsity: float) -> None:
        """Add the prior's gradient and Gauss-Newton Hessian at ``expression`` to those of the
        timesteps, in place."""
        quadratic.frames_gradient[:, POSE:] += sparsity + RIDGE * expression
        index = np.arange(POSE, quadratic.frames.shape[1])
        quadratic.frames[:, index, index] += RIDGE
        both = [self.pucker, self.jaw]
        slope = expression[:, both[::-1]]  # of their product
        parted = slope.prod(1, keepdims=True)
        columns = POSE + np.array(both)
        quadratic.frames_gradient[:, columns] += PARTED * parted * slope
        square = slope[:, :, None] * slope[:, None]
        quadratic.frames[:, columns[:, None], columns] += PARTED * square
