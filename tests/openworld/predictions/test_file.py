"""predictions.json: written and read back to the bit, and refused with the culprit's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.predictions.file import PredictedImage, read_predictions, write_predictions
from openworld.structures import Detections

SPACE = LabelSpace.of([["cat"], ["dog"], ["cow"]], 2)


def detections(count: int, seed: int = 0) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    return Detections(
        boxes=torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 50], dim=1),
        scores=torch.rand(count, generator=generator),
        labels=torch.randint(0, 3, (count,), generator=generator),
        known_labels=torch.randint(0, 2, (count,), generator=generator),
        extras={"energy": torch.randn(count, generator=generator)},
    )


def image(name: int | str = 1, **changes: Any) -> PredictedImage:
    return PredictedImage(**{"image_id": name, "file": "é.jpg", "width": 640, "height": 480, **changes})


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    some, more = detections(20), detections(5, seed=1)
    write_predictions(
        path,
        SPACE,
        [image(3, detections=some), image("x", detections=Detections.empty()), image(9, detections=more)],
    )
    read = read_predictions(path)
    assert read.label_space == SPACE
    assert read.image_ids == (3, "x", 9) and read.files[0] == "é.jpg"
    assert read.widths.tolist() == [640] * 3 and read.heights.tolist() == [480] * 3
    assert read.image_index.tolist() == [0] * 20 + [2] * 5
    order = torch.argsort(some.scores, descending=True, stable=True)
    energies = some.extras["energy"]
    for ours, wanted in ((read.boxes, some.boxes), (read.scores, some.scores), (read.extras["energy"], energies)):
        np.testing.assert_array_equal(ours[:20], wanted[order].double().numpy())
        assert ours.dtype == np.float64
    np.testing.assert_array_equal(read.labels[:20], some.labels[order])
    np.testing.assert_array_equal(read.best_known[:20], some.known_labels[order])


def test_the_file_is_what_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    one = Detections(
        torch.tensor([[1.0, 2, 11, 22], [0, 0, 5, 5]]),
        torch.tensor([0.25, 0.5]),
        torch.tensor([2, 1]),
        torch.tensor([0, 1]),
        {"energy": torch.tensor([-1.5, float("nan")])},
    )
    write_predictions(path, SPACE, [image(1, detections=one)])
    assert json.loads(path.read_text()) == {
        "format": "openworld-predictions/1",
        "tasks": [["cat"], ["dog"], ["cow"]],
        "task": 2,
        "uses_unknown_labels": False,
        "orientation": "size",
        "images": [
            {
                "id": 1,
                "file": "é.jpg",
                "width": 640,
                "height": 480,
                "detections": [
                    {"bbox": [0, 0, 5, 5], "label": "dog", "score": 0.5, "energy": None, "best_known": "dog"},
                    {"bbox": [1, 2, 10, 20], "label": "unknown", "score": 0.25, "energy": -1.5, "best_known": "cat"},
                ],
            }
        ],
    }


def test_files_are_the_same_for_both_layouts_of_the_head(tmp_path: Path) -> None:
    """cow is of the last task: the fixed head has a row for it between dog and unknown."""
    read = []
    for layout, unknown in (("growing", 2), ("fixed", 3)):
        space = LabelSpace.of(SPACE.tasks, SPACE.task, layout)  # type: ignore[arg-type]
        found = Detections(
            torch.tensor([[0.0, 0, 5, 5]] * 3),
            torch.tensor([0.9, 0.5, 0.1]),
            torch.tensor([0, unknown, 1]),
            torch.tensor([0, 1, 1]),
        )
        write_predictions(tmp_path / f"{layout}.json", space, [image(1, detections=found)])
        read.append((tmp_path / f"{layout}.json").read_text())
        assert read_predictions(tmp_path / f"{layout}.json").labels.tolist() == [0, 2, 1]
    assert read[0] == read[1]
    future = replace(found, labels=torch.tensor([0, 2, 1]))
    with pytest.raises(DataError, match="detection 1: label 2"):
        write_predictions(tmp_path / "p.json", space, [image(1, detections=future)])


def test_no_images_and_no_detections(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    write_predictions(path, SPACE, [])
    empty = read_predictions(path)
    assert len(empty) == 0 and empty.image_ids == () and empty.boxes.shape == (0, 4)
    assert empty.labels.dtype == np.int64 and empty.extras == {}


def test_other_detectors_have_other_columns_or_none(tmp_path: Path) -> None:
    path = content(tmp_path, lambda file: [first(file).pop(name) for name in ("energy", "best_known")])
    read = read_predictions(path)
    assert read.extras == {} and read.best_known.tolist() == [-1]
    path = content(tmp_path, lambda file: first(file).update(energy=None, quality=1, track="a", crowd=True))
    read = read_predictions(path)
    assert set(read.extras) == {"energy", "quality"} and read.extras["quality"].tolist() == [1.0]
    assert np.isnan(read.extras["energy"]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": torch.tensor([float("nan")])}, r"image 'k', detection 0: score nan"),
        ({"scores": torch.tensor([1.5])}, r"image 'k', detection 0: score 1.5"),
        ({"boxes": torch.tensor([[4.0, 0, 1, 1]])}, r"image 'k', detection 0: box \[4.0"),
        ({"boxes": torch.tensor([[0.0, 0, 1, float("inf")]])}, r"image 'k', detection 0: box"),
        ({"labels": torch.tensor([3])}, r"image 'k', detection 0: label 3"),
        ({"known_labels": torch.tensor([2])}, r"best known class 2"),
        ({"extras": {"energy": torch.tensor([float("inf")])}}, r"energy inf"),
        ({"extras": {"score": torch.tensor([0.0])}}, r"the extra column 'score'"),
    ],
)
def test_bad_detections_are_not_written(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fields = {
        "boxes": torch.tensor([[0.0, 0, 1, 1]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([0]),
        "known_labels": torch.tensor([0]),
    }
    with pytest.raises(DataError, match=message):
        write_predictions(tmp_path / "p.json", SPACE, [image("k", detections=Detections(**{**fields, **changes}))])
    assert not (tmp_path / "p.json").exists()


def test_bad_images_are_not_written(tmp_path: Path) -> None:
    empty = Detections.empty()
    with pytest.raises(DataError, match="image 1: the image is predicted twice"):
        write_predictions(tmp_path / "p.json", SPACE, [image(1, detections=empty), image(1, detections=empty)])
    with pytest.raises(DataError, match="image 1: width 0"):
        write_predictions(tmp_path / "p.json", SPACE, [image(1, width=0, detections=empty)])


def first(file: dict[str, Any]) -> dict[str, Any]:
    return file["images"][1]["detections"][0]


def content(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    file: dict[str, Any] = {
        "format": "openworld-predictions/1",
        "tasks": [["cat"], ["dog"]],
        "task": 1,
        "images": [
            {"id": 4, "file": "4.jpg", "width": 8, "height": 8, "detections": []},
            {
                "id": 5,
                "file": "5.jpg",
                "width": 8,
                "height": 8,
                "detections": [{"bbox": [0, 0, 4, 4], "label": "cat", "score": 0.5, "energy": -1, "best_known": "cat"}],
            },
        ],
    }
    change(file)
    path = tmp_path / "given.json"
    path.write_text(json.dumps(file))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(format="coco"), r"the format is 'coco'"),
        (lambda f: f.pop("tasks"), r"tasks or task is missing"),
        (lambda f: f.update(task=3), r"task 3 is not in a schedule of 2 tasks"),
        (lambda f: f.update(task="1"), r"tasks or task is missing or malformed"),
        (lambda f: f.update(images={}), r"images is not a list"),
        (lambda f: f["images"][0].update(id=None), r"image 0 has the id None"),
        (lambda f: f["images"][0].update(id=5), r"image 5: the image id comes twice"),
        (lambda f: f["images"][0].update(width=2.5), r"image 4: width 2.5"),
        (lambda f: f["images"][0].update(detections=None), r"image 4: detections is not a list"),
        (lambda f: first(f).update(score=float("nan")), r"image 5, detection 0: score nan"),
        (lambda f: first(f).update(score="0.5"), r"image 5, detection 0: score '0.5'"),
        (lambda f: first(f).update(score=-0.1), r"image 5, detection 0: score -0.1"),
        (lambda f: first(f).update(bbox=[0, 0, -4, 4]), r"image 5, detection 0: box \[0.0, 0.0, -4.0, 4.0\]"),
        (lambda f: first(f).update(bbox=[0, 0, 4]), r"image 5, detection 0: bbox \[0, 0, 4\]"),
        (lambda f: first(f).update(bbox=[0, 0, 4, True]), r"image 5, detection 0: bbox"),
        (lambda f: first(f).update(label="dog"), r"image 5, detection 0: label 'dog' is not known at task 1"),
        (lambda f: first(f).update(label="background"), r"label 'background' is not known"),
        (lambda f: first(f).update(best_known="unknown"), r"best_known 'unknown' is not known"),
        (lambda f: first(f).update(energy=float("inf")), r"image 5, detection 0: energy inf"),
        (lambda f: f["images"][1]["detections"].append(3), r"image 5, detection 1: 3 is not an object"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = content(tmp_path, change)
    with pytest.raises(DataError, match=message) as caught:
        read_predictions(path)
    assert "given.json" in str(caught.value) and "What to do:" in str(caught.value)


def test_a_file_that_is_not_there_or_not_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_predictions(tmp_path / "absent.json")
    (tmp_path / "cut.json").write_text('{"format": ')
    with pytest.raises(DataError, match=r"cut\.json: is not JSON"):
        read_predictions(tmp_path / "cut.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match="the format is 'list'"):
        read_predictions(tmp_path / "list.json")


def test_what_was_decided_with_unknown_labels_says_so(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    for told in (True, False):
        write_predictions(path, SPACE, [], uses_unknown_labels=told)
        assert read_predictions(path).uses_unknown_labels is told
    path.write_text(path.read_text().replace('"uses_unknown_labels": false, ', ""))
    assert read_predictions(path).uses_unknown_labels is False
