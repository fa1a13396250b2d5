"""The box policy: hand cases, and nothing unusable passes whatever comes in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openworld.data.boxes import MAX_COORDINATE, MIN_SIDE, clean_boxes
from openworld.repairs import Repairs

NAN, INF = math.nan, math.inf


def clean(*boxes: list[float]) -> tuple[list[list[float]], list[int], dict[str, int]]:
    """Boxes, kept positions and counts of an image of 100x50 pixels."""
    repairs = Repairs()
    corners = np.array(boxes, dtype=np.float64)
    result, kept = clean_boxes(corners, 100, 50, repairs, lambda number: f"box {number}")
    assert result.dtype == np.float32 and result.shape == (len(kept), 4) and kept.dtype == np.int64
    return result.tolist(), kept.tolist(), dict(repairs.counts)


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([NAN, 0, 10, 10], "dropped: coordinate not finite"),
        ([0, 0, INF, 10], "dropped: coordinate not finite"),
        ([-INF, 0, 10, 10], "dropped: coordinate not finite"),
        ([0, 0, 1e308, 10], "dropped: coordinate beyond 1e+06"),
        ([0, -2e6, 10, 10], "dropped: coordinate beyond 1e+06"),
        ([20, 0, 10, 10], "dropped: inverted"),
        ([0, 20, 10, 10], "dropped: inverted"),
        ([10, 0, 10, 10], "dropped: without area"),
        ([100, 0, 120, 10], "dropped: outside the image"),
        ([-30, -30, 0, 10], "dropped: outside the image"),
        ([10, 10, 10.5, 20], "dropped: thinner than 1 px"),
        ([99.5, 10, 130, 20], "dropped: thinner than 1 px"),
    ],
)
def test_unusable_box_is_dropped_and_counted_by_kind(box: list[float], kind: str) -> None:
    good = [1.0, 2.0, 30.0, 40.0]
    assert clean(good, box, good) == ([good, good], [0, 2], {kind: 1})


def test_box_partly_outside_is_clipped_and_counted() -> None:
    assert clean([-5, 10, 120, 60]) == ([[0, 10, 100, 50]], [0], {"clipped to the image": 1})


def test_box_on_the_border_is_untouched() -> None:
    assert clean([0, 0, 100, 50], [0, 0, 1, 1]) == ([[0, 0, 100, 50], [0, 0, 1, 1]], [0, 1], {})


def test_rounding_beyond_the_border_is_clipped_without_a_count() -> None:
    assert clean([0, 0, 100.04, 50]) == ([[0, 0, 100, 50]], [0], {})


def test_no_boxes() -> None:
    assert clean() == ([], [], {})


def test_examples_name_the_culprit_and_are_limited() -> None:
    repairs = Repairs()
    clean_boxes(np.full((50, 4), NAN), 10, 10, repairs, lambda number: f"a.json, annotation {number}")
    answer = repairs.as_json()
    assert answer["repairs"] == {"dropped: coordinate not finite": 50}
    assert len(answer["examples"]) == 3
    assert answer["examples"][2].startswith("dropped: coordinate not finite: a.json, annotation 2 has the box [nan")


anything = st.one_of(
    st.floats(width=64),
    st.floats(-50, 150),
    st.sampled_from([NAN, INF, -INF, 1e308, -1e308, 0.0, -0.0, 1e6, 100.0, 99.9999999, 5e-324]),
)


@given(
    st.lists(st.tuples(anything, anything, anything, anything), max_size=8), st.integers(1, 200), st.integers(1, 200)
)
def test_whatever_comes_in_what_passes_is_usable(boxes: list[tuple[float, ...]], width: int, height: int) -> None:
    repairs = Repairs()
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    result, kept = clean_boxes(corners, width, height, repairs, str)
    assert np.isfinite(result).all()
    assert (result >= 0).all() and (result[:, [0, 2]] <= width).all() and (result[:, [1, 3]] <= height).all()
    assert (result[:, 2] - result[:, 0] >= MIN_SIDE).all() and (result[:, 3] - result[:, 1] >= MIN_SIDE).all()
    dropped = sum(count for kind, count in repairs.counts.items() if kind.startswith("dropped"))
    assert len(result) == len(kept) == len(boxes) - dropped
    for number, box in enumerate(boxes):  # slow restatement of what must be kept
        x1, y1, x2, y2 = box
        usable = all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in box)
        inside = usable and min(x2, width) - max(x1, 0) >= 1.001 and min(y2, height) - max(y1, 0) >= 1.001
        if inside:
            assert number in kept
