"""VOC: the layouts that tools write, and which image belongs to an XML file."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.formats.voc import read_voc
from openworld.data.options import SourceOptions
from openworld.errors import AnnotationError, DataError
from openworld.records import Dataset, check_files

OBJECT = "<object><name>red</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox></object>"
SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def annotation(path: Path, filename: str = "", left: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = f"<filename>{filename}</filename>" if filename else ""
    path.write_text(f"<annotation>{named}{SIZE}{OBJECT.format(left, left + 9)}</annotation>", encoding="utf-8")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def make(root: Path, files: str) -> None:
    """Files by name, separated by blanks; the left edge of an XML file's box is its position in the list."""
    for position, name in enumerate(files.split(), start=1):
        if name.endswith((".xml", ".XML")):
            annotation(root / name, left=position)
        elif name.lower().endswith((".txt", ".yaml")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("")
        else:
            picture(root / name)


def images(dataset: Dataset, root: Path) -> dict[str, str]:
    return {str(record.image_id): record.path.relative_to(root).as_posix() for record in dataset}


@pytest.mark.parametrize(
    ("given", "files", "expected"),
    [
        # labelImg and Roboflow: beside the images, with strays.
        (".", "a.xml a.jpg b.xml b.png README.txt", {"a": "a.jpg", "b": "b.png"}),
        ("train", "train/a.xml train/a.jpg valid/b.xml valid/b.jpg", {"a": "train/a.jpg"}),
        # Label Studio; other names and cases.
        (".", "Annotations/a.xml images/a.jpg", {"a": "images/a.jpg"}),
        (".", "annotations/a.xml Images/a.jpg", {"a": "Images/a.jpg"}),
        (".", "xmls/a.xml imgs/a.jpg", {"a": "imgs/a.jpg"}),
        (".", "Annotations/a.xml a.jpg", {"a": "a.jpg"}),
        (".", "Annotations/a.xml Annotations/a.jpg", {"a": "Annotations/a.jpg"}),
        (".", "images/a.xml images/a.jpg", {"a": "images/a.jpg"}),
        # FiftyOne.
        (".", "data/a.jpg labels/a.xml", {"a": "data/a.jpg"}),
        # Oxford-IIIT Pet: lists and masks beside.
        (".", "images/a.jpg annotations/xmls/a.xml annotations/list.txt annotations/trimaps/a.png",
         {"a": "images/a.jpg"}),
        # The folder of the XML files is named; an archive is unpacked into a folder of its own name.
        ("Annotations", "Annotations/a.xml JPEGImages/a.jpg", {"a": "JPEGImages/a.jpg"}),
        (".", "Annotations/Annotations/a.xml JPEGImages/a.jpg", {"a": "JPEGImages/a.jpg"}),
        (".", "set/Annotations/a.xml set/JPEGImages/a.jpg", {"a": "set/JPEGImages/a.jpg"}),
        (".", "VOCdevkit/VOC2007/Annotations/a.xml VOCdevkit/VOC2007/JPEGImages/a.jpg",
         {"a": "VOCdevkit/VOC2007/JPEGImages/a.jpg"}),
        # Folders below that of the annotations: all files, none is left out.
        (".", "Annotations/a.xml Annotations/day2/b.xml JPEGImages/a.jpg JPEGImages/day2/b.jpg",
         {"a": "JPEGImages/a.jpg", "day2/b": "JPEGImages/day2/b.jpg"}),
        (".", "Annotations/d1/a.xml Annotations/d2/a.xml JPEGImages/d1/a.jpg JPEGImages/d2/a.bmp",
         {"d1/a": "JPEGImages/d1/a.jpg", "d2/a": "JPEGImages/d2/a.bmp"}),
        (".", "Annotations/d1/a.xml Annotations/d1/x/b.xml JPEGImages/a.jpg JPEGImages/b.jpg",
         {"d1/a": "JPEGImages/a.jpg", "d1/x/b": "JPEGImages/b.jpg"}),
        (".", "d1/a.xml d1/a.jpg d2/a.xml d2/a.jpg", {"d1/a": "d1/a.jpg", "d2/a": "d2/a.jpg"}),
        # Suffixes, also of the XML files.
        (".", "Annotations/a.XML Annotations/b.xml JPEGImages/a.JPEG JPEGImages/b.WebP",
         {"a": "JPEGImages/a.JPEG", "b": "JPEGImages/b.WebP"}),
        (".", "Annotations/a.jpg.xml JPEGImages/a.jpg", {"a.jpg": "JPEGImages/a.jpg"}),
    ],
)  # fmt: skip
def test_layouts(tmp_path: Path, given: str, files: str, expected: dict[str, str]) -> None:
    make(tmp_path, files)
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path / given)))
    assert images(check_files(dataset, tmp_path), tmp_path) == expected
    assert not dataset.repairs.counts
    lefts = [position for position, name in enumerate(files.split()) if name.lower().endswith(".xml")]
    assert sorted(record.boxes[0, 0] for record in dataset) == lefts[: len(expected)]


