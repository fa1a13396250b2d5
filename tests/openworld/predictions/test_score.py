"""From a predictions file and a data set to metrics.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.metrics.protocols import ORE, UNIQUE
from openworld.predictions.arrays import Predictions
from openworld.predictions.file import PredictedImage, read_predictions, write_predictions
from openworld.predictions.score import evaluate_predictions
from openworld.records import Dataset, Record
from openworld.runtime.files import write_json
from openworld.structures import Detections

SPACE = LabelSpace.of([["cat"], ["dog"], ["cow"]], 2)
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])


def dataset(*names: Any, listed: int = 1) -> Dataset:
    """Each image shows a cat, a dog and a cow; the list of images names the first one ``listed`` times."""
    columns = (BOXES.numpy(), np.arange(3), np.zeros(3, dtype=np.bool_))
    records = [
        Record(name, Path("x.jpg"), 60, 60, *columns, listed=1 if number else listed)
        for number, name in enumerate(names)
    ]
    return Dataset.from_records(["cat", "dog", "cow"], records)


def predictions(folder: Path, *names: Any) -> Predictions:
    """Right about cat and dog, and the cow is unknown."""
    seen = Detections(BOXES, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0]))
    write_predictions(folder / "p.json", SPACE, [PredictedImage(name, "f", 60, 60, seen) for name in names])
    return read_predictions(folder / "p.json")


@pytest.mark.parametrize("protocol", [UNIQUE, ORE], ids=lambda protocol: protocol.name)
def test_a_perfect_detector(tmp_path: Path, protocol: Any) -> None:
    metrics = evaluate_predictions(predictions(tmp_path, 1, 2), dataset(2, 1), protocol)
    assert metrics["task"] == 2 and metrics["protocol"] == protocol.name
    for name in ("known_ap50", "previous_ap50", "current_ap50", "unknown_recall50", "unknown_ap50"):
        assert metrics[name] == 1.0
    assert metrics["wi"] == 0.0 and metrics["a_ose"] == 0
    assert list(metrics["classes"]) == ["cat", "dog"]
    assert metrics["classes"]["dog"]["ground_truth"] == 2
    write_json(tmp_path / "metrics.json", metrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_an_image_that_was_not_predicted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 annotated images were not predicted, for instance 2"):
        evaluate_predictions(predictions(tmp_path, 1), dataset(1, 2))
    metrics = evaluate_predictions(predictions(tmp_path, 1), dataset(1, 2), missing_images=True)
    assert metrics["unknown_recall50"] == 0.5 and metrics["counts"]["images_not_predicted"] == 1


def test_a_predicted_image_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 predicted images are not annotated, for instance 9"):
        evaluate_predictions(predictions(tmp_path, 9, 1), dataset(1))
    metrics = evaluate_predictions(predictions(tmp_path, 9, 1), dataset(1), extra_images=True)
    assert metrics["unknown_precision50"] == 1.0 and metrics["counts"]["detections"] == 3
    assert metrics["counts"]["predicted_images_not_annotated"] == 1


def test_ids_of_another_type_are_not_the_same_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="7 is not '7'"):
        evaluate_predictions(predictions(tmp_path, "7"), dataset(7))


def test_an_image_listed_twice_in_the_data_set(tmp_path: Path) -> None:
    predicted = predictions(tmp_path, 1, 2)
    assert evaluate_predictions(predicted, dataset(1, 2, 1))["unknown_recall50"] == 1.0
    counted = evaluate_predictions(predicted, dataset(1, 2, 1), ORE)
    assert counted["unknown_recall50"] == pytest.approx(2 / 3)
    assert counted["unknown_precision50"] == pytest.approx(2 / 3)
    assert evaluate_predictions(predicted, dataset(1, 2, listed=2), ORE) == counted


def test_nothing_predicted_and_nothing_annotated(tmp_path: Path) -> None:
    metrics = evaluate_predictions(predictions(tmp_path), dataset())
    assert metrics["known_ap50"] is None and metrics["a_ose"] is None
