"""Which detections become annotations, and how they join a view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openworld.data.splits import View, training_view
from openworld.distillation.pseudo_labels import chosen_labels, with_pseudo_labels
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record
from openworld.structures import Detections

TASKS = (("cat", "dog"), ("cow",))
OLD, NEW = LabelSpace(TASKS, 1), LabelSpace(TASKS, 2)


def record(image: int | str, boxes: list[list[float]], categories: list[int]) -> Record:
    count = len(boxes)
    return Record(
        image,
        Path(f"{image}.jpg"),
        100,
        80,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(categories, dtype=np.int64),
        np.zeros(count, dtype=np.bool_),
    )


@pytest.fixture
def view() -> View:
    """Three images of task 2, with the cows alone; the middle one has two."""
    records = [
        record(7, [[0, 0, 10, 10]], [2]),
        record("b", [[0, 0, 20, 20], [50, 50, 60, 60], [30, 30, 40, 40]], [2, 0, 2]),
        record(9, [[5, 5, 15, 15]], [2]),
    ]
    return training_view(Dataset.from_records(["cat", "dog", "cow"], records), NEW)


def found(*rows: tuple[list[float], float, int]) -> Detections:
    boxes, scores, labels = zip(*rows, strict=True)
    numbers = torch.tensor(labels)
    return Detections(torch.tensor(boxes), torch.tensor(scores), numbers, numbers.clamp(max=1))


def test_sure_detections_of_old_classes_away_from_annotations_are_chosen(view: View) -> None:
    detections = found(
        ([0.0, 0.0, 10.0, 10.0], 0.9, 0),  # the annotated cow
        ([20.0, 20.0, 40.0, 40.0], 0.8, 1),
        ([50.0, 0.0, 60.0, 10.0], 0.7, OLD.unknown),
        ([0.0, 5.0, 10.0, 15.0], 0.5, 0),  # overlaps the cow by a third
        ([70.0, 0.0, 80.0, 10.0], 0.4, 0),
    )
    assert chosen_labels(view[0], detections, OLD, score=0.5, iou=0.4) == {
        "image": 7,
        "boxes": [[20.0, 20.0, 40.0, 40.0], [0.0, 5.0, 10.0, 15.0]],
        "classes": ["dog", "cat"],
        "scores": [pytest.approx(0.8), 0.5],
    }
    assert chosen_labels(view[0], detections, OLD, score=0.5, iou=0.3)["classes"] == ["dog"]
    assert chosen_labels(view[0], Detections.empty(), OLD, score=0.5, iou=0.3)["boxes"] == []


def test_they_stand_behind_the_annotations_of_their_image(view: View) -> None:
    entries: list[dict[str, Any]] = [
        {"image": 9, "boxes": [[1, 1, 2, 2]], "classes": ["dog"]},
        {"image": "not here", "boxes": [[1, 1, 2, 2]], "classes": ["dog"]},
        {"image": "b", "boxes": [[3, 3, 4, 4], [5, 5, 6, 6]], "classes": ["cat", "dog"]},
        {"image": 7, "boxes": [], "classes": []},
    ]
    joint = with_pseudo_labels(view, entries, NEW)
    shown = [(sample.record.image_id, sample.record.boxes.tolist(), sample.labels.tolist()) for sample in joint]
    assert shown == [
        (7, [[0, 0, 10, 10]], [2]),
        ("b", [[0, 0, 20, 20], [30, 30, 40, 40], [3, 3, 4, 4], [5, 5, 6, 6]], [2, 2, 0, 1]),
        (9, [[5, 5, 15, 15], [1, 1, 2, 2]], [2, 1]),
    ]
    named = [joint.images.categories[place] for place in joint.images[1].categories]
    assert named == ["cow", "cow", "cat", "dog"]
    assert [len(sample.labels) for sample in view] == [1, 2, 1]


def test_a_class_that_the_files_do_not_have_is_added(view: View) -> None:
    cows = Dataset.from_records(["cow"], [record(1, [[0, 0, 10, 10]], [0])])
    joint = with_pseudo_labels(
        training_view(cows, NEW), [{"image": 1, "boxes": [[1, 1, 2, 2]], "classes": ["dog"]}], NEW
    )
    assert joint.images.categories == ("cow", "dog") and joint.labels.tolist() == [2, 1]
