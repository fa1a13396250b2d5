"""Folders as annotation tools write them, with the file names that people use: every box lands on its own image."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from openworld.data.formats.read import read_dataset
from openworld.data.options import SourceOptions
from openworld.errors import DataError
from openworld.records import check_files

CLASSES = ("valve [open]", "Äpfel & Birnen", "007")
SIZE = (80, 64)
"""Width and height in pixels. Powers of two times five: fractions of them have few digits."""
Box = tuple[int, int, int, int, int]
"""Class, x1, y1, x2, y2."""
Labels = Mapping[str, Sequence[Box]]
"""The boxes of each image, by its name: a relative path with ``/``."""


@dataclass(frozen=True)
class Exporter:
    """A tool's layout.

    Args:
        write: writes the images and the annotations into a folder; returns what a user names as the annotations.
        folders: whether the layout keeps images in folders of their own.
        stems: whether two images may have one stem.
        suffixes: of the images that the tool writes.
    """

    write: Callable[[Path, Labels, str], Path]
    folders: bool = False
    stems: bool = False
    suffixes: tuple[str, ...] = (".jpg", ".png", ".JPG")


def draw(folder: Path, labels: Labels) -> None:
    """Write the images; the first pixel of each says which it is."""
    for number, name in enumerate(labels):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", SIZE, (40 * number, 10, 10))
        image.save(file, format="PNG")  # readers go by content; a JPEG would blur the number


def text(file: Path, lines: Sequence[str], end: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes("".join(f"{line}{end}" for line in lines).encode())
    return file


# -- COCO --------------------------------------------------------------------------------------------------------------


def coco(file: Path, labels: Labels, *, prefix: str = "", first: int = 1, root_class: bool = False) -> Path:
    """Write a COCO file; ``first`` is the first category id, ``root_class`` Roboflow's category 0 without objects."""
    width, height = SIZE
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    for number, (name, boxes) in enumerate(labels.items(), start=1):
        images.append({"id": number, "file_name": prefix + name, "width": width, "height": height})
        for label, x1, y1, x2, y2 in boxes:
            box = [x1, y1, x2 - x1, y2 - y1]
            record = {"id": len(annotations) + 1, "image_id": number, "category_id": label + first, "bbox": box}
            annotations.append({**record, "area": box[2] * box[3], "iscrowd": 0, "segmentation": []})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=first)]
    if root_class:
        categories.insert(0, {"id": 0, "name": "everything", "supercategory": "none"})
    content = {"images": images, "categories": categories, "annotations": annotations}
    return text(file, [json.dumps(content)], "\n")


def coco_official(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "train2017", labels)
    return coco(folder / "annotations" / "instances_train2017.json", labels)


