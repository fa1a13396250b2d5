"""Labels that count their classes from 1: objects get wrong names, and no line is malformed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from openworld.data.formats.class_numbers import FROM_ONE
from openworld.data.formats.yolo import read_yolo


@pytest.mark.parametrize(
    ("classes", "names", "noted", "left"),
    [
        ([1, 2, 2, 1], 2, True, 2),
        ([2, 3], 3, True, 1),  # the first class is not there, but a third one is not either
        ([1], 1, True, 0),
        ([0, 1, 2], 2, False, 2),
        ([1, 1], 2, False, 2),
        ([1, 3], 2, False, 1),
        ([], 2, False, 0),
    ],
)
def test_class_numbers_from_one(tmp_path: Path, classes: list[int], names: int, noted: bool, left: int) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "classes.txt").write_text("\n".join("abcdef"[:names]))
    for number, category in enumerate(classes or [None]):
        Image.new("RGB", (40, 30)).save(tmp_path / f"images/{number}.png")
        line = "" if category is None else f"{category} 0.5 0.5 0.2 0.2\n"
        (tmp_path / f"labels/{number}.txt").write_text(line)
    dataset = read_yolo(tmp_path)
    assert dataset.num_annotations == left
    assert (FROM_ONE in dataset.repairs.harmful) is noted
    if noted:
        (said,) = dataset.repairs.cases[FROM_ONE]
        assert str(tmp_path) in said and f"1 to {names} for {names} names" in said and "subtract 1" in said
