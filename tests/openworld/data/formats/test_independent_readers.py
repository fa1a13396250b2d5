"""The readers beside pycocotools and torchvision: the same images, boxes, classes, difficult and crowd flags.

The oracles apply no policy to boxes, so the expected boxes are theirs after the policy's words: cut at the border of
the image, and left out where less than a pixel remains.
"""

from __future__ import annotations

import contextlib
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CocoDetection, VOCDetection

from openworld.data.formats.coco import read_coco
from openworld.data.formats.coco_writer import write_coco
from openworld.data.formats.voc import read_voc
from openworld.data.loader import load_record

NAMES = ["cat", "dog", "zebra", "traffic light"]


def clipped(corners: list[float], width: int, height: int) -> list[float] | None:
    x1, y1, x2, y2 = corners
    box = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
    fits = box[2] - box[0] >= 1 and box[3] - box[1] >= 1
    return [float(np.float32(value)) for value in box] if fits else None


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    images, annotations = [], []
    (tmp_path / "images").mkdir()
    for image_id in rng.permutation(24).tolist():
        width, height = (int(side) for side in rng.integers(20, 60, 2))
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{image_id:03d}.jpg")
        images.append({"id": image_id, "file_name": f"{image_id:03d}.jpg", "width": width, "height": height})
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = (rng.uniform(-6, 25, 2).round(2).tolist()) + rng.uniform(0.3, 40, 2).round(2).tolist()
            annotations.append(
                {
                    "id": 1000 - len(annotations),
                    "image_id": image_id,
                    "category_id": int(rng.choice([1, 7, 18, 90])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(rng.random() < 0.3),
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip([90, 1, 18, 7], NAMES, strict=True)]
    order = rng.permutation(len(annotations)).tolist()
    content = {"images": images, "categories": categories, "annotations": [annotations[place] for place in order]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    return tmp_path


def pycoco_rows(path: Path) -> dict[Any, list[tuple[Any, ...]]]:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    found: dict[Any, list[tuple[Any, ...]]] = {}
    for image_id in coco.getImgIds():
        image, rows = coco.loadImgs(image_id)[0], []
        for entry in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            x, y, width, height = entry["bbox"]
            box = clipped([x, y, x + width, y + height], image["width"], image["height"])
            name = coco.loadCats(entry["category_id"])[0]["name"]
            if box is not None:
                rows.append((entry["id"], box, name, bool(entry["iscrowd"]), bool(entry.get("ignore", 0))))
        found[image_id] = rows
    return found


def test_coco_beside_pycocotools(coco_folder: Path) -> None:
    dataset = read_coco(coco_folder / "set.json")
    expected = pycoco_rows(coco_folder / "set.json")
    assert set(expected) == set(dataset.position_of) and len(dataset) == 24
    assert sum(map(len, expected.values())) == dataset.num_annotations >= 30
    assert dataset.repairs.counts["clipped to the image"] >= 5
    for image_id, rows in expected.items():
        record = dataset.find(image_id)
        names = [dataset.categories[number] for number in record.categories]
        columns = (record.annotation_ids, record.boxes.tolist(), names, record.crowd.tolist(), record.ignore.tolist())
        assert list(zip(*columns, strict=True)) == [(*row[:4], row[3]) for row in rows]


def test_pycocotools_reads_what_is_written(coco_folder: Path) -> None:
    dataset = read_coco(coco_folder / "set.json")
    write_coco(coco_folder / "again.json", dataset, coco_folder / "images")
    found, before = pycoco_rows(coco_folder / "again.json"), pycoco_rows(coco_folder / "set.json")
    for image_id, rows in before.items():
        assert [(row[0], row[2:4]) for row in found[image_id]] == [(row[0], row[2:4]) for row in rows]
        np.testing.assert_allclose([row[1] for row in found[image_id]], [row[1] for row in rows], atol=1e-5)


def test_pixels_beside_coco_detection(coco_folder: Path) -> None:
    dataset = read_coco(coco_folder / "set.json")
    with contextlib.redirect_stdout(io.StringIO()):
        peer = CocoDetection(str(coco_folder / "images"), str(coco_folder / "set.json"))
    for position, image_id in enumerate(peer.ids):
        image, _ = peer[position]
        assert torch.equal(load_record(dataset.find(image_id)), torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(4)
    base = tmp_path / "VOCdevkit/VOC2007"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    stems = [f"{number:06d}" for number in rng.permutation(20).tolist()]
    for stem in stems:
        width, height = (int(side) for side in rng.integers(20, 60, 2))
        Image.new("RGB", (width, height)).save(base / f"JPEGImages/{stem}.jpg")
        objects = ""
        for _ in range(int(rng.integers(0, 5))):
            x1, y1 = rng.integers(1, 19, 2).tolist()
            x2, y2 = (x1 + int(rng.integers(0, 50)), y1 + int(rng.integers(0, 50)))
            hard = f"<difficult>{int(rng.random() < 0.4)}</difficult>" if rng.random() < 0.8 else ""
            part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>" if rng.random() < 0.3 else ""
            objects += (
                f"<object><name>{rng.choice(NAMES)}</name>{hard}<bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin>"
                f"<ymin>{y1}.0</ymin><ymax>{y2}</ymax></bndbox>{part}</object>"
            )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{stem}.jpg</filename>{size}{objects}</annotation>"
        (base / f"Annotations/{stem}.xml").write_text(text)
    (base / "ImageSets/Main/trainval.txt").write_text("\n".join(stems[:15]) + "\n")
    return tmp_path


def test_voc_beside_torchvision(voc_root: Path) -> None:
    peer = VOCDetection(voc_root, year="2007", image_set="trainval", download=False)
    dataset = read_voc(voc_root / "VOCdevkit/VOC2007", image_set="trainval")
    assert [str(record.path) for record in dataset] == peer.images and len(peer) == 15
    total = difficult = 0
    for file, record in zip(peer.targets, dataset, strict=True):
        parsed = peer.parse_voc_xml(ElementTree.parse(file).getroot())["annotation"]
        size = (int(parsed["size"]["width"]), int(parsed["size"]["height"]))
        rows = []
        for entry in parsed.get("object", []):
            x1, y1, x2, y2 = (float(entry["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax"))
            box = clipped([x1 - 1, y1 - 1, x2, y2], *size)
            if box is not None:
                rows.append((box, entry["name"], entry.get("difficult", "0") == "1"))
        names = [dataset.categories[number] for number in record.categories]
        assert (record.width, record.height) == size
        assert list(zip(record.boxes.tolist(), names, record.ignore.tolist(), strict=True)) == rows
        total, difficult = total + len(rows), difficult + sum(row[2] for row in rows)
    assert total == dataset.num_annotations >= 15 and difficult >= 3