@pytest.mark.parametrize(
    ("files", "role", "expected"),
    [
        ("train/a.xml train/a.jpg valid/b.xml valid/b.jpg test/c.xml test/c.jpg", "train", {"a": "train/a.jpg"}),
        ("train/a.xml train/a.jpg valid/b.xml valid/b.jpg test/c.xml test/c.jpg", "val", {"b": "valid/b.jpg"}),
        ("Annotations/train/a.xml Annotations/Test/b.xml JPEGImages/train/a.jpg JPEGImages/b.jpg", "train",
         {"a": "JPEGImages/train/a.jpg"}),
        ("Annotations/train/a.xml Annotations/Test/b.xml JPEGImages/train/a.jpg JPEGImages/b.jpg", "test",
         {"b": "JPEGImages/b.jpg"}),
        ("train/Annotations/a.xml train/images/a.jpg test/Annotations/b.xml test/images/b.jpg", "test",
         {"b": "test/images/b.jpg"}),
        ("train/x/a.xml train/x/a.jpg train/y/b.xml train/y/b.jpg test/c.xml test/c.jpg", "train",
         {"x/a": "train/x/a.jpg", "y/b": "train/y/b.jpg"}),
    ],
)  # fmt: skip
def test_folders_of_sets(tmp_path: Path, files: str, role: str, expected: dict[str, str]) -> None:
    make(tmp_path, files)
    assert images(read_dataset(SourceOptions(annotations=str(tmp_path)), role), tmp_path) == expected
    with pytest.raises(AnnotationError, match="which of its sets is meant is not said") as caught:
        read_dataset(SourceOptions(annotations=str(tmp_path)))
    assert "set image_set to one of: " in str(caught.value) and "train" in str(caught.value)
    with pytest.raises(AnnotationError, match=r"choose one of: .*train"):
        read_dataset(SourceOptions(annotations=str(tmp_path), image_set="extra"))


def test_a_set_is_not_the_only_one_of_another_role(tmp_path: Path) -> None:
    make(tmp_path, "train/a.xml train/a.jpg")
    with pytest.raises(AnnotationError, match="which of its sets"):
        read_dataset(SourceOptions(annotations=str(tmp_path)), "test")


def test_sets_beside_xml_files_of_none(tmp_path: Path) -> None:
    make(tmp_path, "Annotations/a.xml Annotations/test/b.xml JPEGImages/a.jpg JPEGImages/b.jpg")
    with pytest.raises(AnnotationError, match="which of its sets is meant is not said, and XML files lie beside"):
        read_dataset(SourceOptions(annotations=str(tmp_path)), "test")
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path), image_set="test"))
    assert images(dataset, tmp_path) == {"b": "JPEGImages/b.jpg"}


