"""What operating systems and notebooks leave in a folder of data is not data, wherever a folder is walked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.options import SourceOptions
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.predictions.foreign.voc_text import read_voc_detections
from openworld.records import Dataset, Record
from openworld.run.folder import has_begun
from openworld.runtime.folders import is_hidden, visible_files, visible_folders
from openworld.runtime.images import find_images
from ssl_backbones.images import labels_of
from ssl_backbones.probes.labelled import classes_of, from_folder

RESOURCE_FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        \xc8\xff"
"""How a ``._`` file begins (AppleDouble)."""


def litter(folder: Path, copied: Path) -> None:
    """What macOS, Windows, Jupyter and network drives leave beside a file of data."""
    stem, suffix = copied.stem, copied.suffix
    for name in (f"._{copied.name}", f"__MACOSX/._{copied.name}", ".DS_Store", "Thumbs.db", "desktop.ini"):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(RESOURCE_FORK)
    for name in (
        f".ipynb_checkpoints/{stem}-checkpoint{suffix}",
        f".Trash-1000/files/{stem}{suffix}",
        f"@eaDir/{copied.name}/SYNOPHOTO_THUMB_M{suffix}",
        f"$RECYCLE.BIN/S-1-5/$R01{suffix}",
        f"System Volume Information/copy{suffix}",
    ):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(copied.read_bytes())


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("._a.jpg", True),
        (".ipynb_checkpoints", True),
        ("__MACOSX", True),
        ("THUMBS.DB", True),
        ("Desktop.ini", True),
        ("a.jpg", False),
        ("_a.jpg", False),
        ("a._b.jpg", False),
        ("...a", True),
        ("__init__", False),
    ],
)
def test_names(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden


def test_images_below_a_folder_that_may_be_hidden_itself(tmp_path: Path) -> None:
    folder = tmp_path / ".data/.set"
    first = picture(folder / "a.jpg")
    picture(folder / "b/c.PNG")
    litter(folder, first)
    litter(folder / "b", first)
    assert [file.relative_to(folder).as_posix() for file in find_images(folder)] == ["a.jpg", "b/c.PNG"]
    hidden = picture(folder / "._named.jpg")
    assert find_images(hidden) == [hidden]


def test_walk_is_in_one_order_and_follows_no_link_to_a_folder(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/x/3.TXT", "c.txt", "c.md", "d.txt/e.txt"):
        text(tmp_path / "data" / name, "")
    (tmp_path / "data/again").symlink_to(tmp_path / "data/b")
    (tmp_path / "data/lost.txt").symlink_to(tmp_path / "nowhere")
    found = [file.relative_to(tmp_path / "data").as_posix() for file in visible_files(tmp_path / "data", (".txt",))]
    assert found == ["c.txt", "lost.txt", "a/x/3.TXT", "b/1.txt", "b/2.txt", "d.txt/e.txt"]
    flat = [file.name for file in visible_files(tmp_path / "data", (".txt", ".md"), deep=False)]
    assert flat == ["c.md", "c.txt", "lost.txt"]
    assert [folder.name for folder in visible_folders(tmp_path / "data")] == ["a", "again", "b", "d.txt"]
    assert not list(visible_files(tmp_path / "absent", (".txt",))) and not visible_folders(tmp_path / "absent")


@pytest.mark.parametrize("named", [False, True])
def test_yolo(tmp_path: Path, named: bool) -> None:
    image = picture(tmp_path / "images/train/a.jpg")
    label = text(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.5 0.4\n")
    if named:
        text(tmp_path / "data.yaml", "train: images/train\nnames: [red]\n")
    else:
        text(tmp_path / "classes.txt", "red\n")
    for place, copied in ((image.parent, image), (label.parent, label), (tmp_path, image)):
        litter(place, copied)
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path)), "train")
    assert [record.path for record in dataset] == [image] and not dataset.repairs.counts
    np.testing.assert_allclose(dataset[0].boxes, [[10, 9, 30, 21]], atol=1e-5)


XML = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>red</name>"
    "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


def test_voc(tmp_path: Path) -> None:
    image = picture(tmp_path / "JPEGImages/a.jpg")
    annotation = text(tmp_path / "Annotations/a.xml", XML)
    text(tmp_path / "ImageSets/Main/train.txt", "a\n")
    for place, copied in ((image.parent, image), (annotation.parent, annotation), (tmp_path, annotation)):
        litter(place, copied)
    litter(tmp_path / "ImageSets/Main", tmp_path / "ImageSets/Main/train.txt")
    for image_set in (None, "train"):
        dataset = read_dataset(SourceOptions(annotations=str(tmp_path), image_set=image_set))
        assert [record.path for record in dataset] == [image] and not dataset.repairs.counts
        assert dataset[0].boxes.tolist() == [[10, 5, 30, 20]]
    with pytest.raises(DataError, match=r"choose one of: train$"):
        read_dataset(SourceOptions(annotations=str(tmp_path), image_set="val"))


def test_voc_beside_its_images(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.jpg")
    annotation = text(tmp_path / "a.xml", XML)
    litter(tmp_path, image)
    litter(tmp_path, annotation)
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path)))
    assert [record.path for record in dataset] == [image]


def test_a_list_that_names_a_hidden_file_is_believed(tmp_path: Path) -> None:
    for name in (".scans/a", ".b"):
        picture(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", XML)
    listed = text(tmp_path / "list.txt", ".scans/a\n.b.jpg 1\n")
    dataset = read_dataset(SourceOptions(annotations=str(tmp_path), image_set=str(listed)))
    assert list(dataset.image_ids) == [".scans/a", ".b"]
    assert [record.path.relative_to(tmp_path).as_posix() for record in dataset] == [
        "JPEGImages/.scans/a.jpg",
        "JPEGImages/.b.jpg",
    ]
    picture(tmp_path / "yolo/images/.a.jpg")
    text(tmp_path / "yolo/labels/.a.txt", "0 0.5 0.5 0.5 0.4")
    text(tmp_path / "yolo/list.txt", "images/.a.jpg\n")
    text(tmp_path / "yolo/data.yaml", "train: list.txt\nnames: [red]\n")
    assert read_dataset(SourceOptions(annotations=str(tmp_path / "yolo")), "train").num_annotations == 1


def test_folders_of_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        for image in range(5):
            first = picture(tmp_path / f"{name}/{image}.jpg", 10 * number + image)
        litter(tmp_path / name, first)
        litter(tmp_path, first)
    paths = find_images(tmp_path)
    assert len(paths) == 10 and labels_of(paths) == [0] * 5 + [1] * 5
    assert classes_of(tmp_path, paths) == ["cat", "dog"]
    probe = from_folder(tmp_path, side=16, cache_megabytes=10)
    assert probe.labels.tolist() == [0] * 5 + [1] * 5 and (probe.train, probe.test) == (
        [0, 1, 2, 3, 5, 6, 7, 8],
        [4, 9],
    )


def test_detections_of_other_tools(tmp_path: Path) -> None:
    detections = text(tmp_path / "det/comp4_det_test_cat.txt", "7 0.5 1 1 10 5\n")
    litter(tmp_path / "det", detections)
    none = np.zeros(0)
    record = Record(7, tmp_path / "7.jpg", 40, 30, none.reshape(0, 4).astype("f4"), none.astype("i8"), none.astype("?"))
    dataset = Dataset.from_records(("cat",), [record])
    read = read_voc_detections(tmp_path / "det", dataset, LabelSpace.of([["cat"]], 1))
    assert read.boxes.tolist() == [[0, 0, 10, 5]]


def test_a_run_has_not_begun_because_somebody_looked_into_its_folder(tmp_path: Path) -> None:
    for name in ("task1/.DS_Store", "backbone/Thumbs.db", "task1/.ipynb_checkpoints/a.json"):
        text(tmp_path / name, "")
    assert not has_begun(tmp_path)
    text(tmp_path / "task1/metrics.json", "{}")
    assert has_begun(tmp_path)
