"""Annotation files with defects: each is an error that names file, record, field and remedy, or a counted repair."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.data.formats.coco import read_coco
from openworld.data.formats.voc import read_voc
from openworld.errors import AnnotationError, DataError
from openworld.records import Dataset, check_files

CONTENT: dict[str, Any] = {
    "images": [
        {"id": 0, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 1, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 2, 10, 20]},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 3, 6, 7]},
    ],
}


def read(folder: Path, **changes: Any) -> Dataset:
    """Read CONTENT after changes such as ``annotations_1_bbox=…``; ``...`` removes."""
    content = copy.deepcopy(CONTENT)
    for name, value in changes.items():
        key, number, field = name.split("_", 2)
        if value is ...:
            del content[key][int(number)][field]
        else:
            content[key][int(number)][field] = value
    (folder / "set.json").write_text(json.dumps(content))
    return read_coco(folder / "set.json")


def test_id_zero_is_an_id(tmp_path: Path) -> None:
    dataset = read(tmp_path)
    assert dataset.num_annotations == 2 and not dataset.repairs.counts
    record = dataset.find(0)
    assert record.annotation_ids == (0,) and dataset.categories[record.categories[0]] == "cat"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images_1_id": 0}, ["set.json, images[1]", "image id 0", "unique"]),
        ({"categories_1_id": 0}, ["set.json, categories[1]", "category id 0", "unique"]),
        ({"images_1_id": ...}, ["images[1]", "'id'"]),
        ({"images_1_file_name": ...}, ["images[1]", "'file_name'"]),
        ({"categories_0_name": ...}, ["categories[0]", "'name'"]),
        ({"annotations_1_image_id": ...}, ["annotation 1", "'image_id'"]),
        ({"annotations_1_category_id": ...}, ["annotation 1", "'category_id'"]),
        ({"annotations_1_bbox": [1, 2, "three", 4]}, ["annotation 1", "bbox", "'three'"]),
        ({"annotations_1_bbox": {"x": 1}}, ["annotation 1", "bbox", "[x, y, width, height]"]),
        ({"annotations_1_iscrowd": float("nan")}, ["annotation 1", "iscrowd"]),
        ({"annotations_1_id": float("nan")}, ["annotations[1]", "id is nan"]),
        ({"annotations_1_image_id": [0]}, ["annotation 1", "image_id is [0]"]),
        ({"images_0_width": "forty"}, ["image 0", "width", "'forty'"]),
        ({"images_0_id": "\ud800"}, ["images[0]", "id is '\\ud800'"]),
        ({"categories_0_name": "\ud800"}, ["categories[0]", "'\\ud800'"]),
    ],
)
def test_refused_with_record_field_and_remedy(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, **changes)
    message = str(caught.value)
    assert all(word in message for word in [*words, "set.json", "What to do:"]), message


@pytest.mark.parametrize(
    ("changes", "kind", "left"),
    [
        ({"annotations_1_id": 0}, "annotation id given twice", 2),
        ({"annotations_1_image_id": 77}, "dropped: image_id that nothing has", 1),
        ({"annotations_1_category_id": -1}, "dropped: category_id that nothing has", 1),
        ({"annotations_1_category_id": 10**400}, "dropped: category_id that nothing has", 1),
        ({"annotations_1_image_id": "1"}, "image_id of another type", 2),
        ({"annotations_1_bbox": [float("nan")] * 4}, "dropped: coordinate not finite", 1),
        ({"annotations_1_bbox": [0, 0, 10**400, 5]}, "dropped: coordinate not finite", 1),
        ({"annotations_1_bbox": [0, 0, 1e308, 5]}, "dropped: coordinate beyond 1e+06", 1),
        ({"annotations_1_bbox": [1, 0, 5e-324, 5]}, "dropped: without area", 1),
        ({"annotations_1_bbox": ...}, "dropped: no bbox, and no polygon or mask to take it from", 1),
        ({"images_1_width": 0}, "size taken from the boxes", 2),
        ({"images_1_width": float("nan")}, "size taken from the boxes", 2),
        ({"images_1_width": 10**400}, "size taken from the boxes", 2),
    ],
)
def test_repaired_and_counted(tmp_path: Path, changes: dict[str, Any], kind: str, left: int) -> None:
    dataset = read(tmp_path, **changes)
    assert dict(dataset.repairs.counts) == {kind: 1} and dataset.num_annotations == left
    assert "set.json" in dataset.repairs.examples[0]


def test_numbers_as_text_are_numbers(tmp_path: Path) -> None:
    dataset = read(tmp_path, annotations_0_bbox=["1", "2", " 10 ", "2e1"], images_0_width="40")
    assert dataset[0].boxes.tolist() == [[1, 2, 11, 22]] and not dataset.repairs.counts


def test_key_given_twice_counts_as_last_given(tmp_path: Path) -> None:
    text = json.dumps(CONTENT).replace('"bbox": [1, 2', '"bbox": "no box", "bbox": [1, 2')
    (tmp_path / "set.json").write_text(text)
    assert read_coco(tmp_path / "set.json").num_annotations == 2


def test_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps(CONTENT), encoding="utf-8-sig")
    assert read_coco(tmp_path / "set.json").num_annotations == 2
    folder = voc(tmp_path, '<?xml version="1.0"?>' + OBJECT)
    (folder / "list.txt").write_text("a\n", encoding="utf-8-sig")
    content = (folder / "Annotations/a.xml").read_text()
    (folder / "Annotations/a.xml").write_text(content, encoding="utf-8-sig")
    assert read_voc(folder, image_set=str(folder / "list.txt")).num_annotations == 1


OUTSIDE = [
    "/etc/passwd", "../a.png", "sub/../../a.png", "..", "a/..", "C:\\a.png", "C:a.png", "c:/a.png", "\\a.png",
    "\\\\server\\share\\a.png", "//server/share/a.png", "..\\a.png", "sub\\..\\..\\a.png", "sub/..\\a.png",
]  # fmt: skip
NO_NAME = ["", "a\0.png", "\ud800.png"]


@pytest.mark.parametrize("name", OUTSIDE + NO_NAME)
def test_file_name_that_leaves_its_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, images_0_file_name=name)
    words = "leaves the folder" if name in OUTSIDE else "not a file name|has no"
    assert any(word in str(caught.value) for word in words.split("|")) and "images[0]" in str(caught.value)
    if name and not set(name) & set("\0\ud800"):
        folder = voc(tmp_path / "voc", OBJECT)
        (folder / "list.txt").write_text(name + "\n")
        with pytest.raises(AnnotationError, match=r"list\.txt.*leaves the folder"):
            read_voc(folder, image_set=str(folder / "list.txt"))


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".png", "missing.png", "sub", "~/a.png", "%2e%2e/a.png", "ab:c.png", "日本.png"]
)
def test_file_that_does_not_exist(tmp_path: Path, name: str) -> None:
    (tmp_path / "images/sub").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "images/b.png")
    assert len(read(tmp_path, images_0_file_name=name)) == 2
    with pytest.raises(DataError, match="1 of 2 images do not exist"):
        check_files(read(tmp_path, images_0_file_name=name), tmp_path / "set.json")


def test_symbolic_link_in_the_folder_of_the_images_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").mkdir()
    for name in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"elsewhere/{name}.png")
        (tmp_path / f"images/{name}.png").symlink_to(tmp_path / f"elsewhere/{name}.png")
    read(tmp_path)
    assert len(check_files(read_coco(tmp_path / "set.json"), tmp_path)) == 2


OBJECT = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>cat</name><difficult>0</difficult>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


def voc(root: Path, content: str | bytes) -> Path:
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    (root / "Annotations/a.xml").write_bytes(data)
    return root


def bomb(levels: int = 20) -> str:
    """Ten times ten times … one word: gigabytes, once the entities are put in."""
    entities = "".join(f'<!ENTITY e{n} "{10 * reference(n - 1)}">' for n in range(1, levels))
    kind = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e0 "boom">{entities}]>'
    return kind + OBJECT.replace("cat", reference(levels - 1))


def reference(number: int) -> str:
    return f"&e{number};"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_bomb_is_refused_before_it_is_parsed(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(AnnotationError, match=r"a\.xml: cannot be parsed \(it declares entities"):
        read_voc(voc(tmp_path, bomb().encode(encoding)))


def test_external_entity_is_refused(tmp_path: Path) -> None:
    external = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' + OBJECT.replace("cat", "&e;")
    with pytest.raises(AnnotationError, match="declares entities"):
        read_voc(voc(tmp_path, external))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be parsed"),
        ("\0" * 100, "cannot be parsed"),
        (OBJECT[:-30], "cannot be parsed"),
        (OBJECT.replace("cat", "&e;"), "cannot be parsed"),
        ('<?xml version="1.0" encoding="no-such"?>' + OBJECT, "cannot be parsed"),
        (OBJECT.replace("<name>cat</name>", ""), "object 0: has no <name>"),
        (OBJECT.replace("bndbox", "box"), "object 0: has no <bndbox>"),
        (OBJECT.replace("<xmin>1</xmin>", ""), "object 0: <xmin> holds None"),
        (OBJECT.replace(">30</xmax>", ">1,5</xmax>"), "object 0: <xmax> holds '1,5'"),
        (OBJECT.encode().replace(b"cat", b"\xff\xfe"), "cannot be parsed"),
    ],
)
def test_bad_xml_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_voc(voc(tmp_path, content))
    assert words in str(caught.value) and "a.xml" in str(caught.value) and "What to do:" in str(caught.value)


def test_deep_xml_is_only_deep(tmp_path: Path) -> None:
    deep = "<x>" * 200_000 + "</x>" * 200_000
    dataset = read_voc(voc(tmp_path, OBJECT.replace("</annotation>", deep + "</annotation>")))
    assert dataset.num_annotations == 1


def test_list_that_is_no_text_and_file_that_is_a_folder(tmp_path: Path) -> None:
    folder = voc(tmp_path, OBJECT)
    (folder / "list.txt").write_bytes(b"\x81\xfea")
    with pytest.raises(AnnotationError, match=r"list\.txt: cannot be read as text"):
        read_voc(folder, image_set=str(folder / "list.txt"))
    (folder / "Annotations/b.xml").mkdir()
    (folder / "list.txt").write_text("a\nb\n")
    with pytest.raises(AnnotationError, match=r"1 of 2 annotation files do not exist: b\.xml"):
        read_voc(folder, image_set=str(folder / "list.txt"))
    assert list(read_voc(folder).image_ids) == ["a"]


def test_names_with_a_folder_keep_it(tmp_path: Path) -> None:
    for part in ("one", "two"):
        (tmp_path / "Annotations" / part).mkdir(parents=True)
        (tmp_path / "Annotations" / part / "7.xml").write_text(OBJECT)
        (tmp_path / "JPEGImages" / part).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages" / part / "7.jpg")
    (tmp_path / "list.txt").write_text("one/7\ntwo/7\n")
    dataset = read_voc(tmp_path, image_set=str(tmp_path / "list.txt"))
    assert [record.image_id for record in dataset] == ["one/7", "two/7"]
    assert dataset.find("two/7").path == tmp_path / "JPEGImages/two/7.jpg"
    assert dataset[1].annotation_ids == ("two/7/0",)
    np.testing.assert_array_equal(dataset[0].boxes, [[0, 1, 30, 20]])
