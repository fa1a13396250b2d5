"""VOC: what stands in one XML file, in the words and encodings of different tools."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.formats.voc import read_voc
from openworld.data.options import SourceOptions
from openworld.errors import AnnotationError, DataError
from openworld.records import Dataset

BOX = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
OBJECT = f"<object><name>red</name>{BOX}</object>"
WHOLE = f"<annotation><size><width>40</width><height>30</height></size>{OBJECT}</annotation>"
LATIN = WHOLE.replace("red", "foncé").encode("latin-1")


def read(root: Path, content: str | bytes) -> Dataset:
    (root / "Annotations").mkdir(exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    (root / "Annotations/a.xml").write_bytes(data)
    return read_voc(root)


@pytest.mark.parametrize(
    ("text", "difficult", "counted"),
    [
        ("0", False, 0), ("1", True, 0), (" 1\n", True, 0), ("0.0", False, 0), ("1.0", True, 0), ("2", True, 0),
        ("True", True, 0), ("FALSE", False, 0), ("yes", True, 0), ("No", False, 0), ("n", False, 0), ("T", True, 0),
        ("", False, 1), ("  ", False, 1), ("Unspecified", False, 1), ("perhaps", False, 1), ("None", False, 1),
    ],
)  # fmt: skip
def test_difficult(tmp_path: Path, text: str, difficult: bool, counted: int) -> None:
    dataset = read(tmp_path, WHOLE.replace("<bndbox>", f"<difficult>{text}</difficult><bndbox>"))
    assert dataset.ignore.tolist() == [difficult] and dataset.boxes.tolist() == [[10, 5, 30, 20]]
    assert sum(dataset.repairs.counts.values()) == counted
    assert all("a.xml, object 0" in example and repr(text) in example for example in dataset.repairs.examples)


POINTS = [(11, 9), (30, 6), (20, 20)]


@pytest.mark.parametrize(
    "polygon",
    [
        # Roboflow, LabelMe, and a box in the place of a polygon.
        "".join(f"<x{n}>{x}</x{n}><y{n}>{y}</y{n}>" for n, (x, y) in enumerate(POINTS, start=1)),
        "<username>me</username>" + "".join(f"<pt><x>{x}</x><y>\n {y}.0\n</y></pt>" for x, y in POINTS),
        "<x1><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>20</ymax></x1>",
    ],
)
def test_polygon_without_a_box(tmp_path: Path, polygon: str) -> None:
    for empty in ("", "<bndbox/>"):
        dataset = read(tmp_path, WHOLE.replace(BOX, f"{empty}<polygon>{polygon}</polygon>"))
        assert dataset.boxes.tolist() == [[10, 5, 30, 20]]
        assert dataset.repairs.counts == {"polygon turned into its box": 1}
    beside = read(tmp_path, WHOLE.replace(BOX, f"<polygon><x1>1</x1><y1>1</y1></polygon>{BOX}"))
    assert beside.boxes.tolist() == [[10, 5, 30, 20]] and not beside.repairs.counts


def test_corners_at_pixel_0(tmp_path: Path) -> None:
    """Label Studio, FiftyOne and PaddleLabel count from 0; the message has the file's numbers, not those behind it."""
    dataset = read(tmp_path, WHOLE.replace(">11<", ">0<"))
    assert dataset.boxes.tolist() == [[0, 5, 30, 20]]
    assert dataset.repairs.counts == {"corner at pixel 0, though VOC counts from 1": 1}
    assert dataset.repairs.examples[0].endswith(": a.xml, object 0")
    beyond = read(tmp_path, WHOLE.replace(">11<", ">0<").replace(">30<", ">50<"))
    assert beyond.boxes.tolist() == [[0, 5, 40, 20]] and beyond.repairs.counts["clipped to the image"] == 1


def test_files_of_cvat_and_single_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "annotations.xml"
    file.write_text("<annotations><version>1.1</version><image id='0' name='a.jpg'/></annotations>")
    with pytest.raises(AnnotationError, match="CVAT") as caught:
        read_voc(tmp_path)
    assert caught.value.where == str(file)
    with pytest.raises(DataError) as single:
        read_dataset(SourceOptions(annotations=str(file)))
    assert single.value.remedy == "name the folder of the .xml files"


def test_a_file_without_a_size_says_so(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "JPEGImages/a.png")
    dataset = read(tmp_path, f"<annotation>{OBJECT}</annotation>")
    assert dataset.sizes.tolist() == [[40, 30]]
    assert dataset.repairs.examples == ["size read from the image file: a.xml declares no size"]


def test_deleted_objects_of_labelme(tmp_path: Path) -> None:
    deleted = OBJECT.replace("<name>red", "<deleted>1</deleted><name>blue")
    kept = OBJECT.replace("<name>", "<deleted>0</deleted><name>")
    dataset = read(tmp_path, WHOLE.replace(OBJECT, deleted + kept))
    assert dataset.categories == ("red",) and dataset.annotation_ids == ("a/1",)
    assert dataset.repairs.counts == {"object marked as deleted left out": 1}


