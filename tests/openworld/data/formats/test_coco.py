"""COCO reader and writer: what is read, repaired, refused."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.data.formats.coco import coco_category_names, read_coco
from openworld.data.formats.coco_writer import write_coco
from openworld.data.formats.read import read_dataset
from openworld.data.options import SourceOptions
from openworld.errors import AnnotationError, ConfigError, DataError
from openworld.records import check_files

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 0, "file_name": "sub/b.png", "width": 20, "height": 20},
        {"id": 9, "file_name": "c.png", "width": 20, "height": 20},
    ],
    "categories": [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": 0, "area": 200},
        {"id": 5, "image_id": 0, "category_id": 90, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 6, "image_id": 7, "category_id": 90, "bbox": [3, 3, 6.5, 7]},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images/sub").mkdir(parents=True)
    for name, size in (("a.png", (40, 30)), ("sub/b.png", (20, 20)), ("c.png", (20, 20))):
        Image.new("RGB", size).save(tmp_path / "images" / name)
    return tmp_path


def write(folder: Path, content: Any, encoding: str = "utf-8") -> Path:
    path = folder / "set.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding=encoding)
    return path


def changed(path: str, value: Any) -> dict[str, Any]:
    """CONTENT with one place changed; ``...`` removes it."""
    content = copy.deepcopy(CONTENT)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = content
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def test_reads_boxes_categories_and_crowds(folder: Path) -> None:
    dataset = read_coco(write(folder, CONTENT))
    assert dataset.categories == ("dog", "cat")
    first, second, third = dataset
    assert (first.image_id, first.width, first.height) == (7, 40, 30)
    assert first.path == folder / "images/a.png"
    np.testing.assert_array_equal(first.boxes, np.array([[1, 2, 11, 22], [3, 3, 9.5, 10]], dtype=np.float32))
    assert first.categories.tolist() == [1, 0] and first.annotation_ids == (0, 6)
    assert first.ignore.tolist() == [False, False]
    assert second.ignore.tolist() == [True] and second.crowd.tolist() == [True]
    assert len(third) == 0 and third.boxes.shape == (0, 4)
    assert dataset.as_json() == {"images": 3, "annotations": 3, "repairs": {}, "examples": []}
    assert dataset.find(0).image_id == 0 and np.shares_memory(dataset.find(0).boxes, second.boxes)


def test_byte_order_mark_and_numbers_as_text(folder: Path) -> None:
    content = changed("annotations.0.bbox", ["1", "2.0", "10", "2e1"])
    content["images"][0]["width"] = "40"
    dataset = read_coco(write(folder, content, encoding="utf-8-sig"))
    assert dataset[0].boxes[0].tolist() == [1, 2, 11, 22] and dataset[0].width == 40


def test_no_annotations_is_a_data_set(folder: Path) -> None:
    dataset = read_coco(write(folder, {**CONTENT, "annotations": [], "categories": []}))
    assert dataset.num_annotations == 0 and dataset.categories == ()


def test_categories_of_one_name(folder: Path) -> None:
    dataset = read_coco(write(folder, changed("categories.0.name", " cat ")))
    assert dataset.categories == ("cat",)
    assert dataset.repairs.counts["categories of one name merged"] == 1
    assert dataset[0].categories.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "read"),
    [(0, "0"), (-7, "-7"), (1.5, "1.5"), (2.0, "2.0"), (True, "true"), (False, "false"), (10**20, "1" + 20 * "0")],
)
def test_category_name_that_is_not_a_text(folder: Path, name: Any, read: str) -> None:
    path = write(folder, changed("categories.1.name", name))
    dataset = read_coco(path)
    assert dataset.categories == ("dog", read) and coco_category_names(path) == {90: "dog", 3: read}
    assert dataset.repairs.counts == {"category name that is not a text": 1}
    assert dataset.repairs.examples == [f"category name that is not a text: {path}, categories[1] is called {read}"]


def test_category_names_that_differ_in_type_only(folder: Path) -> None:
    content = changed("categories.0.name", 0)
    content["categories"][1]["name"] = "0"
    dataset = read_coco(write(folder, content))
    assert dataset.categories == ("0",) and dataset.repairs.counts["categories of one name merged"] == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_of_json(folder: Path, encoding: str) -> None:
    """As the > of PowerShell writes them."""
    assert read_coco(write(folder, changed("categories.0.name", "chat\u00e9"), encoding)).categories[0] == "chat\u00e9"


@pytest.mark.parametrize(
    ("path", "value", "kind", "left"),
    [
        ("annotations.0.image_id", 99, "dropped: image_id that nothing has", 2),
        ("annotations.0.category_id", 99, "dropped: category_id that nothing has", 2),
        ("annotations.0.category_id", "3", "category_id of another type", 3),
        ("annotations.1.id", 0, "annotation id given twice", 3),
        ("images.0.width", ..., "size read from the image file", 3),
        ("images.0.height", 0, "size read from the image file", 3),
        ("images.2.file_name", "a.png", "images with one file_name", 3),
        ("annotations.0.bbox", [1, 2, float("nan"), 3], "dropped: coordinate not finite", 2),
        ("annotations.0.bbox", [1, 2, float("inf"), 3], "dropped: coordinate not finite", 2),
        ("annotations.0.bbox", [1, 2, 10**400, 3], "dropped: coordinate not finite", 2),
        ("annotations.0.bbox", [1, 2, -3, 3], "dropped: inverted", 2),
        ("annotations.0.bbox", [30, 2, 30, 3], "clipped to the image", 3),
        ("annotations.0.bbox", ..., "dropped: no bbox, and no polygon or mask to take it from", 2),
        ("annotations.0.bbox", [], "dropped: no bbox, and no polygon or mask to take it from", 2),
    ],
)
def test_repairs_are_counted(folder: Path, path: str, value: Any, kind: str, left: int) -> None:
    dataset = read_coco(write(folder, changed(path, value)))
    assert dict(dataset.repairs.counts) == {kind: 1}
    assert dataset.num_annotations == left


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("images", ..., "no list 'images'"),
        ("annotations", {}, "no list 'annotations'"),
        ("images.0", 3, "images[0]: is a int"),
        ("images.0.id", ..., "images[0]: has no 'id'"),
        ("images.0.id", [1], "id is [1]"),
        ("images.1.id", 7, "image id 7 is given twice"),
        ("images.0.file_name", "", "is not a file name"),
        ("images.0.file_name", "../a.png", "leaves the folder"),
        ("images.0.file_name", "sub/../../a.png", "leaves the folder"),
        ("images.0.file_name", "/etc/passwd", "leaves the folder"),
        ("images.0.file_name", "C:\\a.png", "leaves the folder"),
        ("images.0.file_name", "..\\a.png", "leaves the folder"),
        ("images.0.width", "wide", "width holds 'wide'"),
        ("categories.0.name", "", "has no 'name'|name is ''"),
        ("categories.0.name", None, "categories[0]: has no 'name'"),
        ("categories.0.name", float("nan"), "name is nan"),
        ("categories.0.name", ["dog"], "name is ['dog']"),
        ("annotations.2.bbox", {"x": 1, "y": 2}, "annotation 6: bbox is {'x': 1, 'y': 2}"),
        ("categories.1.id", 90, "category id 90 is given twice"),
        ("annotations.2.bbox", [1, 2, 3], "annotation 6: bbox is [1, 2, 3]"),
        ("annotations.2.bbox", [1, 2, 3, None], "bbox holds None"),
        ("annotations.2.bbox", [1, 2, 3, "x"], "bbox holds 'x'"),
        ("annotations.2.image_id", ..., "annotation 6: has no 'image_id'"),
        ("annotations.2.category_id", None, "annotation 6: has no 'category_id'"),
    ],
)
def test_errors_name_file_record_and_remedy(folder: Path, path: str, value: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_coco(write(folder, changed(path, value)))
    message = str(caught.value)
    assert any(word in message for word in words.split("|"))
    assert "set.json" in message and "What to do:" in message


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '{"images": ' + "9" * 5000 + "}", "[" * 100_000])
def test_not_a_coco_file(folder: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"set\.json"):
        read_coco(write(folder, text))


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "set.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_coco(folder / "set.json")


def test_mutated_files_load_or_raise_a_data_error(folder: Path) -> None:
    rng = random.Random(0)
    places = [
        f"{key}.{number}.{field}" for key in CONTENT for number, entry in enumerate(CONTENT[key]) for field in entry
    ]
    values = [..., None, "", "7", -1, 0, 1e308, float("nan"), float("inf"), [], {}, True, [1, 2], "\0", 10**30]
    for _ in range(400):
        try:
            dataset = read_coco(write(folder, changed(rng.choice(places), rng.choice(values))))
        except DataError:
            continue
        assert all(np.isfinite(record.boxes).all() for record in dataset)


def test_written_file_reads_back(folder: Path) -> None:
    dataset = read_coco(write(folder, CONTENT))
    write_coco(folder / "again.json", dataset, folder / "images")
    again = read_coco(folder / "again.json")
    assert again.categories == dataset.categories and not again.repairs.counts
    for old, new in zip(dataset, again, strict=True):
        assert (old.image_id, old.path, old.annotation_ids) == (new.image_id, new.path, new.annotation_ids)
        np.testing.assert_array_equal(old.boxes, new.boxes)
        np.testing.assert_array_equal(old.categories, new.categories)
        np.testing.assert_array_equal(old.ignore, new.ignore)
        np.testing.assert_array_equal(old.crowd, new.crowd)


def test_read_dataset_dispatches(folder: Path) -> None:
    path = str(write(folder, CONTENT))
    assert len(read_dataset(SourceOptions(annotations=path))) == 3
    with pytest.raises(DataError, match="image_set='train' chooses no image"):
        read_dataset(SourceOptions(annotations=path, image_set="train"))
    with pytest.raises(DataError, match="no such file"):
        read_dataset(SourceOptions(annotations=path + "x"))
    with pytest.raises(DataError, match=r"is not a COCO \.json file, VOC folder or YOLO data\.yaml") as caught:
        read_dataset(SourceOptions(annotations=str(folder / "images")))
    assert "set `format` to one of: coco, voc, yolo" in str(caught.value)
    with pytest.raises(ConfigError, match="format is 'cocoa'"):
        SourceOptions(annotations=path, format="cocoa")
    with pytest.raises(DataError, match="no annotations given"):
        read_dataset(SourceOptions())


@pytest.mark.parametrize("place", ["train/_annotations.coco.json", "annotations/instances_default.json", "result.json"])
def test_a_folder_with_a_coco_file_names_it(tmp_path: Path, place: str) -> None:
    """What Roboflow, CVAT and Label Studio leave; a copy of macOS beside it is none."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    for name in (place.rpartition("/")[2], "._a.json"):
        (tmp_path / place).with_name(name).write_text("{}")
    with pytest.raises(DataError) as caught:
        read_dataset(SourceOptions(annotations=str(tmp_path)))
    assert caught.value.remedy == f"name the file of the annotations, such as {tmp_path / place}"


