"""The table of formats: a new format is a module and a line, and everything that knows formats knows it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from openworld.cli import main
from openworld.data.boxes import clean_boxes
from openworld.data.formats import FORMATS, Format, Place, Reader, annotations_help, image_set_help
from openworld.data.formats.read import read_dataset
from openworld.data.options import SourceOptions
from openworld.errors import ConfigError, DataError
from openworld.records import Dataset, Record
from openworld.repairs import Repairs
from openworld.run.sources import open_split
from openworld.runtime.images import image_size


def read_csv(place: Place) -> Dataset:
    """Lines ``file,x1,y1,x2,y2,class[,set]``, images beside the file."""
    repairs, names, records = Repairs(), list[str](), list[Record]()
    with open(place.annotations, newline="") as stream:
        rows = [row for row in csv.reader(stream) if place.image_set in (None, row[6])]
    for file in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == file]
        path = (place.images or place.annotations.parent) / file
        width, height = image_size(path)
        corners = np.array([row[1:5] for row in own], dtype=np.float64)
        boxes, kept = clean_boxes(corners, width, height, repairs, lambda number: f"{place.annotations}, {number}")
        names += [row[5] for row in own if row[5] not in names]
        categories = np.array([names.index(own[number][5]) for number in kept], dtype=np.int64)
        records.append(Record(file, path, width, height, boxes, categories, np.zeros(len(boxes), dtype=np.bool_)))
    return Dataset.from_records(names, records, repairs)


@pytest.fixture
def with_csv(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the one file and the one line of a new format add."""
    module = ModuleType("csv_format")
    module.READER = Reader(  # type: ignore[attr-defined]
        detects=lambda path: path.suffix == ".csv",
        read=read_csv,
        set_for_role=lambda place, role: role,
    )
    monkeypatch.setitem(sys.modules, "csv_format", module)
    monkeypatch.setitem(FORMATS, "csv", Format("CSV file", "train, val or test", "csv_format"))


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / name)
    lines = ["a.png,1,2,11,12,cat,train", "a.png,5,5,60,25,dog,train", "b.png,0,0,9,9,lorry,test"]
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return tmp_path / "boxes.csv"


@pytest.mark.usefixtures("with_csv")
def test_a_new_format_is_read_by_its_looks_and_by_its_name(annotations: Path) -> None:
    for form in ("auto", "csv"):
        train = read_dataset(SourceOptions(annotations=str(annotations), format=form), "train")
        assert train.categories == ("cat", "dog") and list(train.image_ids) == ["a.png"]
        assert train[0].boxes.tolist() == [[1, 2, 11, 12], [5, 5, 40, 25]]
        assert train.repairs.counts == {"clipped to the image": 1}
    whole = read_dataset(SourceOptions(annotations=str(annotations)))
    assert list(whole.image_ids) == ["a.png", "b.png"]


@pytest.mark.usefixtures("with_csv")
def test_a_new_format_is_checked_on_the_command_line_and_scored_with_the_names_of_a_schedule(
    annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--train", str(annotations), "--test", str(annotations)]
    main(["data", "check", *named, "--output", str(tmp_path / "out")])
    assert (tmp_path / "out/check.json").is_file()
    assert "lorry" in capsys.readouterr().out
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text("tasks: [[cat], [truck]]\nrename: {lorry: truck}")
    place = SourceOptions(annotations=str(annotations))
    sets, tasks = open_split({"train": place, "test": place}, schedule=str(schedule), config=None)
    assert sets["test"].categories == ("truck",) and tasks == (("cat",), ("truck",))


@pytest.mark.usefixtures("with_csv")
def test_messages_name_a_new_format(tmp_path: Path) -> None:
    assert annotations_help() == "COCO .json file, VOC folder, YOLO data.yaml or CSV file"
    assert image_set_help().endswith("CSV: train, val or test")
    with pytest.raises(DataError, match=r"is not a COCO .* or CSV file\n.*coco, voc, yolo, csv$"):
        read_dataset(SourceOptions(annotations=str(tmp_path)))
    with pytest.raises(ConfigError, match="coco, voc, yolo, csv"):
        SourceOptions(format="tsv")


def test_every_format_of_the_table_has_a_reader() -> None:
    assert list(FORMATS) == ["coco", "voc", "yolo"]
    assert all(isinstance(form.reader, Reader) for form in FORMATS.values())
