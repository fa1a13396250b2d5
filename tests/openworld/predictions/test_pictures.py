"""Predictions of photographs as viewers show them meet annotations of the same or of the stored pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.predictions.file import PredictedImage, read_predictions, write_predictions
from openworld.predictions.score import evaluate_predictions
from openworld.records import Dataset, Record
from openworld.structures import Detections
from tests.photographs import BOX, STORED, object_in, upright_picture, write_photograph

SPACE = LabelSpace.of([["mug"]], 1)


def score(folder: Path, tag: int, *, predicted: bool | None, annotated: bool | None, size: tuple[int, int]) -> float:
    """AP of one photograph whose object was found where it is in the predicted picture."""
    path = write_photograph(folder / f"{tag}.jpg", tag)
    seen = upright_picture() if predicted else STORED[tag](upright_picture())
    found = Detections(
        torch.tensor([object_in(seen.transpose(2, 0, 1))], dtype=torch.float32),
        torch.tensor([0.9]),
        torch.tensor([0]),
        torch.tensor([0]),
    )
    image = PredictedImage(tag, str(path), seen.shape[1], seen.shape[0], found)
    write_predictions(folder / "p.json", SPACE, [image], upright=predicted)
    box, none = np.array([BOX], dtype=np.float32), np.zeros(1, dtype=np.int64)
    truth = Dataset.from_records(
        ["mug"], [Record(tag, path, *size, box, none, none.astype(np.bool_), upright=annotated)]
    )
    return float(evaluate_predictions(read_predictions(folder / "p.json"), truth)["known_ap50"])


@pytest.mark.parametrize("tag", STORED)
def test_upright_on_both_sides_scores(tmp_path: Path, tag: int) -> None:
    assert score(tmp_path, tag, predicted=True, annotated=True, size=(48, 64)) == 1.0


@pytest.mark.parametrize("tag", [1, 5, 6, 7, 8])
def test_upright_predictions_meet_annotations_whose_size_tells(tmp_path: Path, tag: int) -> None:
    assert score(tmp_path, tag, predicted=True, annotated=None, size=(48, 64)) == 1.0


@pytest.mark.parametrize("tag", [2, 3, 4])
@pytest.mark.parametrize("annotated", [None, False])
def test_boxes_of_mirrored_pictures_are_refused(tmp_path: Path, tag: int, annotated: bool | None) -> None:
    with pytest.raises(DataError, match=rf"image {tag} are of different orientation: its EXIF tag is {tag}") as caught:
        score(tmp_path, tag, predicted=True, annotated=annotated, size=(48, 64))
    assert "--orientation" in str(caught.value)


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_exchanged_sides_are_refused(tmp_path: Path, tag: int) -> None:
    with pytest.raises(DataError, match="the predicted picture is 64x48, annotated is 48x64"):
        score(tmp_path, tag, predicted=False, annotated=True, size=(48, 64))


def test_files_that_are_gone_or_say_nothing_are_no_obstacle(tmp_path: Path) -> None:
    assert score(tmp_path, 1, predicted=True, annotated=None, size=(48, 64)) == 1.0
    found = read_predictions(tmp_path / "p.json")
    box, none = np.array([BOX], dtype=np.float32), np.zeros(1, dtype=np.int64)
    gone = Record(1, tmp_path / "gone.jpg", 48, 64, box, none, none.astype(np.bool_))
    assert evaluate_predictions(found, Dataset.from_records(["mug"], [gone]))["known_ap50"] == 1.0


def test_the_file_says_it(tmp_path: Path) -> None:
    for upright, name in ((None, "size"), (True, "upright"), (False, "stored")):
        write_predictions(tmp_path / "p.json", SPACE, [], upright=upright)
        content = json.loads((tmp_path / "p.json").read_text())
        assert content["orientation"] == name and read_predictions(tmp_path / "p.json").upright is upright
    del content["orientation"]
    (tmp_path / "p.json").write_text(json.dumps(content))
    assert read_predictions(tmp_path / "p.json").upright is None
    (tmp_path / "p.json").write_text(json.dumps({**content, "orientation": "sideways"}))
    with pytest.raises(DataError, match="orientation 'sideways'"):
        read_predictions(tmp_path / "p.json")
