"""VOC reader: boxes count from 1, difficult objects, image lists, bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.formats.voc import read_voc
from openworld.data.options import SourceOptions
from openworld.errors import DataError
from openworld.records import check_files

DOG = (
    "<object><name>dog</name><difficult>{}</difficult><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def add(root: Path, stem: str, content: str, size: str = SIZE) -> None:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{content}</annotation>")
    Image.new("RGB", (40, 30)).save(root / f"JPEGImages/{stem}.jpg")


def test_boxes_count_from_one_and_include_both_corners(tmp_path: Path) -> None:
    add(tmp_path, "000012", DOG.format(0, 1, 1, 40, 30) + DOG.format(1, 11, 5, 20, 14).replace("dog", "cat"))
    dataset = read_voc(tmp_path)
    assert dataset.categories == ("cat", "dog") and not dataset.repairs.counts
    (record,) = dataset
    assert record.image_id == "000012" and (record.width, record.height) == (40, 30)
    assert record.boxes.tolist() == [[0, 0, 40, 30], [10, 4, 20, 14]]
    assert record.categories.tolist() == [1, 0]
    assert record.ignore.tolist() == [False, True] and not record.crowd.any()


def test_image_set_keeps_order_and_counts_repeats(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        add(tmp_path, stem, DOG.format(0, 1, 1, 4, 4))
    (tmp_path / "ImageSets/Main/test.txt").write_text("c\na -1\n\nc\n")
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path), image_set="test"))
    assert [record.image_id for record in dataset] == ["c", "a"]
    assert [record.listed for record in dataset] == [2, 1]
    assert dict(dataset.repairs.counts) == {"image listed again": 1}
    by_path = read_voc(tmp_path, image_set=str(tmp_path / "ImageSets/Main/test.txt"))
    assert [record.image_id for record in by_path] == ["c", "a"]


def test_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    add(tmp_path, "a", DOG.format(0, 1, 1, 4.5, 4), size="<size><width>0</width></size>")
    dataset = read_voc(tmp_path)
    assert dataset[0].width == 40 and dataset[0].boxes.tolist() == [[0, 0, 4.5, 4]]
    assert dict(dataset.repairs.counts) == {"size read from the image file": 1}


def test_image_without_objects_and_parts_of_objects(tmp_path: Path) -> None:
    add(tmp_path, "a", "")
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    add(tmp_path, "b", DOG.format(0, 1, 1, 4, 4).replace("</object>", part))
    dataset = read_voc(tmp_path)
    assert [len(record) for record in dataset] == [0, 1]


def test_infinite_coordinate_never_passes(tmp_path: Path) -> None:
    add(tmp_path, "a", DOG.format(0, 1, 1, "inf", 4) + DOG.format(0, "nan", 1, 5, 4) + DOG.format(0, 1, 1, 5, 4))
    dataset = read_voc(tmp_path)
    assert dataset[0].boxes.tolist() == [[0, 0, 5, 4]]
    assert dataset.repairs.counts["dropped: coordinate not finite"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<object>", "cannot be parsed"),
        ("<object><name>dog</name></object>", "has no <bndbox>"),
        ("<object><bndbox/></object>", "has no <name>"),
        ("<object><name>dog</name><bndbox><xmin>1</xmin></bndbox></object>", "<ymin> holds None"),
        (DOG.format(0, "x", 1, 4, 4), "<xmin> holds 'x'"),
    ],
)
def test_bad_xml_is_named(tmp_path: Path, content: str, words: str) -> None:
    add(tmp_path, "a", content)
    with pytest.raises(DataError, match=r"a\.xml") as caught:
        read_voc(tmp_path)
    assert words in str(caught.value)


def test_bad_lists(tmp_path: Path) -> None:
    add(tmp_path, "a", "")
    lists = tmp_path / "ImageSets/Main"
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "out.txt").write_text("../a\n")
    (lists / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"1 of 2 annotation files do not exist: b\.xml"):
        read_voc(tmp_path, image_set="train")
    with pytest.raises(DataError, match="leaves the folder"):
        read_voc(tmp_path, image_set="out")
    with pytest.raises(DataError, match="names no image"):
        read_voc(tmp_path, image_set="empty")
    with pytest.raises(DataError, match="choose one of: empty, out, train"):
        read_voc(tmp_path, image_set="val")
    (tmp_path / "JPEGImages/a.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images do not exist: .*JPEGImages/a\.jpg"):
        check_files(read_voc(tmp_path), tmp_path)


def test_image_of_a_stem(tmp_path: Path) -> None:
    (tmp_path / "Annotations/sub").mkdir(parents=True)
    for stem in ("a", "b", "c.v2", "sub/d", "e"):
        (tmp_path / f"Annotations/{stem}.xml").write_text(f"<annotation>{SIZE}</annotation>")
    for name in ("a.png", "a.JPG", "a.txt", "b.webp", "c.v2.jpeg", "sub/d.PNG", "e.jpg/not an image"):
        (tmp_path / "JPEGImages" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "JPEGImages" / name).write_bytes(b"")
    listed = tmp_path / "list.txt"
    listed.write_text("a\nb\nc.v2\nsub/d\ne\n")
    dataset = read_voc(tmp_path, image_set=str(listed))
    found = [record.path.relative_to(tmp_path / "JPEGImages").as_posix() for record in dataset]
    assert found == ["a.JPG", "b.webp", "c.v2.jpeg", "sub/d.PNG", "e.jpg"]


def test_scoring_needs_no_images(tmp_path: Path) -> None:
    add(tmp_path, "a", DOG.format(0, 1, 1, 40, 30))
    add(tmp_path, "b", DOG.format(0, 3, 5, 21, 14.5) + DOG.format(0, 1, 1, "inf", 90), size="")
    add(tmp_path, "c", "", size="")
    for image in (tmp_path / "JPEGImages").iterdir():
        image.unlink()
    (tmp_path / "elsewhere").mkdir()
    listed = tmp_path / "elsewhere/test.txt"
    listed.write_text("a\nb\nc\n")
    source = SourceOptions(annotations=str(tmp_path), image_set=str(listed))
    with pytest.raises(DataError, match="3 of 3 images do not exist"):
        check_files(read_dataset(source), listed)
    dataset = read_dataset(source)
    sizes = [(record.width, record.height) for record in dataset]
    assert sizes == [(40, 30), (21, 15), (1, 1)]
    assert dataset[1].boxes.tolist() == [[2, 4, 21, 14.5]]
    assert dataset.repairs.counts == {"size taken from the boxes": 2, "dropped: coordinate not finite": 1}
