"""VOC image lists: what tools and people write on a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from openworld.data.formats.voc import read_voc
from openworld.errors import AnnotationError

XML = (
    "<annotation><filename>{}</filename><size><width>40</width><height>30</height></size><object><name>red</name>"
    "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
NAMES = [
    "000012", "12", "front gate 1", "front gate 2", "shot-1_jpg.rf.0a1", "c.v2", "a.b.c", "[x] (1)", "it's",
    "naïve 日本", "🚗", "a  b", "-1", "x -1 y", "50%", "#1", "day 1/front gate", "day 1/7", "images",
]  # fmt: skip
"""Names that exporters and cameras give."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lists") / "set"
    for position, name in enumerate(NAMES, start=1):
        for place in (root / f"Annotations/{name}.xml", root / f"JPEGImages/{name}.png"):
            place.parent.mkdir(parents=True, exist_ok=True)
        (root / f"Annotations/{name}.xml").write_text(XML.format(f"{Path(name).name}.png", position), encoding="utf-8")
        Image.new("RGB", (40, 30)).save(root / f"JPEGImages/{name}.png")
    (root / "ImageSets/Main").mkdir(parents=True)
    return root


STYLES = {
    "plain": "{}",
    "blanks around": "  {} \t",
    "class list": "{}  1",
    "class list, absent": "{} -1",
    "tab": "{}\t0",
    "persons": "{} 2 1",
    "quoted": '"{}"',
    "quoted, of one class": '"{}" 1',
    "single quotes": "'{}'",
    "suffix of the image": "{}.png",
    "suffix in upper case": "{}.JPG",
    "XML files": "{}.xml",
    "image and class": "{}.png 1",
    "path of the image": "JPEGImages/{}.png",
    "path of the XML file": "./Annotations/{}.xml",
    "another machine": "/home/u/VOCdevkit/VOC2007/JPEGImages/{}.png",
    "Windows": "C:\\data\\set\\JPEGImages\\{}.png",
    "pairs": "JPEGImages/{0}.png Annotations/{0}.xml",
    "pairs in quotes": '"JPEGImages/{0}.png" "Annotations/{0}.xml"',
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_name_in_every_style(folder: Path, tmp_path: Path, style: str, end: str) -> None:
    listed = tmp_path / "list.txt"
    lines = [STYLES[style].format(name) for name in NAMES]
    listed.write_bytes((end.join(lines) + end + end).encode())
    dataset = read_voc(folder, image_set=str(listed))
    assert list(dataset.image_ids) == NAMES
    assert [record.boxes[0, 0] for record in dataset] == list(range(len(NAMES)))
    assert [record.path for record in dataset] == [folder / f"JPEGImages/{name}.png" for name in NAMES]


def test_without_a_list_all_are_read(folder: Path) -> None:
    dataset = read_voc(folder)
    assert sorted(map(str, dataset.image_ids)) == sorted(NAMES) and not dataset.repairs.counts


def test_mixed_lines_are_counted_as_one_image(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes(b'front gate 1\r\n"front gate 1"\n12 -1\rJPEGImages/front gate 1.png\n')
    dataset = read_voc(folder, image_set=str(listed))
    assert [(record.image_id, record.listed) for record in dataset] == [("front gate 1", 3), ("12", 1)]


def test_a_line_that_may_mean_two_files(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    for name in ("front", "front 1"):
        (tmp_path / f"Annotations/{name}.xml").write_text(XML.format("a.png", 1))
    listed = tmp_path / "list.txt"
    listed.write_text("front\nfront 1\n")  # a list of names
    assert list(read_voc(tmp_path, image_set=str(listed)).image_ids) == ["front", "front 1"]
    listed.write_text("front 1\n")
    with pytest.raises(
        AnnotationError, match=r"list\.txt, line 1: 'front 1' may mean 'front 1', or 'front' and a number"
    ):
        read_voc(tmp_path, image_set=str(listed))
    listed.write_text('"front 1"\n')
    assert list(read_voc(tmp_path, image_set=str(listed)).image_ids) == ["front 1"]
    listed.write_text('"front 1" 1\n"front" -1\n')
    assert list(read_voc(tmp_path, image_set=str(listed)).image_ids) == ["front 1", "front"]
    listed.write_text("front 1 -1\nfront -1\n")  # of one class: every line has its number
    assert list(read_voc(tmp_path, image_set=str(listed)).image_ids) == ["front 1", "front"]


def test_numbers_that_count_photos_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    for name in ("img", "img 1", "img 2", "img 3"):
        (tmp_path / f"Annotations/{name}.xml").write_text(XML.format("a.png", 1))
    listed = tmp_path / "list.txt"
    listed.write_text("img 1\nimg 3\n")
    assert list(read_voc(tmp_path, image_set=str(listed)).image_ids) == ["img 1", "img 3"]


def test_a_list_of_a_folder_of_its_own_name(tmp_path: Path) -> None:
    """XML files beside their images, in a list with absolute paths."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a b.xml").write_text(XML.format("a b.png", 1))
    Image.new("RGB", (40, 30)).save(tmp_path / "train/a b.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/train/a b.png\n")
    assert list(read_voc(tmp_path / "train", image_set=str(tmp_path / "list.txt")).image_ids) == ["a b"]


def test_a_file_of_another_folder_is_not_taken(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("other/12.png\nday 2/7.png\n12\n")
    with pytest.raises(
        AnnotationError, match=r"2 of 3 annotation files do not exist: other/12\.png\.xml, day 2/7\.png"
    ):
        read_voc(folder, image_set=str(listed))


def test_a_name_without_its_folder(tmp_path: Path) -> None:
    for name in ("d1/a", "d2/a", "d2/b"):
        (tmp_path / f"Annotations/{name}.xml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text(XML.format("x.png", 1))
    listed = tmp_path / "list.txt"
    listed.write_text("b 1\nd1/a 1\n")
    assert list(read_voc(tmp_path, image_set=str(listed)).image_ids) == ["d2/b", "d1/a"]
    listed.write_text("b\na\n")
    with pytest.raises(AnnotationError, match=r"1 of 2 annotation files do not exist: a\.xml"):
        read_voc(tmp_path, image_set=str(listed))


def test_names_of_missing_files_keep_their_blanks(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    for content, words in (("back gate 1\nback gate 2\n", r"2 of 2 .*: back gate 1\.xml"), ("back -1", r": back\.xml")):
        listed.write_text(content)
        with pytest.raises(AnnotationError, match=words):
            read_voc(folder, image_set=str(listed))


@pytest.mark.parametrize("place", ["ImageSets/Main/my.txt", "ImageSets/my.txt", "my.txt"])
@pytest.mark.parametrize("name", ["my", "my.txt"])
def test_where_lists_lie(tmp_path: Path, place: str, name: str) -> None:
    """CVAT and Datumaro; PaddleX has train_list.txt in the root."""
    for file in (place, "Annotations/a.xml", "Annotations/b.xml"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("b\n" if file == place else XML.format("a.png", 1))
    assert list(read_voc(tmp_path, image_set=name).image_ids) == ["b"]


def test_list_in_another_encoding_is_named(folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_bytes("naïve\n".encode("latin-1"))
    with pytest.raises(AnnotationError, match=r"list\.txt: cannot be read as text") as caught:
        read_voc(folder, image_set=str(listed))
    assert "save it as UTF-8" in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_list_with_a_byte_order_mark(folder: Path, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "list.txt").write_bytes("naïve 日本\r\n12\r\n".encode(encoding))
    assert list(read_voc(folder, image_set=str(tmp_path / "list.txt")).image_ids) == ["naïve 日本", "12"]
