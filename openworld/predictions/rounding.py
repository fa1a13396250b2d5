"""Scores that rounding took out of their range: a softmax in float32 may end at 1.0000001."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDING = 2.0**-10
"""A score may lie this far outside [0, 1]: the step below 1 of half precision, in which many detectors compute."""
BEYOND = "scores brought back to the range from 0 to 1, from which rounding had taken them"
"""Kind of repair."""


def within_rounding(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Bring scores back to [0, 1] that lie outside by no more than :data:`ROUNDING`.

    Returns:
        the scores, (N,), and the positions of those that changed.
    """
    outside = ((scores > 1) & (scores <= 1 + ROUNDING)) | ((scores < 0) & (scores >= -ROUNDING))
    return np.where(outside, np.clip(scores, 0, 1), scores), np.flatnonzero(outside)
