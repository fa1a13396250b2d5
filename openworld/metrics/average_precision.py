"""Precision, recall and average precision of one ranked list of detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]


def precision_recall(true: NDArray[np.bool_], false: NDArray[np.bool_], positives: int) -> tuple[Reals, Reals]:
    """Compute recall and precision after each detection of a ranked list.

    Args:
        true: (N,) bool, the detection found an object; sorted by falling score.
        false: (N,) bool, the detection is wrong. A detection that is neither is neutral.
        positives: number of objects, at least 1.

    Returns:
        recall (N,), precision (N,), float64. Precision is 0 while all detections are neutral.
    """
    found = np.cumsum(true, dtype=np.float64)
    counted = found + np.cumsum(false, dtype=np.float64)
    return found / positives, found / np.maximum(counted, np.finfo(np.float64).eps)


def sampled_envelope(recall: Reals, precision: Reals, levels: Reals) -> Reals:
    """Return the largest precision at each recall level or above, 0 where no recall is that high.

    Args:
        recall: (N,) non-decreasing.
        precision: (N,).
        levels: (L,).

    Returns:
        (L,) float64.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    sampled: Reals = np.append(envelope, 0.0)[np.searchsorted(recall, levels, side="left")]
    return sampled


def average_precision(recall: Reals, precision: Reals, style: Literal["area", "11point", "101point"] = "area") -> float:
    """Compute the average precision of a curve (Everingham et al., IJCV 2010 and 2015; Lin et al., ECCV 2014).

    Args:
        recall: (N,) non-decreasing.
        precision: (N,).
        style: ``area`` under the envelope (the largest precision at this recall or a higher one), or the mean of the
            envelope at the ``11point`` recalls 0, 0.1 … 1 or the ``101point`` recalls 0, 0.01 … 1.

    Returns:
        a fraction; 0 for an empty list.
    """
    if recall.size == 0:
        return 0.0
    if style == "11point":
        # The published evaluators write the levels as multiples of a float step: a recall of exactly 0.3 stays below
        # 0.30000000000000004, and so it does here.
        return float(sampled_envelope(recall, precision, np.arange(0.0, 1.1, 0.1)).sum() / 11.0)
    if style == "101point":
        return float(sampled_envelope(recall, precision, np.linspace(0.0, 1.0, 101)).mean())
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def nearest_recall(recall: Reals, level: float) -> int:
    """Return the index of the first point of a non-empty curve whose recall is nearest to ``level``."""
    return int(np.argmin(np.abs(recall - level)))


def mean_present(values: Sequence[float | int | None]) -> float | None:
    """Return the mean of the values that are not None, or None without any (mAP: mean over classes with an AP)."""
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None
