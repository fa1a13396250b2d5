"""YOLO data sets as tools export them: Darknet, CVAT, FiftyOne, Roboflow, labelImg, Label Studio, on Windows too."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.formats.yolo import read_yolo
from openworld.data.options import SourceOptions
from openworld.errors import DataError
from openworld.records import Dataset

LABELS = "0 0.5 0.5 0.2 0.4\n1 0.1 0.2 0.2 0.4\n"
BOXES = [[40, 15, 60, 35], [0, 0, 20, 20]]
"""The same in pixels of an image of 100 x 50."""
NAMES = "cat\ndog\n"
TRAIN = "names: [cat, dog]\ntrain: images/train\n"


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())  # as it is: no line ends are changed
    return path


def pictures(images: Path, labels: Path, *stems: str, content: str = LABELS) -> None:
    images.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        Image.new("RGB", (100, 50), (90, 120, 30)).save(images / f"{stem}.jpg")
        text(labels / f"{stem}.txt", content)


def read(place: Path, role: str | None = "train") -> Dataset:
    return read_dataset(SourceOptions(annotations=str(place)), role)  # type: ignore[arg-type]


def assert_right(dataset: Dataset, images: int = 2, **repairs: int) -> None:
    """Every image has both objects, right names and nothing else was repaired."""
    assert dataset.categories == ("cat", "dog") and len(dataset) == images
    for record in dataset:
        np.testing.assert_allclose(record.boxes, BOXES, atol=1e-4)
        assert record.categories.tolist() == [0, 1] and record.path.is_file()
    assert {kind.replace(" ", "_"): count for kind, count in dataset.repairs.counts.items()} == repairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/train and labels/train with a and b; nothing says what the classes are called."""
    pictures(tmp_path / "images/train", tmp_path / "labels/train", "a", "b")
    return tmp_path


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dataset.yaml", "data.yml", "coco128.yaml", "my set.yml"])
def test_a_folder_with_one_description_of_any_name(folder: Path, name: str) -> None:
    text(folder / "train_settings.yaml", "lr: 0.1")
    text(folder / name, TRAIN)
    assert_right(read(folder))


def test_several_descriptions(folder: Path) -> None:
    text(folder / "a.yaml", TRAIN)
    text(folder / "b.yaml", TRAIN)
    with pytest.raises(DataError, match=r"a\.yaml, b\.yaml describe data sets") as caught:
        read(folder)
    assert "give the file" in str(caught.value)
    assert_right(read(folder / "a.yaml"))
    text(folder / "data.yaml", TRAIN)
    assert_right(read(folder))


@pytest.mark.parametrize("names", [("train", "val"), ("training", "validation"), ("train", "valid")])
def test_folders_that_are_called_like_sets(tmp_path: Path, names: tuple[str, str]) -> None:
    """What is trained on is not what is evaluated on."""
    for stems, name in zip((("a", "b"), ("c",)), names, strict=True):
        pictures(tmp_path / f"images/{name}", tmp_path / f"labels/{name}", *stems)
    text(tmp_path / "classes.txt", NAMES)
    assert_right(read(tmp_path, "train"))
    assert_right(read(tmp_path, "val"), 1)


def test_files_of_windows_editors(folder: Path) -> None:
    (folder / "classes.txt").write_bytes(NAMES.encode("utf-16"))
    (folder / "labels/train/a.txt").write_bytes(LABELS.encode("utf-8-sig"))
    assert_right(read(folder))