def label_studio_coco(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images", labels)
    return coco(folder / "result.json", labels, prefix="images/", first=0)


def label_studio_windows(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images", labels)
    backslashes = {name.replace("/", "\\"): boxes for name, boxes in labels.items()}
    return coco(folder / "result.json", backslashes, prefix="images\\", first=0)


def cvat_coco(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images" / "default", labels)
    return coco(folder / "annotations" / "instances_default.json", labels)


def fiftyone_coco(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "data", labels)
    return coco(folder / "labels.json", labels)


def roboflow_coco(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "train", labels)
    return coco(folder / "train" / "_annotations.coco.json", labels, root_class=True)


def absolute_coco(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images", labels)
    return coco(folder / "set.json", labels, prefix=f"{folder.resolve()}/images/")


# -- YOLO --------------------------------------------------------------------------------------------------------------


def yolo_labels(folder: Path, labels: Labels, end: str) -> None:
    """Write one label file per image, empty where nothing is annotated."""
    width, height = SIZE
    for name, boxes in labels.items():
        lines = []
        for label, x1, y1, x2, y2 in boxes:
            values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(label), *(f"{value:.10g}" for value in values)]))
        text(folder / PurePosixPath(name).with_suffix(".txt"), lines, end)


def yaml_names() -> list[str]:
    return ["names:", *(f"  {number}: {json.dumps(name)}" for number, name in enumerate(CLASSES))]


def ultralytics(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images" / "train", labels)
    yolo_labels(folder / "labels" / "train", labels, end)
    return text(folder / "data.yaml", ["path: .", "train: images/train", *yaml_names()], end)


def ultralytics_windows(folder: Path, labels: Labels, end: str) -> Path:
    ultralytics(folder, labels, end)
    names = [f".\\images\\train\\{name}".replace("/", "\\") for name in labels]
    text(folder / "train.txt", names, "\r\n")
    return text(folder / "data.yaml", ["train: train.txt", *yaml_names()], "\r\n")


def roboflow_yolo(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "train" / "images", labels)
    yolo_labels(folder / "train" / "labels", labels, end)
    return text(folder / "data.yaml", ["train: ../train/images", f"nc: {len(CLASSES)}", *yaml_names()], end)


def label_studio_yolo(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images", labels)
    yolo_labels(folder / "labels", labels, end)
    text(folder / "classes.txt", CLASSES, end)
    return folder


def cvat_yolo(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "obj_train_data", labels)
    yolo_labels(folder / "obj_train_data", labels, end)
    text(folder / "train.txt", [f"data/obj_train_data/{name}" for name in labels], end)
    text(folder / "obj.names", CLASSES, end)
    lines = [f"classes = {len(CLASSES)}", "train = data/train.txt", "names = data/obj.names", "backup = backup/"]
    return text(folder / "obj.data", lines, end)


def cvat_ultralytics(folder: Path, labels: Labels, end: str) -> Path:
    ultralytics(folder, labels, end)
    text(folder / "train.txt", [f"images/train/{name}" for name in labels], end)
    return text(folder / "data.yaml", ["train: train.txt", *yaml_names(), "path: ."], end)


def fiftyone_yolo4(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "data", labels)
    yolo_labels(folder / "data", labels, end)
    text(folder / "images.txt", [f"data/{name}" for name in labels], end)
    text(folder / "obj.names", CLASSES, end)
    return folder


def fiftyone_yolo5(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images" / "train", labels)
    yolo_labels(folder / "labels" / "train", labels, end)
    text(folder / "dataset.yaml", [*yaml_names(), f"path: {folder}", "train: ./images/train/"], end)
    return folder


# -- Pascal VOC --------------------------------------------------------------------------------------------------------


def voc_xml(folder: Path, labels: Labels, end: str, *, file_folder: str = "") -> None:
    """Write one .xml per image; corners count from 1, the last pixel is part of the box."""
    for name, boxes in labels.items():
        lines = ["<annotation>", f"<filename>{escape(file_folder + name)}</filename>"]
        lines.append(f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>")
        for label, x1, y1, x2, y2 in boxes:
            corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
            box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
            lines += [f"<object><name>{escape(CLASSES[label])}</name>", f"<bndbox>{box}</bndbox></object>"]
        text(folder / PurePosixPath(name).with_suffix(".xml"), [*lines, "</annotation>"], end)


def voc(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "JPEGImages", labels)
    voc_xml(folder / "Annotations", labels, end)
    return folder


def cvat_voc(folder: Path, labels: Labels, end: str) -> Path:
    voc(folder, labels, end)
    stems = [PurePosixPath(name).with_suffix("").as_posix() for name in labels]
    text(folder / "ImageSets" / "Main" / "default.txt", stems, end)
    text(folder / "labelmap.txt", ["# label:color_rgb:parts:actions", *(f"{name}:0,0,0::" for name in CLASSES)], end)
    return folder


def roboflow_voc(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "train", labels)
    voc_xml(folder / "train", labels, end)
    text(folder / "train" / "README.roboflow.txt", ["exported"], end)
    return folder / "train"


def label_studio_voc(folder: Path, labels: Labels, end: str) -> Path:
    draw(folder / "images", labels)
    voc_xml(folder / "Annotations", labels, end)
    return folder


EXPORTERS = {
    "COCO": Exporter(coco_official, folders=True, stems=True),
    "Label Studio, COCO": Exporter(label_studio_coco, folders=True, stems=True),
    "Label Studio on Windows, COCO": Exporter(label_studio_windows, folders=True, stems=True),
    "CVAT, COCO": Exporter(cvat_coco, folders=True, stems=True),
    "FiftyOne, COCO": Exporter(fiftyone_coco, folders=True, stems=True),
    "Roboflow, COCO": Exporter(roboflow_coco, stems=True),
    "absolute names, COCO": Exporter(absolute_coco, folders=True, stems=True),
    "Ultralytics": Exporter(ultralytics, folders=True),
    "Ultralytics on Windows": Exporter(ultralytics_windows, folders=True),
    "Roboflow, YOLO": Exporter(roboflow_yolo),
    "Label Studio, YOLO": Exporter(label_studio_yolo),
    "CVAT, YOLO 1.1": Exporter(cvat_yolo, folders=True),
    "CVAT, Ultralytics YOLO": Exporter(cvat_ultralytics, folders=True),
    "FiftyOne, YOLOv4": Exporter(fiftyone_yolo4, folders=True),
    "FiftyOne, YOLOv5": Exporter(fiftyone_yolo5, folders=True),
    "VOC": Exporter(voc, folders=True, suffixes=(".jpg", ".png", ".JPG", ".bmp", ".tif")),
    "CVAT, VOC": Exporter(cvat_voc, folders=True),
    "Roboflow, VOC": Exporter(roboflow_voc),
    "Label Studio, VOC": Exporter(label_studio_voc),
}

STEMS = (
    "plain", "007", "0007", "two words", "a.b.c", "v1.0", "cam [1]", "(copy)", "{x}", "über", "café", "写真", "🚲",
    "#1", "a&b", "a'b", "50%", "x+y=z", "-minus", "a,b", "IMG_0001.rf.3f2a", "train.txt", "images", "labels", "~tilde",
    "a;b", "1e3", "no",
)  # fmt: skip
FOLDERS = ("", "", "day 1/", "a/b/", "2024.05/", "[x]/", "007/")


@st.composite
def labelled(draw_from: st.DrawFn, exporter: Exporter) -> dict[str, list[Box]]:
    """One to four images with names of the kind that the layout allows, and up to three boxes each."""
    unique = None if exporter.stems else lambda name: PurePosixPath(name).with_suffix("").as_posix()
    name = st.builds(
        "{}{}{}".format,
        st.sampled_from(FOLDERS if exporter.folders else ("",)),
        st.sampled_from(STEMS),
        st.sampled_from(exporter.suffixes),
    )
    names = draw_from(st.lists(name, min_size=1, max_size=4, unique_by=unique or str))
    found = {}
    for one in names:
        boxes = []
        for _ in range(draw_from(st.integers(0, 3))):
            x1, y1 = draw_from(st.integers(0, 60)), draw_from(st.integers(0, 50))
            x2, y2 = draw_from(st.integers(x1 + 2, SIZE[0])), draw_from(st.integers(y1 + 2, SIZE[1]))
            boxes.append((draw_from(st.integers(0, len(CLASSES) - 1)), x1, y1, x2, y2))
        found[one] = boxes
    if not any(found.values()):  # a set without a single box is another matter
        found[names[0]] = [(0, 1, 2, 21, 32)]
    return found


def found_boxes(annotations: Path) -> dict[int, list[tuple[str, list[float]]]]:
    """Class names and boxes of each image, by the number in its first pixel."""
    dataset = check_files(read_dataset(SourceOptions(annotations=str(annotations)), "train"), str(annotations))
    found = {}
    for record in dataset:
        with Image.open(record.path) as image:
            number = image.convert("RGB").tobytes()[0] // 40
        boxes = [[round(value, 2) for value in box] for box in record.boxes.tolist()]
        found[number] = sorted(zip((dataset.categories[k] for k in record.categories), boxes, strict=True))
    assert len(found) == len(dataset)
    return found


def meant_boxes(labels: Labels) -> dict[int, list[tuple[str, list[float]]]]:
    return {
        number: sorted((CLASSES[label], [float(value) for value in box]) for label, *box in boxes)
        for number, boxes in enumerate(labels.values())
    }


def strew(folder: Path) -> None:
    """Leave behind what file managers and notebooks leave in every folder below."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "Thumbs.db", "._a.jpg", "._a.txt", "._a.xml"):
            (place / name).write_bytes(b"\0\5\x16\7")
        for file in [path for path in place.iterdir() if path.suffix in (".jpg", ".png", ".txt", ".xml")][:2]:
            if not file.name.startswith("."):
                copy = place / ".ipynb_checkpoints" / f"{file.stem}-checkpoint{file.suffix}"
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(file.read_bytes())


@pytest.mark.parametrize("tool", EXPORTERS)
@settings(max_examples=12, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_every_box_lands_on_its_image(tool: str, data: st.DataObject) -> None:
    exporter = EXPORTERS[tool]
    labels = data.draw(labelled(exporter))
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    strewn, linked = data.draw(st.booleans()), data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set of mine [v1.0]"
        folder.mkdir()
        annotations = exporter.write(folder, labels, end)
        if strewn:
            strew(folder)
        if linked:  # reached through a symbolic link to the whole set
            (Path(name) / "link").symlink_to(folder, target_is_directory=True)
            annotations = Path(name) / "link" / annotations.relative_to(folder)
        assert found_boxes(annotations) == meant_boxes(labels)


@pytest.mark.parametrize("tool", [name for name, exporter in EXPORTERS.items() if not name.startswith("absolute")])
def test_linked_images(tool: str, tmp_path: Path) -> None:
    """Each image and each folder of images is a symbolic link to a store elsewhere."""
    labels = {"one.jpg": [(0, 1, 2, 21, 32)], "two.png": [(1, 5, 5, 30, 40), (2, 0, 0, 80, 64)]}
    folder, store = tmp_path / "set", tmp_path / "store"
    store.mkdir()
    annotations = EXPORTERS[tool].write(folder, labels, "\n")
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png"))):
        moved = file.rename(store / f"{number}.bin")
        file.symlink_to(moved)
    assert found_boxes(annotations) == meant_boxes(labels)


@pytest.mark.parametrize("tool", [name for name, exporter in EXPORTERS.items() if not exporter.stems])
def test_one_stem_with_two_suffixes(tool: str, tmp_path: Path) -> None:
    """Where two images would share their labels, both are named; the boxes of one never land on the other."""
    labels = {"a.jpg": [(0, 1, 2, 21, 32)], "b.jpg": [(1, 5, 5, 30, 40)]}
    annotations = EXPORTERS[tool].write(tmp_path, labels, "\n")
    file = next(path for path in tmp_path.rglob("a.jpg"))
    Image.new("RGB", SIZE, (120, 10, 10)).save(file.with_suffix(".png"))
    try:
        found = found_boxes(annotations)
    except DataError as error:
        assert "a.jpg" in str(error) and "a.png" in str(error)
    else:
        assert {number: boxes for number, boxes in found.items() if number < 3} == meant_boxes(labels)
        assert not found.get(3)