@pytest.mark.parametrize(
    "content",
    [
        WHOLE.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
        WHOLE.replace("<annotation>", '<v:annotation xmlns:v="u">').replace("</annotation>", "</v:annotation>").replace(
            "object>", "v:object>"
        ),
        WHOLE.replace("annotation>", "Annotation>").replace("object>", "Object>").replace("xmin>", "Xmin>"),
        WHOLE.replace("<object>", "<objects><object>").replace("</object>", "</object></objects>"),
        WHOLE.replace(">11<", ">\n\t11 \n<").replace(">red<", ">\n red\n<"),
        WHOLE.replace("<object>", "<path>C:\\a\\b.jpg</path><source><database>Unknown</database></source><object>"),
    ],
)  # fmt: skip
def test_other_spellings_of_the_tags(tmp_path: Path, content: str) -> None:
    dataset = read(tmp_path, content)
    assert dataset.boxes.tolist() == [[10, 5, 30, 20]] and dataset.categories == ("red",)
    assert dataset.sizes.tolist() == [[40, 30]] and not dataset.repairs.counts


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        (None, "utf-8", "naïve 红色"),
        (None, "utf-8-sig", "naïve 红色"),
        ("UTF-8", "utf-8-sig", "红色"),
        ("utf8", "utf-8", "红色"),  # what Python's ElementTree writes for encoding="utf8"
        ("utf-16", "utf-8", "红色"),  # what .NET declares for text, whatever the file is saved as
        ("unicode", "utf-8", "红色"),
        ("utf-16", "utf-16", "红色"),
        (None, "utf-16-le", "red é"),
        ("UTF-16BE", "utf-16-be", "红色"),
        ("utf-32", "utf-32", "红色"),
        ("ISO-8859-1", "latin-1", "rouge foncé"),
        ("latin1", "latin-1", "rouge foncé"),
        ("windows-1252", "cp1252", "„rouge“"),
        ("windows-1251", "cp1251", "красный"),
        ("koi8-r", "koi8-r", "красный"),
        ("GBK", "gbk", "红色"),
        ("gb2312", "gbk", "镕色"),  # is not in GB 2312, and tools declare that for it
        ("GB18030", "gb18030", "红色 🚗"),
        ("Big5", "big5", "紅色"),
        ("Shift_JIS", "cp932", "赤①"),
        ("EUC-JP", "euc_jp", "赤"),
        ("euc-kr", "cp949", "빨강"),
    ],
)
def test_encodings(tmp_path: Path, declared: str | None, encoding: str, name: str) -> None:
    first = "" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>\n'
    dataset = read(tmp_path, (first + WHOLE.replace("red", name)).encode(encoding))
    assert dataset.categories == (name,) and dataset.boxes.tolist() == [[10, 5, 30, 20]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (WHOLE.replace("red", "红色").encode("gbk"), "declares no encoding and is not utf-8: byte 0xba in line 1"),
        (b"\n\n" + LATIN, "declares no encoding and is not utf-8: byte 0xe9 in line 3"),
        (b'<?xml version="1.0" encoding="UTF-8"?>' + LATIN, "declares UTF-8 and is not utf-8: byte 0xe9"),
        (b'<?xml version="1.0" encoding="gbk"?>' + WHOLE.encode().replace(b"red", b"\xff\xff"), "declares gbk"),
        (b'<?xml version="1.0" encoding="utf-7"?>' + WHOLE.encode(), "cannot be parsed"),
        (WHOLE.replace("<size>", "\n<filename>a & b.jpg</filename><size>").encode(), "line 2: '&' stands alone in"),
        (WHOLE.replace("red", "a&b").encode(), "line 1: '&' stands alone in"),
        (WHOLE.replace("annotation>", "annotations>").replace("object>", "box>").encode(), "its root is <annotations>"),
        (b"<project/>", "is not a VOC annotation: its root is <project>"),
        (WHOLE.replace("bndbox>", "robndbox>").encode(), "object 0: has no <bndbox>, but <robndbox>"),
        (WHOLE.replace(">11<", ">11,5<").encode(), "<xmin> holds '11,5'"),
        (WHOLE.replace(BOX, "<polygon><x1>a</x1><y1>2</y1></polygon>").encode(), "<x1> holds 'a'"),
        (WHOLE.replace(BOX, "<polygon/>").encode(), "has no <bndbox>"),
        (WHOLE.replace(">red<", "> <").encode(), "has no <name>"),
    ],
)  # fmt: skip
def test_refusals_name_file_place_and_remedy(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(AnnotationError, match=r"Annotations/a\.xml") as caught:
        read(tmp_path, content)
    assert words in str(caught.value) and "What to do: " in str(caught.value)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "utf-32", "utf-16-le"])
def test_entities_are_refused_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    first = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE x [<!ENTITY e "boom">]>'
    with pytest.raises(AnnotationError, match="declares entities"):
        read(tmp_path, (first + WHOLE.replace("red", "&e;")).encode(encoding))
