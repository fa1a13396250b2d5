"""What a check counts and what it says, on images and boxes worked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.audit.images_and_boxes import check_data, class_counts
from openworld.audit.suspicions import SUSPICIONS, suspicions
from openworld.errors import DataError
from openworld.records import Dataset, Record
from openworld.repairs import Repairs

NAMES = ("cat", "dog", "cow")
Box = tuple[float, float, float, float]


def picture(path: Path, seed: int, size: tuple[int, int] = (100, 80)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def record(name: Any, *boxes: tuple[str, Box], path: Path | None = None, crowd: str = "") -> Record:
    """The letters of ``crowd`` are x where a box is one."""
    crowds = np.array([mark == "x" for mark in crowd.ljust(len(boxes))], dtype=np.bool_)
    return Record(
        image_id=name,
        path=path or Path("nowhere.jpg"),
        width=100,
        height=80,
        boxes=np.array([box for _, box in boxes], dtype=np.float32).reshape(-1, 4),
        categories=np.array([NAMES.index(one) for one, _ in boxes], dtype=np.int64),
        ignore=crowds,
        crowd=crowds,
        annotation_ids=tuple(f"{name}/{number}" for number in range(len(boxes))),
    )


SQUARE = (10.0, 10.0, 50.0, 50.0)


def test_suspicions_by_hand() -> None:
    found = suspicions(
        record(
            1,
            ("cat", SQUARE),
            ("cat", (11, 10, 50, 50)),  # IoU 39/40
            ("dog", (10, 11, 50, 50)),  # IoU with the first 39/40, with the second 39*39/(39*40+40*39-39*39) = 0.95
            ("cat", (20, 10, 60, 50)),  # IoU 30/50
            ("cow", (0, 0, 3.9, 20)),
            ("cow", (0, 60, 100, 70)),
            ("dog", (0, 0, 100, 80)),
            ("cow", (0, 0, 95, 78)),  # 92.6 % of the image, and IoU with the whole of it as much
        )
    )
    assert list(found) == list(SUSPICIONS)
    assert found == {
        "tiny": [4],
        "whole image": [6],
        "huge": [7],
        "extreme shape": [5],
        "repeated": [1],
        "two classes": [2, 7],
    }


def test_crowds_are_not_suspicious_and_not_counted() -> None:
    crowded = record(1, ("cat", SQUARE), ("cat", SQUARE), ("cat", (0, 0, 100, 80)), crowd="x x")
    assert not any(suspicions(crowded).values())
    assert not any(suspicions(record(2)).values())
    assert class_counts(Dataset.from_records(NAMES, (crowded,))) == {"cat": 1, "dog": 0, "cow": 0}


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, Dataset]:
    """train: two pictures, one of another size, one broken, one empty. test: a copy, a look-alike and a new one."""
    first = picture(tmp_path / "first.png", 1)
    other = picture(tmp_path / "other.png", 2, (80, 100))
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    copy = tmp_path / "copy.png"
    copy.write_bytes(first.read_bytes())
    alike = tmp_path / "alike.jpg"
    Image.open(other).save(alike, quality=60)
    repairs = Repairs()
    repairs.add("dropped: inverted", "a.json, annotation 3")
    train = Dataset.from_records(
        NAMES,
        (
            record(1, *[("cat", SQUARE), ("dog", (60.0, 0.0, 68.0, 8.0))] * 12, path=first),
            record(2, ("dog", SQUARE), path=other),
            record(3, ("cat", SQUARE), path=broken),
            record(4, path=tmp_path / "none.png"),
        ),
        repairs,
    )
    test = Dataset.from_records(
        NAMES,
        (
            record("x", ("cat", SQUARE), path=copy),
            record("y", ("dog", SQUARE), ("cow", SQUARE), path=alike),
            record("z", path=picture(tmp_path / "new.png", 3)),
        ),
    )
    return {"train": train, "test": test}


def test_facts(sets: dict[str, Dataset]) -> None:
    result = check_data(sets, [["dog"], ["cat"]])
    train = result["sets"]["train"]
    assert (train["images"], train["objects"]) == (4, 26)
    assert train["without_objects"] == {"images": 1, "examples": [4]}
    assert [(one["image"], one["problem"][:14]) for one in train["unreadable"]["examples"]] == [
        (3, "is not an imag"),
        (4, "image does not"),
    ]
    assert train["other_size"]["examples"] == [{"image": 2, "annotated": [100, 80], "file": [80, 100]}]
    assert train["image_sizes"]["smallest"] == train["image_sizes"]["largest"] == [100, 80]
    assert train["box_sides"] == [0, 12, 0, 14, 0, 0, 0, 0]
    assert train["box_aspects"] == [0, 0, 0, 0, 26, 0, 0, 0, 0]
    assert train["suspicious"]["repeated"]["boxes"] == 22
    assert train["suspicious"]["repeated"]["images"] == 1
    assert result["sets"]["test"]["suspicious"]["two classes"]["examples"] == [
        {"image": "y", "annotation": "y/1", "class": "cow", "box": list(SQUARE)}
    ]
    assert result["classes"] == [
        {"class": "dog", "task": 1, "train": 13, "test": 1},
        {"class": "cat", "task": 2, "train": 13, "test": 1},
        {"class": "cow", "task": None, "train": 0, "test": 1},
    ]
    assert result["task_objects"] == [
        {"task": 1, "train": {"images": 2, "objects": 13}, "test": {"images": 1, "objects": 1}},
        {"task": 2, "train": {"images": 2, "objects": 13}, "test": {"images": 1, "objects": 1}},
        {"task": None, "train": {"images": 0, "objects": 0}, "test": {"images": 1, "objects": 1}},
    ]
    assert result["files"]["across"]["train_test"]["other_id"]["examples"] == [[1, "x"]]
    assert [pair[:2] for pair in result["similar"]["across"]["train_test"]["examples"]] == [[2, "y"]]


@pytest.mark.parametrize(
    "words",
    [
        "problem train: 2 images of train cannot be read",
        "1 image file of train has another size than the annotations say (e.g. 2: 100x80 annotated, 80x100 in the "
        "file; the sides are exchanged",
        "warning train: 22 boxes of train are on another of the same class",
        "warning test: 1 box of test is on another of a different class",
        "warning train: Annotations of train were repaired while reading: dropped: inverted (1).",
        "note train: 1 image of train has no object (e.g. 4): training leaves it out.",
        "problem train_test: 1 image of test is in train, too, byte for byte (e.g. x is 1): the detector is tested on",
        "warning train_test: 1 image of test looks like an image of train (e.g. y like 2",
        "warning train: 2 classes have fewer than 20 objects in train (dog: 13, cat: 13).",
        "note all: 1 class is in no task (objects of cow: 1): they stay unknown",
    ],
)
def test_findings(sets: dict[str, Dataset], words: str) -> None:
    result = check_data(sets, [["dog"], ["cat"]])
    said = "\n".join(f"{one['level']} {one['set']}: {one['finding']} {one['remedy']}" for one in result["findings"])
    assert words in said
    levels = [one["level"] for one in result["findings"]]
    assert levels == sorted(levels, key=["problem", "warning", "note"].index)


def test_classes_without_objects(sets: dict[str, Dataset]) -> None:
    found = {one["finding"]: one["level"] for one in check_data(sets, [["cow"]])["findings"]}
    assert found["1 class has no object in train (cow): that cannot be learned."] == "problem"
    found = {one["finding"]: one["level"] for one in check_data(sets)["findings"]}  # Roboflow's class 0, say
    assert found["1 class has no object in train (cow): that cannot be learned."] == "warning"


def test_what_to_do_about_repairs(sets: dict[str, Dataset]) -> None:
    """Records that were brought into the form that was meant need no work; records that are lost do."""
    sets["train"].repairs.add("keypoints left out", "a.txt, line 1")
    remedies = {one["level"]: one["remedy"] for one in check_data(sets)["findings"] if "repaired" in one["finding"]}
    assert remedies["note"].startswith("Nothing, if the samples look right;")
    assert remedies["warning"].startswith("Correct them in the files;")


def test_what_cannot_be_checked(sets: dict[str, Dataset]) -> None:
    with pytest.raises(DataError, match="no data set to check"):
        check_data({})
    with pytest.raises(DataError, match="did you mean 'cat'"):
        check_data(sets, [["cta"]])
    empty = check_data({"val": Dataset.from_records((), ())})
    assert empty["findings"] == [] and empty["sets"]["val"]["image_sizes"]["smallest"] is None


def test_an_image_that_its_tag_turns_is_a_note(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = tmp_path / "turned.jpg", picture(tmp_path / "plain.jpg", 3, (80, 100))
    Image.open(plain).save(turned, exif=exif)
    dataset = Dataset.from_records(
        NAMES, (record(1, ("cat", SQUARE), path=turned), record(2, ("cat", SQUARE), path=plain))
    )
    result = check_data({"train": dataset})
    facts = result["sets"]["train"]
    assert facts["turned"] == {"images": 1, "examples": [1]}
    assert [case["image"] for case in facts["other_size"]["examples"]] == [2]
    assert "1 image file of train is turned when loaded, as the EXIF tag says (e.g. 1)" in str(result["findings"])
