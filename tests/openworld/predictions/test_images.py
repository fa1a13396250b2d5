"""Which annotated image a predicted one is: by its id, by its file, or refused."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openworld.data.formats.sizes import FROM_BOXES
from openworld.data.schedules import Schedule
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.predictions.file import PredictedImage, write_predictions
from openworld.predictions.images import BY_FILE, AnnotatedImages
from openworld.predictions.open import open_predictions
from openworld.predictions.rounding import BEYOND
from openworld.predictions.score import evaluate_predictions
from openworld.records import Dataset, Record
from openworld.repairs import Repairs
from openworld.structures import Detections

TASKS = (("cat",), ("dog",))
SPACE = LabelSpace.of(TASKS, 1)
SCHEDULE = Schedule("toy", TASKS)


def box(number: int) -> list[float]:
    """Of the one cat on image ``number``; no two are alike."""
    return [10.0 * number, 0, 10.0 * number + 8, 9]


def annotated(images: dict[Any, str], size: tuple[int, int] = (200, 60), repairs: Repairs | None = None) -> Dataset:
    """Images by id, each with its path and one cat."""
    columns = (np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.bool_))
    records = [
        Record(name, Path(path), *size, np.array([box(number)], dtype=np.float32), *columns)
        for number, (name, path) in enumerate(images.items())
    ]
    return Dataset.from_records(("cat", "dog"), records, repairs)


def predicted(folder: Path, images: dict[Any, tuple[str, int]], size: tuple[int, int] = (200, 60)) -> Path:
    """A perfect detector: for each id the file, and the number of the image that it shows."""
    entries = [
        PredictedImage(
            name,
            file,
            *size,
            Detections(torch.tensor([box(number)]), torch.tensor([0.9]), torch.tensor([0]), torch.tensor([0])),
        )
        for name, (file, number) in images.items()
    ]
    write_predictions(folder / "predictions.json", SPACE, entries)
    return folder / "predictions.json"


def score(path: Path, truth: Dataset, **policy: bool) -> tuple[float, dict[str, int]]:
    """AP of the cats, and the repairs that were counted."""
    repairs = Repairs()
    (found,) = open_predictions(path, truth, repairs=repairs)
    return evaluate_predictions(found, truth, **policy)["known_ap50"], dict(repairs.counts)


GROUND_TRUTHS = {
    "numbers, as in COCO": {7: "data/images/pic_1.jpg", 9: "data/images/pic_2.jpg"},
    "stems, as in VOC and YOLO": {"pic_1": "JPEGImages/pic_1.jpg", "pic_2": "JPEGImages/pic_2.jpg"},
    "absolute": {1: "/data/test/pic_1.jpg", 2: "/data/test/pic_2.jpg"},
    "numbers in the other order": {2: "d/pic_1.jpg", 1: "d/pic_2.jpg"},
    "another suffix": {"a": "d/pic_1.png", "b": "d/pic_2.PNG"},
    "windows": {1: "d\\pic_1.jpg", 2: "d\\pic_2.jpg"},
}


@pytest.mark.parametrize("images", GROUND_TRUTHS.values(), ids=GROUND_TRUTHS.keys())
def test_what_predict_writes_is_scored_by_file(tmp_path: Path, images: dict[Any, str]) -> None:
    """Its ids are the names of the files below the folder that was given."""
    path = predicted(tmp_path, {"pic_1.jpg": ("/x/t/pic_1.jpg", 0), "pic_2.jpg": ("/x/t/pic_2.jpg", 1)})
    assert score(path, annotated(images)) == (1.0, {BY_FILE: 2})


def test_folders_tell_images_of_one_name_apart(tmp_path: Path) -> None:
    truth = annotated({1: "t/a/1.jpg", 2: "t/b/1.jpg", 3: "t/b/x/1.JPG"})
    path = predicted(
        tmp_path, {"b/1.jpg": ("/t/b/1.jpg", 1), "a/1.jpg": ("/t/a/1.jpg", 0), "b/x/1.JPG": ("/t/b/x/1.JPG", 2)}
    )
    assert score(path, truth) == (1.0, {BY_FILE: 3})


def test_predictions_of_a_folder_below_are_scored(tmp_path: Path) -> None:
    """The rest is as with any images that were not predicted."""
    truth = annotated({1: "t/a/1.jpg", 2: "t/b/2.jpg"})
    path = predicted(tmp_path, {"2.jpg": ("/t/b/2.jpg", 1)})
    with pytest.raises(DataError, match="1 of 2 annotated images were not predicted, for instance 1"):
        score(path, truth)
    assert score(path, truth, missing_images=True) == (0.5, {BY_FILE: 1})


def test_a_file_that_was_not_annotated_is_left_to_the_rules(tmp_path: Path) -> None:
    """Also one of the same name in a folder that fits less well."""
    truth = annotated({1: "t/a/1.jpg"})
    path = predicted(tmp_path, {"a/1.jpg": ("/t/a/1.jpg", 0), "b/1.jpg": ("/t/b/1.jpg", 4), "z.jpg": ("/t/z.jpg", 4)})
    with pytest.raises(DataError, match=r"2 of 3 predicted images are not annotated, for instance 'b/1\.jpg'"):
        score(path, truth)
    assert score(path, truth, extra_images=True) == (1.0, {BY_FILE: 1})


def test_one_file_that_may_be_two_images(tmp_path: Path) -> None:
    truth = annotated({1: "t/a/1.jpg", 2: "t/b/1.jpg"})
    path = predicted(tmp_path, {"1.jpg": ("/x/1.jpg", 0)})
    with pytest.raises(DataError, match=r"image '1.jpg' \(/x/1.jpg\) may be 2 annotated ones: 1 \(t/a/1.jpg\), 2"):
        score(path, truth)


def test_two_files_that_may_be_one_image(tmp_path: Path) -> None:
    path = predicted(tmp_path, {"a/1.jpg": ("/x/a/1.jpg", 0), "b/1.jpg": ("/x/b/1.jpg", 0)})
    with pytest.raises(DataError, match=r"/x/a/1.jpg and /x/b/1.jpg may both be the annotated image 5 \(1.jpg\)"):
        score(path, annotated({5: "1.jpg"}))


def test_ids_of_the_annotations_stay(tmp_path: Path) -> None:
    """Whatever the files are called; also where the file of a second one fits."""
    truth = annotated({1: "t/1.jpg", 2: "t/2.jpg"})
    assert score(predicted(tmp_path, {1: ("", 0), 2: ("renamed.jpg", 1)}), truth) == (1.0, {})
    path = predicted(tmp_path, {1: ("t/1.jpg", 0), 2: ("t/2.jpg", 1), "copy": ("u/2.jpg", 4)})
    assert score(path, truth, extra_images=True) == (1.0, {})


def test_annotations_that_number_the_images_otherwise_are_refused(tmp_path: Path) -> None:
    """Silent before: every id is there, and every score is that of other images."""
    path = predicted(tmp_path, {1: ("t/1.jpg", 0), 2: ("t/2.jpg", 1)})
    with pytest.raises(DataError, match=r"image 1 is t/1.jpg, and the annotations have t/2.jpg under this id and 2"):
        score(path, annotated({2: "t/1.jpg", 1: "t/2.jpg"}))


def test_another_size_than_the_annotated_one_is_refused(tmp_path: Path) -> None:
    path = predicted(tmp_path, {"1.jpg": ("/t/1.jpg", 0)}, (400, 120))
    with pytest.raises(
        DataError, match=r"1 of 1 images were predicted in another size .* at 400x120, annotated at 200"
    ):
        score(path, annotated({5: "t/1.jpg"}))
    guessed = Repairs()
    guessed.add(FROM_BOXES, "t/1.jpg")
    assert score(path, annotated({5: "t/1.jpg"}, repairs=guessed))[0] == 1.0


# -- foreign files ----------------------------------------------------------------------------------------------------


def coco_results(path: Path, names: list[Any], scores: list[float]) -> Path:
    rows = [
        {"image_id": name, "category_id": 1, "bbox": [10.0 * number, 0, 8, 9], "score": value}
        for number, (name, value) in enumerate(zip(names, scores, strict=True))
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    "names", [["pic_1.jpg", "pic_2.jpg"], ["images/pic_1.jpg", "images/pic_2.JPG"], ["t\\pic_1.jpg", "t\\pic_2.jpg"]]
)
def test_foreign_results_may_name_files(tmp_path: Path, names: list[str]) -> None:
    truth, repairs = annotated({7: "t/pic_1.jpg", 9: "t/pic_2.jpg"}), Repairs()
    path = coco_results(tmp_path / "r.json", names, [0.9, 0.8])
    (found,) = open_predictions(path, truth, SCHEDULE, 1, category_names={1: "cat"}, repairs=repairs)
    assert evaluate_predictions(found, truth)["known_ap50"] == 1.0
    assert repairs.cases == {BY_FILE: [f"{names[0]!r} is 7 (t/pic_1.jpg)", f"{names[1]!r} is 9 (t/pic_2.jpg)"]}


def test_a_foreign_file_name_that_may_be_two_images(tmp_path: Path) -> None:
    path = coco_results(tmp_path / "r.json", ["1.jpg"], [0.9])
    with pytest.raises(DataError, match=r"record 0: image_id '1.jpg' may mean 2 images: 7 \(a/1.jpg\), 9"):
        open_predictions(path, annotated({7: "a/1.jpg", 9: "b/1.jpg"}), SCHEDULE, 1, category_names={1: "cat"})


def test_a_name_with_a_dot_is_not_one_with_a_suffix() -> None:
    images = AnnotatedImages(annotated({1: "t/v1.jpg", 2: "t/v1.2.jpg"}))
    assert images.matches("v1.2") == [1] and images.matches("v1.3") == [] and images.matches("v1.jpg") == [0]


def test_scores_that_rounding_took_out_of_range(tmp_path: Path) -> None:
    """In any form of predictions; a percentage and a logit are still refused."""
    truth, repairs = annotated({1: "1.jpg", 2: "2.jpg"}), Repairs()
    path = coco_results(tmp_path / "r.json", [1, 2], [1.0000001, -1e-9])
    (found,) = open_predictions(path, truth, SCHEDULE, 1, category_names={1: "cat"}, repairs=repairs)
    assert found.scores.tolist() == [1.0, 0.0] and repairs.counts == {BEYOND: 2}
    assert repairs.cases[BEYOND][0] == f"{path}, record 0 has the score {np.float64(1.0000001)!r}"
    own = predicted(tmp_path, {1: ("1.jpg", 0), 2: ("2.jpg", 1)})
    own.write_text(own.read_text().replace("0.8999999761581421", "1.0009"))
    (found,) = open_predictions(own, truth, repairs=repairs)
    assert found.scores.tolist() == [1.0, 1.0] and repairs.counts == {BEYOND: 4}
    for wrong in (1.002, 90.0, -0.5):
        coco_results(path, [1, 2], [0.5, wrong])
        with pytest.raises(DataError, match=f"record 1: score {wrong}\n.*divide percent by 100"):
            open_predictions(path, truth, SCHEDULE, 1, category_names={1: "cat"})
        own.write_text(own.read_text().replace("1.0009", str(wrong)))
        with pytest.raises(DataError, match="a score is a number from 0 to 1"):
            open_predictions(own, truth)
        own.write_text(own.read_text().replace(str(wrong), "1.0009"))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_unicode_form_are_the_same(forms: tuple[str, str]) -> None:
    """A folder that passed through macOS has its names decomposed."""
    stored, written = (unicodedata.normalize(form, "caf\u00e9/b\u00fcro.jpg") for form in forms)
    images = AnnotatedImages(annotated({1: stored, 2: "cafe/buro.jpg"}))
    for name in (written, f"/elsewhere/{written}", written.rpartition("/")[2], written.rpartition("/")[2][:-4]):
        assert images.matches(name) == [0]