@pytest.mark.parametrize("given_file", [False, True])
def test_darknet_of_cvat(tmp_path: Path, given_file: bool) -> None:
    pictures(tmp_path / "obj_train_data", tmp_path / "obj_train_data", "a", "b")
    pictures(tmp_path / "obj_valid_data", tmp_path / "obj_valid_data", "c")
    text(tmp_path / "obj.names", NAMES)
    data = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    text(tmp_path / "obj.data", data)
    text(tmp_path / "train.txt", "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    text(tmp_path / "valid.txt", "data/obj_valid_data/c.jpg\n")
    place = tmp_path / "obj.data" if given_file else tmp_path
    assert_right(read(place, "train"), **{"data/_left_out_of_a_path": 4})  # the names, the list, and its two lines
    assert_right(read(place, "val"), 1, **{"data/_left_out_of_a_path": 3})
    with pytest.raises(DataError, match="set image_set to one of: train, valid"):
        read(place, "test")


def test_darknet_without_a_prefix_and_with_that_of_its_authors(tmp_path: Path) -> None:
    pictures(tmp_path / "obj", tmp_path / "obj", "a", "b")
    text(tmp_path / "obj.names", NAMES)
    text(tmp_path / "obj.data", "# made by hand\r\nnames=obj.names\r\ntrain=train.txt\r\n")
    text(tmp_path / "train.txt", "obj/a.jpg\r\nobj/b.jpg")
    assert_right(read(tmp_path))
    text(tmp_path / "train.txt", "build/darknet/x64/data/obj/a.jpg\nbuild\\darknet\\x64\\data\\obj\\b.jpg")
    assert_right(read(tmp_path), **{"data/_left_out_of_a_path": 2, "backslashes_read_as_slashes": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train = train.txt", "has no line `names"),
        ("names = none.names\ntrain = train.txt", "cannot be read as text"),
        ("classes = 3\nnames = obj.names\ntrain = train.txt", "`classes` is '3', and 2 classes have a name"),
        ("names = obj.names", "names no set of images"),
        ("names = obj.names\ntrain = none.txt", "the list of images does not exist"),
        ("names = gap.names\ntrain = train.txt", r"gap\.names, line 2: the line is empty"),
        ("names = obj.names\ntrain = train.txt", "none of its 1 images can be read"),  # CVAT without "Save images"
    ],
)
def test_darknet_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    text(tmp_path / "obj.names", NAMES)
    text(tmp_path / "gap.names", "cat\n\ndog")
    text(tmp_path / "train.txt", "obj_train_data/a.jpg")
    text(tmp_path / "obj_train_data/a.txt", LABELS)
    text(tmp_path / "obj.data", content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path)
    assert caught.value.remedy


def test_yolov4_of_fiftyone(tmp_path: Path) -> None:
    pictures(tmp_path / "data", tmp_path / "data", "a", "b")
    text(tmp_path / "obj.names", NAMES)
    text(tmp_path / "images.txt", "data/a.jpg\ndata/b.jpg\n")
    assert_right(read(tmp_path))
    assert_right(read(tmp_path, None))


def test_yolov5_of_fiftyone(folder: Path) -> None:
    pictures(folder / "images/validation", folder / "labels/validation", "c")
    described = (
        f"names:\n  0: cat\n  1: dog\npath: {folder}\ntrain: ./images/train/\nvalidation: ./images/validation/\n"
    )
    text(folder / "dataset.yaml", described)
    assert_right(read(folder))
    assert_right(read(folder, "val"), 1)


def test_roboflow_root_set_and_folders_of_a_set(tmp_path: Path) -> None:
    for name, stem in (("train", "a"), ("valid", "b")):
        pictures(tmp_path / name / "images", tmp_path / name / "labels", stem)
    text(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'dog']\n")
    assert_right(read(tmp_path), 1, **{"../_left_out_of_a_folder": 1})
    assert_right(read(tmp_path, "val"), 1, **{"../_left_out_of_a_folder": 1})
    for place in ("train", "train/labels", "train/images"):
        dataset = read(tmp_path / place)
        assert_right(dataset, 1, classes_named_one_folder_above=1)
        assert dataset.image_ids == ("a",)


def test_a_description_of_another_set_one_folder_above_is_not_taken(tmp_path: Path) -> None:
    pictures(tmp_path / "mine/images", tmp_path / "mine/labels", "a")
    pictures(tmp_path / "other/images", tmp_path / "other/labels", "b")
    text(tmp_path / "data.yaml", "train: other/images\nnames: [bird, fish]\n")
    with pytest.raises(DataError, match=r"neither data\.yaml nor classes\.txt"):
        read(tmp_path / "mine")


def test_kpt_shape_counts_for_a_folder_of_the_set(tmp_path: Path) -> None:
    pictures(
        tmp_path / "train/images", tmp_path / "train/labels", "a", content="0 0.5 0.5 0.2 0.4 0.4 0.4 0.6 0.4 0.5 0.6"
    )
    text(tmp_path / "data.yaml", "train: train/images\nnames: [cat]\nkpt_shape: [3, 2]")
    for place in (tmp_path, tmp_path / "train"):
        dataset = read(place)
        np.testing.assert_allclose(dataset.boxes, BOXES[:1], atol=1e-4)
        assert dataset.repairs.counts["keypoints left out"] == 1


def test_roboflow_darknet_and_labelimg(tmp_path: Path) -> None:
    for name, names in (("train", "_darknet.labels"), ("labelimg", "classes.txt")):
        pictures(tmp_path / name, tmp_path / name, "a", "b")
        text(tmp_path / name / names, NAMES)
        assert_right(read(tmp_path / name))
    with pytest.raises(DataError, match="what the classes are called") as caught:
        read(tmp_path)
    assert "give one of its folders labelimg, train instead" in str(caught.value)


@pytest.mark.parametrize("place", ["labels", "images", "labels/train", "images/train"])
@pytest.mark.parametrize("names", ["classes.txt", "labels/classes.txt", "data.yaml", "coco.names"])
def test_a_folder_inside_the_set_is_given(folder: Path, place: str, names: str) -> None:
    text(folder / names, TRAIN if names.endswith(".yaml") else NAMES)
    assert_right(read(folder / place, None))


def test_images_behind_a_link_and_label_suffixes_in_upper_case(folder: Path, tmp_path: Path) -> None:
    text(folder / "data.yaml", TRAIN)
    shutil.move(folder / "images", folder / "elsewhere")
    (folder / "images").symlink_to(folder / "elsewhere")
    (folder / "labels/train/a.txt").rename(folder / "labels/train/a.TXT")
    assert_right(read(folder))


# -- names of classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected", "counted"),
    [
        ("[0, 007]", ("0", "007"), 2),
        ("[1.10, 2024-01-01]", ("1.10", "2024-01-01"), 2),
        ("[no, On]", ("no", "On"), 2),
        ("{0: 12:30, 1: 0x1F}", ("12:30", "0x1F"), 2),
        ("{'0': cat, '1': 1_000}", ("cat", "1_000"), 1),
        ("{1: dog, 0: cat}", ("cat", "dog"), 0),
        ("['no', \"7\"]", ("no", "7"), 0),
        ("classes.txt", ("cat", "dog"), 0),
        ("sub\\classes.txt", ("cat", "dog"), 0),
    ],
)
def test_names_of_classes(folder: Path, names: str, expected: tuple[str, ...], counted: int) -> None:
    text(folder / "classes.txt", NAMES)
    text(folder / "sub/classes.txt", NAMES)
    text(folder / "data.yaml", f"names: {names}\ntrain: images/train\nnc: 2")
    dataset = read(folder)
    assert dataset.categories == expected
    assert dataset.repairs.counts["class name taken as it is written"] == counted


@pytest.mark.parametrize(
    ("description", "message", "remedy"),
    [
        ("names: [cat, null]", "the name of class 1 is null", "needs quotes"),
        ("names: [cat, cat, [dog]]", "the name of class 2 is", "a text for each class"),
        ("names: [cat, '']", "the name of class 1 is ''", ""),
        ("names: {0: cat, 2: dog}", r"the numbers in `names` are \[0, 2\]", "without a gap"),
        ("names: cat, dog", "`names` is 'cat, dog'", "names: "),
        ("names: [cat, dog]\nnc: 3", "`nc` is 3, and 2 classes have a name", "correct the names, or nc"),
        ("names: [cat, dog]\nkpt_shape: 17", "`kpt_shape` is 17", r"\[K, 2\]"),
        ("names: [cat, dog]\nkpt_shape: [17, 4]", "`kpt_shape` is", r"\[K, 2\]"),
        ("names: [cat, dog]\nkpt_shape: [0, 3]", "`kpt_shape` is", r"\[K, 2\]"),
        ("names: [cat, dog]\nkpt_shape: [true, 3]", "`kpt_shape` is", r"\[K, 2\]"),
        ("names: [cat, dog]\npath: D:\\sets", r"path: 'D:\\\\sets' is a path on a Windows machine", "relative"),
        ("names: [cat, dog]\npath: \\\\nas\\sets", "is a path on a Windows machine", "relative"),
        ('names: [cat, dog]\npath: "a\\tb"', r"'a\\tb' holds a control character", "write /"),
    ],
)
def test_descriptions_that_cannot_be_used(folder: Path, description: str, message: str, remedy: str) -> None:
    text(folder / "data.yaml", f"train: images/train\n{description}")
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert caught.match(remedy) and "data.yaml" in str(caught.value)


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "description",
    ["train: images\\train", "train: ['images\\train\\']", "path: .\\\ntrain: images/train", "train: .\\images\\train"],
)
def test_backslashes_in_data_yaml(folder: Path, description: str) -> None:
    text(folder / "data.yaml", f"names: [cat, dog]\n{description}")
    assert_right(read(folder), backslashes_read_as_slashes=1)


def test_several_folders_with_backslashes(folder: Path) -> None:
    pictures(folder / "images/more", folder / "labels/more", "c")
    text(folder / "data.yaml", "names: [cat, dog]\ntrain: ['images\\train', 'images\\more']")
    assert_right(read(folder), 3, backslashes_read_as_slashes=2)


def test_a_name_that_exists_is_never_changed(folder: Path) -> None:
    pictures(folder / "a\\b", folder / "a\\b", "c")
    pictures(folder / "a/b", folder / "a/b", "d")
    text(folder / "data.yaml", "names: [cat, dog]\ntrain: 'a\\b'")
    dataset = read(folder)
    assert_right(dataset, 1)
    assert dataset.image_ids == ("c",)


def test_a_list_with_quotes_blanks_comments_and_mixed_line_ends(folder: Path) -> None:
    pictures(folder / "images/train", folder / "labels/train", "my photo", "#1")
    lines = [
        "# a list",
        '"images/train/my photo.jpg"',
        "",
        "  ./images/train/a.jpg  ",
        "images\\train\\b.jpg",
        "images/train/#1.jpg",
    ]
    text(folder / "list.txt", "\ufeff" + "\r\n".join(lines[:4]) + "\n" + "\n".join(lines[4:]))
    text(folder / "data.yaml", "names: [cat, dog]\ntrain: list.txt")
    dataset = read(folder)
    assert_right(dataset, 4, quotes_left_out_of_a_path=1, backslashes_read_as_slashes=1)
    assert list(dataset.image_ids) == ["my photo", "a", "b", "#1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("D:\\sets\\a.jpg", "is a path on a Windows machine"),
        ("C:/sets/a.jpg", "is a path on a Windows machine"),
        ("..\\..\\a.jpg", r"file name '\.\./\.\./a\.jpg' leaves the folder"),
        ("data/../../a.jpg", "leaves the folder"),
        ("/far/away/a.jpg", "leaves the folder"),
    ],
)
def test_lines_of_a_list_that_leave_the_root(folder: Path, line: str, message: str) -> None:
    text(folder / "list.txt", f"images/train/a.jpg\n{line}")
    text(folder / "data.yaml", "names: [cat, dog]\ntrain: list.txt")
    with pytest.raises(DataError, match=rf"list\.txt, line 2: .*{message}"):
        read(folder)


def test_home_in_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    text(folder / "other/data.yaml", f"path: ~/{folder.name}\n{TRAIN}")
    assert_right(read(folder / "other"))


def test_home_of_nobody_in_path(folder: Path) -> None:
    text(folder / "other/data.yaml", f"path: ~nobody-of-this-name/set\n{TRAIN}")
    with pytest.raises(DataError, match=r"`path` names .*~nobody-of-this-name/set, which is not a folder"):
        read(folder / "other")


@pytest.mark.parametrize("place", ["images", "images/set", "images/a/train"])
def test_labels_beside_images_below_a_folder_called_images(tmp_path: Path, place: str) -> None:
    """labelImg saves labels and classes.txt beside the images, whatever the folder is called."""
    pictures(tmp_path / place, tmp_path / place, "a", "b")
    text(tmp_path / place / "classes.txt", NAMES)
    assert_right(read(tmp_path / place, None))


def test_labels_of_a_folder_labels_come_first(tmp_path: Path) -> None:
    pictures(tmp_path / "images", tmp_path / "labels", "a", "b")
    text(tmp_path / "images/a.txt", "1 0.5 0.5 1 1\n")
    text(tmp_path / "classes.txt", NAMES)
    assert_right(read(tmp_path, None))


# -- names in another case or Unicode form -----------------------------------------------------------------------------

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
OTHER = "label_file_in_other_case_or_Unicode_form_than_the_image"


@pytest.mark.parametrize(
    ("image", "label"), [("IMG_1", "img_1"), ("a", "A"), (COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)]
)
def test_labels_called_otherwise_in_case_or_form(tmp_path: Path, image: str, label: str) -> None:
    pictures(tmp_path / "images", tmp_path / "labels", image)
    (tmp_path / f"labels/{image}.txt").rename(tmp_path / f"labels/{label}.txt")
    text(tmp_path / "classes.txt", NAMES)
    assert_right(read(tmp_path, None), 1, **{OTHER: 1})


def test_labels_that_may_be_of_several_images_are_not_taken(tmp_path: Path) -> None:
    """Two images for one file, two files for one image, and the file of an image that the list leaves out."""
    text(tmp_path / "data.yaml", "names: [cat, dog]\ntrain: list.txt\n")
    pictures(tmp_path / "images", tmp_path / "labels", "good", "aa", "AA", "bb", "cc", "CC")
    for file in ("aa", "AA", "bb"):
        (tmp_path / f"labels/{file}.txt").unlink()
    for file in ("Aa", "Bb", "BB"):
        text(tmp_path / f"labels/{file}.txt", LABELS)
    (tmp_path / "labels/cc.txt").unlink()
    text(tmp_path / "list.txt", "".join(f"images/{stem}.jpg\n" for stem in ("good", "aa", "AA", "bb", "cc")))
    dataset = read(tmp_path)
    assert {record.image_id: len(record) for record in dataset} == {"good": 2, "aa": 0, "AA": 0, "bb": 0, "cc": 0}
    assert dataset.repairs.counts["image without a label file"] == 4


@pytest.mark.parametrize(("written", "stored"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
@pytest.mark.parametrize("entry", ["images/{}", "images/{}/{}.jpg"])
def test_paths_in_another_unicode_form(tmp_path: Path, written: str, stored: str, entry: str) -> None:
    pictures(tmp_path / "images" / stored, tmp_path / "labels" / stored, stored)
    listed = entry.format(written, written)
    if listed.endswith(".jpg"):
        text(tmp_path / "list.txt", listed)
    text(tmp_path / "data.yaml", f"names: [cat, dog]\ntrain: {'list.txt' if listed.endswith('.jpg') else listed}\n")
    assert_right(read(tmp_path), 1, path_in_another_Unicode_form_than_the_file=1)


# -- any names in any layout -------------------------------------------------------------------------------------------

stems = st.lists(
    st.text("ab07 ._-[](){}&%#'é字🙂", min_size=1, max_size=12).filter(
        lambda stem: stem == stem.strip() and not stem.startswith(".") and not stem.endswith(".")
    ),
    min_size=1,
    max_size=4,
    unique_by=str.casefold,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=stems,
    layout=st.sampled_from(["folder", "list", "darknet", "flat"]),
    end=st.sampled_from(["\n", "\r\n"]),
    windows=st.booleans(),
)
def test_any_names_in_any_layout(tmp_path: Path, names: list[str], layout: str, end: str, windows: bool) -> None:
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    root = tmp_path / "set"
    images = root if layout == "flat" else root / ("obj" if layout == "darknet" else "images/train")
    pictures(images, root / "labels/train" if images.name == "train" else images, *names)
    slash = "\\" if windows else "/"
    entries = [str(images.relative_to(root) / f"{name}.jpg").replace("/", slash) for name in names]
    if layout == "folder":
        text(root / "data.yaml", f"names: [cat, dog]{end}train: images{slash}train{end}")
    elif layout == "list":
        text(root / "data.yaml", f"names: [cat, dog]{end}train: list.txt{end}")
        text(root / "list.txt", end.join(entries))
    elif layout == "darknet":
        text(root / "obj.data", f"names = data/obj.names{end}train = data/train.txt{end}")
        text(root / "obj.names", f"cat{end}dog{end}")
        text(root / "train.txt", end.join(entries) + end)
    else:
        text(root / "classes.txt", f"cat{end}dog{end}")
    dataset = read_yolo(root)
    assert sorted(dataset.image_ids) == sorted(names)  # type: ignore[type-var]
    for record in dataset:
        assert record.path.stem == record.image_id
        np.testing.assert_allclose(record.boxes, BOXES, atol=1e-4)
