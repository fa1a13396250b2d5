"""Arrays of objects and detections: built from arrays or from a data set, checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.records import Dataset, Record

SPACE = LabelSpace.of([["cat"], ["dog"], ["cow"]], 2)


def record(image_id: Any, boxes: Any, categories: list[int], ignore: list[bool], **settings: Any) -> Record:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    columns = (np.array(categories, dtype=np.int64), np.array(ignore, dtype=np.bool_))
    return Record(image_id, Path("x.jpg"), 9, 9, corners, *columns, **settings)


def test_from_a_data_set() -> None:
    dataset = Dataset.from_records(
        ["cow", "car", "dog", "cat"],
        [
            record(7, [[0, 0, 1, 2], [1, 1, 3, 3], [0, 0, 9, 9]], [2, 0, 1], [False, True, False]),
            record("empty", [], [], []),
        ],
    )
    truth = GroundTruth.from_dataset(dataset, SPACE)
    assert truth.image_ids == (7, "empty")
    assert truth.labels.tolist() == [1, 2, 2]
    assert truth.ignore.tolist() == [False, True, False]
    assert truth.image_index.tolist() == [0, 0, 0]
    assert truth.boxes.dtype == np.float64 and truth.boxes.shape == (3, 4)


def test_crowds_and_repeated_listings() -> None:
    crowd = np.array([False, True])
    crowded = record(1, [[0, 0, 1, 1], [0, 0, 2, 2]], [0, 1], [False, False], crowd=crowd, listed=3)
    dataset = Dataset.from_records(["cat", "cow", "dog"], [crowded, record(2, [[0, 0, 3, 3]], [2], [True])])
    truth = GroundTruth.from_dataset(dataset, SPACE)
    assert truth.image_ids == (1, 2, 1, 1)
    assert truth.image_index.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert truth.crowd.tolist() == [False, True, False, False, True, False, True]
    assert truth.ignore.tolist() == [False, True, True, False, True, False, True]
    assert truth.labels.tolist() == [0, 2, 1, 0, 2, 0, 2]


def test_no_images() -> None:
    assert len(GroundTruth.from_dataset(Dataset.from_records([], []), SPACE)) == 0


def test_from_arrays_makes_the_rest_unknown() -> None:
    truth = GroundTruth.from_arrays(["a"], [0, 0], [[0, 0, 1, 1], [0, 0, 2, 2]], [1, 44], num_known=2)
    assert truth.labels.tolist() == [1, 2]
    assert not truth.ignore.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0]}, "2 boxes and 1 values of labels"),
        ({"labels": [0, -1]}, "label -1"),
        ({"boxes": [[0, 0, 1, 1], [5, 0, 2, 2]]}, r"box 1 .* \[5.0, 0.0, 2.0, 2.0\]"),
        ({"boxes": [[0, 0, 1, float("nan")], [0, 0, 2, 2]]}, "box 0"),
        ({"image_index": [0, 1]}, "images 0 to 1 of 1"),
    ],
)
def test_bad_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    columns: dict[str, Any] = {"image_index": [0, 0], "boxes": [[0, 0, 1, 1], [0, 0, 2, 2]], "labels": [0, 1]}
    with pytest.raises(DataError, match=message):
        GroundTruth.from_arrays(["a"], num_known=2, **{**columns, **change})


def test_a_bad_record_is_named() -> None:
    good = record(11, [[0, 0, 1, 1]], [0], [False])
    dataset = Dataset.from_records(["cat"], [good, record(12, [[0, 0, 1, 1], [9, 0, 1, 1]], [0, 0], [False] * 2)])
    with pytest.raises(DataError, match="image 12: box 1"):
        GroundTruth.from_dataset(dataset, SPACE)


def test_scores_must_be_finite() -> None:
    with pytest.raises(DataError, match="score nan of detection 1"):
        ScoredBoxes.from_arrays([0, 0], [[0, 0, 1, 1]] * 2, [0, 0], [0.5, float("nan")])