def test_a_folder_with_several_coco_files_names_that_of_the_set(tmp_path: Path) -> None:
    for name in ("test", "train", "valid"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "_annotations.coco.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        read_dataset(SourceOptions(annotations=str(tmp_path)), "train")
    assert caught.value.remedy is not None and caught.value.remedy.endswith("/train/_annotations.coco.json")


@pytest.mark.parametrize(
    ("content", "tool", "remedy"),
    [
        ({"version": "5.0", "flags": {}, "shapes": [], "imagePath": "a.jpg", "imageData": None}, "labelme", "as COCO"),
        ({"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": [], "file_attributes": {}}}, "VIA", "as COCO"),
        ({"_via_settings": {}, "_via_img_metadata": {}, "_via_attributes": {}}, "VIA", "as COCO"),
        ([{"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {}}]}], "CreateML", "as COCO"),
        ([{"id": 1, "annotations": [], "data": {"image": "/data/upload/a.jpg"}}], "Label Studio", "as COCO"),
        (
            {"images": [{"id": 1}], "categories": [], "annotations": [{"image_id": 1, "segments_info": []}]},
            "panoptic",
            "instances",
        ),
        (
            {"images": [{"id": 1, "coco_url": "http://a/train2017/1.jpg"}], "categories": [], "annotations": []},
            "LVIS",
            "coco_url",
        ),
    ],
)
def test_a_file_of_another_tool_is_named(tmp_path: Path, content: object, tool: str, remedy: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=tool) as caught:
        read_dataset(SourceOptions(annotations=str(path)))
    assert caught.value.where == str(path) and remedy in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["export.zip", "export.TAR", "a.tar.gz", "b.tgz", "c.7z"])
def test_an_archive_is_to_be_unpacked(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError) as caught:
        read_dataset(SourceOptions(annotations=str(tmp_path / name)))
    assert str(caught.value.remedy).startswith("unpack it")


def test_scoring_needs_no_images(tmp_path: Path) -> None:
    content = changed("images.0.width", ...)
    content["images"][2]["height"] = 0
    path = write(tmp_path, content)
    dataset = read_dataset(SourceOptions(annotations=str(path)))
    assert [(record.width, record.height) for record in dataset] == [(11, 22), (20, 20), (1, 1)]
    assert dataset[0].boxes.tolist() == [[1, 2, 11, 22], [3, 3, 9.5, 10]]
    assert dict(dataset.repairs.counts) == {"size taken from the boxes": 2}
    with pytest.raises(DataError, match="3 of 3 images do not exist"):
        check_files(dataset, path)


def test_category_names(tmp_path: Path) -> None:
    path = write(tmp_path, CONTENT)
    assert coco_category_names(path) == {90: "dog", 3: "cat"}
    assert coco_category_names(write(tmp_path, changed("categories.0.id", "90"))) == {90: "dog", 3: "cat"}
    with pytest.raises(DataError, match="category id 'x' of 'dog' is not a whole number"):
        coco_category_names(write(tmp_path, changed("categories.0.id", "x")))
    with pytest.raises(DataError, match="given twice"):
        coco_category_names(write(tmp_path, changed("categories.0.id", "3")))


def test_missing_images_are_named(folder: Path) -> None:
    path = write(folder, changed("images.0.file_name", "missing.png"))
    with pytest.raises(DataError, match=r"set\.json: 1 of 3 images do not exist: .*missing\.png") as caught:
        check_files(read_coco(path), path)
    assert "What to do:" in str(caught.value)


def test_one_set_of_a_file_that_holds_several(folder: Path) -> None:
    content = copy.deepcopy(CONTENT)
    for entry, fold in zip(content["images"], ("train", "test", "train"), strict=True):
        entry["fold"] = fold
    path = str(write(folder, content))
    train, test = (
        read_dataset(SourceOptions(annotations=path, image_set=f"fold={fold}")) for fold in ("train", "test")
    )
    assert [record.image_id for record in train] == [7, 9] and train.num_annotations == 2
    assert [record.image_id for record in test] == [0] and test.num_annotations == 1
    assert not train.repairs.counts and train.categories == test.categories
    with pytest.raises(DataError, match="'fold' is test or train"):
        read_dataset(SourceOptions(annotations=path, image_set="fold=val"))