def test_several_voc_folders_side_by_side(tmp_path: Path) -> None:
    make(
        tmp_path,
        "VOC2007/Annotations/a.xml VOC2007/JPEGImages/a.jpg VOC2012/Annotations/a.xml VOC2012/JPEGImages/a.jpg",
    )
    with pytest.raises(AnnotationError, match="set image_set to one of: VOC2007, VOC2012; or give"):
        read_dataset(SourceOptions(annotations=str(tmp_path)), "train")
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path), image_set="VOC2012"))
    assert images(dataset, tmp_path) == {"a": "VOC2012/JPEGImages/a.jpg"}


@pytest.mark.parametrize(
    "files",
    ["images/a.jpg images/a.xml labels/a.txt classes.txt", "data.yaml a.xml a.jpg", "images/a.jpg", "a.json.txt"],
)
def test_what_is_not_voc(tmp_path: Path, files: str) -> None:
    make(tmp_path, files)
    try:
        dataset = read_dataset(SourceOptions(annotations=str(tmp_path)))
    except AnnotationError:
        pytest.fail("taken for VOC")
    except DataError:
        return
    assert dataset.num_annotations == 0


def test_images_where_the_user_says(tmp_path: Path) -> None:
    make(tmp_path, "set/Annotations/a.xml set/JPEGImages/a.jpg other/a.png other/train/b.jpg")
    make(tmp_path, "sets/train/b.xml sets/train/b.jpg sets/test/a.xml sets/test/a.jpg")

    def read(annotations: str, place: str, role: str | None = None) -> dict[str, str]:
        source = SourceOptions(annotations=str(tmp_path / annotations), images=str(tmp_path / place))
        return images(read_dataset(source, role), tmp_path)

    assert read("set", "other") == {"a": "other/a.png"}
    assert read("set", "elsewhere") == {"a": "elsewhere/a.jpg"}  # which does not exist
    assert read("sets", "other", "train") == {"b": "other/train/b.jpg"}
    assert read("sets", "other", "test") == {"a": "other/a.png"}


@pytest.mark.parametrize(
    ("xml", "filename", "there", "found", "repairs"),
    [
        # Between images of one stem, <filename> decides; without it the likeliest does, which is said.
        ("a", "a.png", "a.jpg a.png", "a.png", 0),
        ("a", "a.jpg", "a.jpg a.png", "a.jpg", 0),
        ("a", "a.bmp", "a.png a.tif", "a.png", 1),
        # The suffix is another one, or there is none.
        ("a", "a.jpg", "a.webp", "a.webp", 0),
        ("a", "a", "a.tif", "a.tif", 0),
        ("a", "", "a.ppm", "a.ppm", 0),
        # The XML file is called otherwise: only <filename> helps. labelImg and CVAT write folders, too.
        ("0001", "b.jpg", "b.jpg", "b.jpg", 0),
        ("0001", "b.jpg", "b.png", "b.png", 0),
        ("0001", "C:\\photos\\b.jpg", "b.jpg", "b.jpg", 0),
        ("0001", "sub/b.jpg", "sub/b.jpg b.png", "sub/b.jpg", 0),
        # A stale <filename>: the stem counts, and it is said where the other image is there.
        ("a", "b.jpg", "a.jpg b.jpg", "a.jpg", 1),
        ("a", "b.jpg", "a.jpg", "a.jpg", 0),
        # Nothing: where it should be.
        ("a", "a.bmp", "c.jpg", "a.bmp", 0),
        ("a", "../../x.png", "c.jpg", "a.png", 0),
    ],
)  # fmt: skip
def test_the_image_of_an_xml_file(
    tmp_path: Path, xml: str, filename: str, there: str, found: str, repairs: int
) -> None:
    annotation(tmp_path / f"Annotations/{xml}.xml", filename)
    for name in there.split():
        picture(tmp_path / "JPEGImages" / name)
    dataset = read_voc(tmp_path)
    assert images(dataset, tmp_path) == {xml: f"JPEGImages/{found}"}
    assert sum(dataset.repairs.counts.values()) == repairs


