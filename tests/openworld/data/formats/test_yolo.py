"""YOLO data sets: both layouts, every kind of defect, and boxes worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.formats.yolo import label_file, read_yolo
from openworld.data.options import DataOptions, SourceOptions
from openworld.errors import ConfigError, DataError
from openworld.records import Dataset, check_files

SIZE = (100, 50)


def image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """data.yaml with two sets: train/a (two objects), train/b (none), test/a (one)."""
    for name in ("train/a", "train/b", "test/a"):
        image(tmp_path / "images" / f"{name}.jpg")
    text(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.2 0.4\n\n1 0.1 0.2 0.2 0.4\n")
    text(tmp_path / "labels/train/b.txt", "")
    text(tmp_path / "labels/test/a.txt", "\ufeff1 0.5 0.5 1 1")
    text(tmp_path / "data.yaml", yaml.safe_dump({"train": "images/train", "test": "images/test", "names": NAMES}))
    return tmp_path


NAMES = ["cat", "dog"]


def read(folder: Path, image_set: str | None = "train") -> Dataset:
    return read_dataset(SourceOptions(annotations=str(folder), image_set=image_set))


def test_boxes_by_hand(folder: Path) -> None:
    dataset = read(folder)
    assert dataset.categories == ("cat", "dog")
    first, second = dataset
    assert (first.image_id, first.width, first.height) == ("a", 100, 50)
    np.testing.assert_allclose(first.boxes, [[40, 15, 60, 35], [0, 0, 20, 20]], atol=1e-4)
    assert first.categories.tolist() == [0, 1]
    assert first.annotation_ids == ("a/1", "a/3")
    assert (second.image_id, len(second), dict(dataset.repairs.counts)) == ("b", 0, {})
    np.testing.assert_allclose(read(folder, "test")[0].boxes, [[0, 0, 100, 50]])


@pytest.mark.parametrize("names", [{0: "cat", 1: "dog"}, [" cat ", "dog"]])
def test_names_as_list_or_mapping(folder: Path, names: object) -> None:
    text(folder / "data.yaml", yaml.safe_dump({"train": "images/train", "names": names}))
    assert read(folder, None).categories == ("cat", "dog")  # one set: it need not be named
    assert read(folder / "data.yaml", None).num_annotations == 2


def test_folder_with_classes_txt(folder: Path) -> None:
    (folder / "data.yaml").unlink()
    text(folder / "labels/classes.txt", "cat\ndog\n")
    assert [record.image_id for record in read(folder)] == ["a", "b"]
    everything = read(folder, None)
    assert [record.image_id for record in everything] == ["images/test/a", "images/train/a", "images/train/b"]
    text(folder / "val.txt", f"images/test/a.jpg\n{folder.resolve()}/images/train/a.jpg\n./images/test/a.jpg\n")
    listed = read(folder, str(folder / "val.txt"))
    assert [(record.image_id, record.listed) for record in listed] == [
        ("images/test/a", 2),
        ("images/train/a", 1),
    ]
    assert listed.repairs.counts == {"image listed again": 1}


def test_lists_folders_and_stray_dots(folder: Path) -> None:
    text(folder / "train.txt", "images/train/b.jpg\n\nimages/train/a.jpg\n")
    sets = {"train": ["train.txt", "../images/test"], "names": NAMES}
    text(folder / "data.yaml", yaml.safe_dump(sets))
    dataset = read(folder)
    assert [record.image_id for record in dataset] == ["images/train/b", "images/train/a", "images/test/a"]
    assert dataset.repairs.counts == {"../ left out of a folder": 1}


def test_polygon_becomes_its_box(folder: Path) -> None:
    text(folder / "labels/train/b.txt", "1 0.1 0.2 0.5 0.8 0.3 0.1")
    dataset = read(folder)
    np.testing.assert_allclose(dataset[1].boxes, [[10, 5, 50, 40]], atol=1e-4)
    assert dataset.repairs.counts == {"polygon turned into its box": 1}


MAN = "0 0.5 0.5 0.2 0.4 0.45 0.35{0} 0.55 0.35{0} 0.5 0.6{0}"
"""A box of [40, 15, 60, 35] and three keypoints in it; ``{0}`` is their visibility."""


@pytest.mark.parametrize(
    ("shape", "visibility"), [("[3, 2]", ""), ("[3, 3]", " 2"), ("[3, 3]", " 1"), (None, " 2")], ids=str
)
def test_pose_labels_give_their_boxes(folder: Path, shape: str | None, visibility: str) -> None:
    text(folder / "labels/train/b.txt", MAN.format(visibility))
    declared = "" if shape is None else f"kpt_shape: {shape}\n"
    text(folder / "data.yaml", f"{declared}train: images/train\nnames: [cat, dog]\n")
    dataset = read(folder)
    np.testing.assert_allclose(dataset[1].boxes, [[40, 15, 60, 35]], atol=1e-4)
    assert dataset.repairs.counts == {"keypoints left out": 1}


@pytest.mark.parametrize(
    "line",
    [
        MAN.format(""),  # nothing says that these are keypoints
        "0 0.5 0.5 0.25 0.25 0.91 1",  # score and track id
        "0 0.5 0.5 0.25 0.25 0.91 2",
        "0 0.2 0.2 0.3 0.2 0.3 0.3 0.2 0.3 0.91 1",  # the same after an oriented box
    ],
)
def test_lines_that_are_no_polygons_for_certain_are_refused(folder: Path, line: str) -> None:
    text(folder / "labels/train/b.txt", line)
    with pytest.raises(DataError, match=r"b\.txt, line 1: ") as caught:
        read(folder)
    assert caught.match("kpt_shape|delete")


def test_kpt_shape_null_says_polygons(folder: Path) -> None:
    text(folder / "labels/train/b.txt", "0 0.5 0.5 0.25 0.25 0.6 0.5")
    with pytest.raises(DataError, match="a triangle, or a box with a score and a track id"):
        read(folder)
    text(folder / "data.yaml", "{kpt_shape: null, train: images/train, names: [cat, dog]}")
    np.testing.assert_allclose(read(folder)[1].boxes, [[25, 12.5, 60, 25]], atol=1e-4)


def test_labels_beside_images(tmp_path: Path) -> None:
    image(tmp_path / "photos/x.png")
    text(tmp_path / "photos/x.txt", "0 0.5 0.5 0.5 0.5")
    text(tmp_path / "data.yaml", "{train: photos, names: [cat]}")
    assert read(tmp_path).num_annotations == 1
    assert label_file(Path("images/a/images/b/c.jpg")) == Path("images/a/labels/b/c.txt")


def test_counted_repairs(folder: Path) -> None:
    text(folder / "labels/train/a.txt", "0 nan 0.5 0.2 0.4\n7 0.5 0.5 0.1 0.1\n0 0.95 0.5 0.2 0.4\n1 0.5 0.5 -0.2 0.4")
    (folder / "labels/train/b.txt").unlink()
    text(folder / "labels/train/ghost.txt", "0 0.5 0.5 0.2 0.4")
    (folder / "images/train/c.jpg").write_bytes(b"")
    text(folder / "labels/train/c.txt", "0 0.5 0.5 0.2 0.4")
    dataset = read(folder)
    np.testing.assert_allclose(dataset[0].boxes, [[85, 15, 100, 35]], atol=1e-4)
    assert dataset[0].annotation_ids == ("a/3",)
    assert dataset.repairs.counts == {
        "dropped: coordinate not finite": 1,
        "dropped: class number that nothing has": 1,
        "dropped: inverted": 1,
        "clipped to the image": 1,
        "image without a label file": 1,
        "label file without an image": 1,
        "dropped: image whose size cannot be read": 1,
    }
    assert any("a.txt, line 1" in example for example in dataset.repairs.examples)


def test_lists_that_share_a_folder_leave_no_stray_labels(folder: Path) -> None:
    text(folder / "list.txt", "images/train/a.jpg")
    text(folder / "data.yaml", yaml.safe_dump({"train": "list.txt", "names": NAMES}))
    assert read(folder).repairs.counts == {}


def test_two_classes_of_one_name(folder: Path) -> None:
    text(folder / "data.yaml", yaml.safe_dump({"train": "images/train", "names": ["cat", "cat"]}))
    dataset = read_yolo(folder, image_set="train")
    assert dataset.categories == ("cat",)
    assert dataset[0].categories.tolist() == [0, 0]
    assert dataset.repairs.counts == {"categories of one name merged": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", r"a\.txt, line 2: has 4 fields"),
        ("0 0.5 0.5 0.2 0.2 0.9", "a sixth field is a score"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 8 fields"),
        ("0 0.5 x 0.2 0.2", r"line 2: holds 'x', which is not a number"),
        ("cat 0.5 0.5 0.2 0.2", "holds 'cat', which is not a number"),
        ("0.5 0.5 0.5 0.2 0.2", "the class is '0.5'"),
        ("nan 0.5 0.5 0.2 0.2", "the class is 'nan'"),
        ("0 50 25 20 10", "holds 50, which is not a fraction"),
    ],
)
def test_lines_that_cannot_be_used(folder: Path, line: str, message: str) -> None:
    text(folder / "labels/train/a.txt", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("[1", "cannot be read as YAML"),
        ("[1]", "holds a list, not a mapping"),
        ("train: images/train", "`names` is None"),
        ("{train: images/train, names: {0: cat, 2: dog}}", r"the numbers in `names` are \[0, 2\]"),
        ("{train: images/train, names: [cat, null]}", "the name of class 1 is None"),
        ("{test: images/test, names: [cat, dog]}", "has no set 'train'"),
        ("{train: images/none, names: [cat, dog]}", "does not exist"),
        ("{train: none.txt, names: [cat, dog]}", "the list of images does not exist"),
        ("{train: up.txt, names: [cat, dog]}", r"up\.txt, line 1: file name '\.\./x\.jpg' leaves the folder"),
        ("{train: far.txt, names: [cat, dog]}", "leaves the folder"),
        ("{train: images/train, path: nowhere, names: [cat, dog]}", "which is not a folder"),
        ("{train: 3, names: [cat, dog]}", "`train` holds 3"),
    ],
)
def test_descriptions_that_cannot_be_used(folder: Path, description: str, message: str) -> None:
    text(folder / "up.txt", "../x.jpg")
    text(folder / "far.txt", "/far/away/x.jpg")
    text(folder / "data.yaml", description)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert caught.value.remedy


def test_sets_that_cannot_be_told(folder: Path) -> None:
    with pytest.raises(DataError, match="which of its sets") as caught:
        read(folder, None)
    assert "train, test" in str(caught.value)
    with pytest.raises(DataError, match=r"has no meaning beside a data\.yaml"):
        read_yolo(folder, folder / "images", "train")
    (folder / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"neither data\.yaml nor classes\.txt"):
        read(folder)


def test_shared_and_absent_labels(folder: Path) -> None:
    image(folder / "images/train/a.png")
    with pytest.raises(DataError, match=r"share a\.txt"):
        read(folder)
    (folder / "images/train/a.png").unlink()
    (folder / "labels/test/a.txt").unlink()
    with pytest.raises(DataError, match="none of its 1 images has a label file"):
        read(folder, "test")


def test_images_of_a_list_that_are_missing(folder: Path) -> None:
    listed = text(folder / "gone.txt", "images/train/a.jpg\nimages/train/gone.jpg")
    text(folder / "data.yaml", "{train: gone.txt, names: [cat, dog]}")
    dataset = read(folder)
    assert [record.image_id for record in dataset] == ["a"]
    assert dataset.dropped_files == (str(folder / "images/train/gone.jpg"),)
    assert dataset.repairs.counts["dropped: image whose size cannot be read"] == 1
    with pytest.raises(DataError, match=r"1 of 2 images do not exist: .*gone\.jpg"):
        check_files(dataset, listed)
    (folder / "images/train/a.jpg").unlink()
    with pytest.raises(DataError, match=r"none of its 2 images can be read, such as .*a\.jpg"):
        read(folder)


def test_role_names_the_set(folder: Path) -> None:
    def ids(role: str | None, **settings: str) -> list[int | str]:
        return list(read_dataset(SourceOptions(annotations=str(folder), **settings), role).image_ids)  # type: ignore[arg-type]

    assert ids("test") == ["a"] and ids("train") == ["a", "b"]
    assert ids("test", image_set="train") == ["a", "b"]
    with pytest.raises(DataError, match="which of its sets"):
        ids("val")
    (folder / "data.yaml").unlink()
    text(folder / "classes.txt", "cat\ndog\n")
    assert ids("train") == ["a", "b"]
    assert len(ids("val")) == len(ids(None)) == 3


def test_schedule_of_a_configuration_from_a_file(tmp_path: Path) -> None:
    path = text(tmp_path / "schedule.yaml", "tasks: [[cat], [dog]]\nrename: {tv: tvmonitor, kitty: cat}")
    options = DataOptions(tasks=str(path), rename={"tv": "screen"})
    assert options.tasks == [["cat"], ["dog"]]
    assert options.rename == {"tv": "screen", "kitty": "cat"}
    with pytest.raises(ConfigError, match="there is no such file"):
        DataOptions(tasks=str(tmp_path / "none.yaml"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(
        st.one_of(st.floats(width=64), st.sampled_from([0.0, 0.5, 1.0, 1e308, 5e-324, -0.5])), min_size=4, max_size=4
    )
)
def test_any_numbers_load_repair_or_raise(folder: Path, values: list[float]) -> None:
    text(folder / "labels/train/a.txt", "0 " + " ".join(repr(value) for value in values))
    try:
        dataset = read(folder)
    except DataError as error:
        assert "line 1" in str(error)
        return
    boxes = dataset[0].boxes
    assert np.isfinite(boxes).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    assert (boxes >= 0).all() and (boxes <= [100, 50, 100, 50]).all()
