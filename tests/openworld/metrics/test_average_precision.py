"""AP by hand, and against a slow loop over all recall levels."""

from __future__ import annotations

import numpy as np
import pytest

from openworld.metrics.average_precision import average_precision, nearest_recall, precision_recall


def curve(flags: str, positives: int) -> tuple[np.ndarray, np.ndarray]:
    """T true, F false, n neutral."""
    letters = np.array(list(flags), dtype="U1")
    return precision_recall(letters == "T", letters == "F", positives)


def slow_area(recall: np.ndarray, precision: np.ndarray) -> float:
    area, reached = 0.0, 0.0
    for level in sorted(set(recall.tolist())):
        if level > reached:
            area += (level - reached) * max(p for r, p in zip(recall, precision) if r >= level)
            reached = level
    return area


@pytest.mark.parametrize(
    ("flags", "positives", "area", "eleven"),
    [
        ("TT", 2, 1.0, 1.0),
        ("T", 2, 0.5, 6 / 11),
        ("FT", 1, 0.5, 0.5),
        ("TFT", 2, 0.5 + 0.5 * 2 / 3, (6 + 5 * 2 / 3) / 11),
        ("nT", 1, 1.0, 1.0),
        ("FFF", 3, 0.0, 0.0),
        ("", 3, 0.0, 0.0),
    ],
)
def test_by_hand(flags: str, positives: int, area: float, eleven: float) -> None:
    recall, precision = curve(flags, positives)
    assert average_precision(recall, precision) == pytest.approx(area, abs=1e-12)
    assert average_precision(recall, precision, "11point") == pytest.approx(eleven, abs=1e-12)


def test_precision_and_recall_by_hand() -> None:
    recall, precision = curve("nTFT", 4)
    np.testing.assert_allclose(recall, [0, 0.25, 0.25, 0.5])
    np.testing.assert_allclose(precision, [0, 1, 0.5, 2 / 3])


@pytest.mark.parametrize("seed", range(20))
def test_against_slow_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    flags = "".join(generator.choice(list("TFn"), size=int(generator.integers(1, 40))))
    recall, precision = curve(flags, max(1, flags.count("T") + int(generator.integers(0, 4))))
    assert average_precision(recall, precision) == pytest.approx(slow_area(recall, precision), abs=1e-12)
    levels = np.arange(0.0, 1.1, 0.1)
    eleven = sum(max((p for r, p in zip(recall, precision) if r >= level), default=0.0) for level in levels) / 11
    assert average_precision(recall, precision, "11point") == pytest.approx(eleven, abs=1e-12)


def test_a_false_positive_at_the_end_never_raises_ap() -> None:
    for flags in ("T", "TF", "FT", "TFTFFT"):
        before = average_precision(*curve(flags, 5))
        for position in range(len(flags) + 1):
            assert average_precision(*curve(flags[:position] + "F" + flags[position:], 5)) <= before + 1e-12


def test_nearest_recall_takes_the_first_of_equals() -> None:
    assert nearest_recall(np.array([0.0, 0.5, 0.5, 1.0]), 0.5) == 1
    assert nearest_recall(np.array([0.25, 0.75]), 0.5) == 0
    assert nearest_recall(np.array([0.1, 0.2]), 0.8) == 1