def test_no_filename_reaches_outside(tmp_path: Path) -> None:
    picture(tmp_path / "secret.png")
    for position, filename in enumerate(("../../secret.png", f"{tmp_path}/secret.png", "..\\..\\secret.png")):
        annotation(tmp_path / f"set/Annotations/{position}.xml", filename)
    picture(tmp_path / "set/JPEGImages/other.png")
    for record in read_voc(tmp_path / "set"):
        assert record.path.parent == tmp_path / "set/JPEGImages" and not record.path.exists()


def test_two_xml_files_of_one_image(tmp_path: Path) -> None:
    annotation(tmp_path / "Annotations/1.xml", "a.jpg")
    annotation(tmp_path / "Annotations/2.xml", "a.jpg")
    picture(tmp_path / "JPEGImages/a.jpg")
    with pytest.raises(AnnotationError, match=r"a\.jpg: 1\.xml and 2\.xml are annotations of one image"):
        read_voc(tmp_path)
    make(tmp_path / "b", "Annotations/a.xml Annotations/a.XML JPEGImages/a.jpg")
    with pytest.raises(AnnotationError, match=r"a\.XML and a\.xml are annotations of one image"):
        read_voc(tmp_path / "b")


def test_stray_xml_file_in_the_root_is_said(tmp_path: Path) -> None:
    make(tmp_path, "Annotations/a.xml JPEGImages/a.jpg b.xml")
    dataset = read_voc(tmp_path)
    assert list(dataset.image_ids) == ["a"]
    assert dataset.repairs.counts == {"XML file outside the folder of the annotations left out": 1}
    assert "b.xml" in dataset.repairs.examples[0]


def test_size_of_an_image_that_filename_names(tmp_path: Path) -> None:
    annotation(tmp_path / "Annotations/1.xml", "a.png")
    (tmp_path / "Annotations/1.xml").write_text((tmp_path / "Annotations/1.xml").read_text().replace(SIZE, ""))
    picture(tmp_path / "JPEGImages/a.png")
    dataset = read_voc(tmp_path)
    assert (dataset[0].width, dataset[0].height) == (40, 30)
    assert dataset.repairs.counts == {"size read from the image file": 1}


OTHER = "image in other case or Unicode form than its XML file"
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("files", "expected", "counted"),
    [
        ("Annotations/img_1.xml JPEGImages/IMG_1.JPG", {"img_1": "JPEGImages/IMG_1.JPG"}, 1),
        (f"Annotations/{COMPOSED}.xml JPEGImages/{DECOMPOSED}.jpg", {COMPOSED: f"JPEGImages/{DECOMPOSED}.jpg"}, 1),
        (f"{DECOMPOSED}.xml {COMPOSED}.jpg", {DECOMPOSED: f"{COMPOSED}.jpg"}, 1),
        # One that is called so is taken, and of two that are not none.
        ("Annotations/a.xml JPEGImages/a.jpg JPEGImages/A.jpg", {"a": "JPEGImages/a.jpg"}, 0),
        ("Annotations/aa.xml JPEGImages/AA.jpg JPEGImages/Aa.jpg", {"aa": "JPEGImages/aa.jpg"}, 0),
    ],
)
def test_images_called_otherwise_in_case_or_form(
    tmp_path: Path, files: str, expected: dict[str, str], counted: int
) -> None:
    make(tmp_path, files)
    dataset = read_voc(tmp_path)
    assert images(dataset, tmp_path) == expected
    assert dataset.repairs.counts[OTHER] == counted


@pytest.mark.parametrize("line", ["{}", "{} -1", "JPEGImages/{}.jpg"])
@pytest.mark.parametrize(("listed", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_lists_in_another_unicode_form(tmp_path: Path, line: str, listed: str, stored: str) -> None:
    make(tmp_path, f"Annotations/{stored}.xml JPEGImages/{stored}.jpg")
    (tmp_path / "list.txt").write_text(line.format(listed), encoding="utf-8")
    dataset = read_voc(tmp_path, image_set=str(tmp_path / "list.txt"))
    assert images(dataset, tmp_path) == {stored: f"JPEGImages/{stored}.jpg"}
