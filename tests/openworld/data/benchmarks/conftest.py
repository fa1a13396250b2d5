"""A tiny M-OWODB: two images of VOC 2007 for training, one of VOC 2012, five of COCO, in their standard folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openworld.data.benchmarks import lists as lists_module
from openworld.data.benchmarks import reader
from openworld.data.benchmarks.lists import BENCHMARKS, Benchmark, ImageList, md5_of_ids
from openworld.data.benchmarks.packing import pack
from openworld.data.options import BenchmarkOptions
from openworld.data.schedules import COCO_TO_VOC, SCHEDULES

COCO_9, COCO_25, COCO_30 = "000000000009", "000000000025", "000000000030"
COCO_139, COCO_285 = "000000000139", "000000000285"
LISTS = {
    "t1_train": ["000002", "000003", "2008_000001"],
    "t2_train": [COCO_30, COCO_9],
    "t3_train": [COCO_25, COCO_9],
    "t4_train": [COCO_30],
    "t2_ft": [COCO_9, "000002"],
    "all_task_test": ["000001", COCO_139, COCO_285, COCO_139],
    "all_task_val": ["000002", COCO_9],
}
VOC = {  # id: (class, difficult, xmin, ymin, xmax, ymax)
    "VOC2007": {
        "000001": [("person", 0, 1, 1, 10, 20), ("cat", 1, 5, 5, 30, 30)],
        "000002": [("dog", 0, 2, 3, 20, 20)],
        "000003": [("cat", 0, 1, 1, 32, 24), ("person", 0, 4, 4, 9, 9)],
    },
    "VOC2012": {"2008_000001": [("person", 0, 1, 1, 12, 12)]},
}
COCO = {  # image: (class as COCO spells it, crowd, x, y, width, height)
    "train2017": {
        9: [("truck", 0, 1.4, 2.6, 10.2, 8.0), ("person", 0, 3, 3, 5, 5), ("tv", 0, 10, 10, 6, 6)],
        25: [("frisbee", 0, 0, 0, 12, 12), ("kite", 1, 0, 0, 30, 20)],
        30: [("truck", 1, 0, 0, 20, 20), ("bench", 0, 1, 1, 9, 9), ("bed", 0, 2, 2, 8, 8)],
        34: [("person", 0, 0, 0, 20, 20), ("truck", 0, 0, 0, 9, 9)],  # on no list
    },
    "val2017": {
        139: [("truck", 0, 0, 0, 10, 10), ("truck", 1, 0, 0, 30, 20), ("couch", 0, 4, 4, 8, 8)],
        285: [("person", 0, 2, 2, 9, 9), ("frisbee", 0, 8, 8, 7, 7)],
        632: [("person", 0, 2, 2, 9, 9)],  # on no list
    },
}
WIDTH, HEIGHT = 32, 24


@dataclass(frozen=True)
class Tiny:
    """Where the tiny benchmark lies."""

    root: Path

    def options(self, **fields: object) -> BenchmarkOptions:
        return BenchmarkOptions(**{"name": "m_owodb", "root": str(self.root), "cache": False, **fields})  # type: ignore[arg-type]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    every = sorted({image_id for ids in LISTS.values() for image_id in ids})
    stored = {f"m_owodb/{name}": ids for name, ids in LISTS.items()} | {
        "s_owodb/test": [COCO_139, COCO_285],
        "voc/trainval": ["000002", "000003"],
        "m_owodb/t1_known_test": ["000001"],
    }
    packed = tmp_path / "lists.xz"
    packed.write_bytes(pack(every, stored))
    monkeypatch.setattr(lists_module, "PACKED", packed)

    def table(stored_names: dict[str, str]) -> dict[str, ImageList]:
        return {
            name: ImageList(name, key, len(stored[key]), len(set(stored[key])), md5_of_ids(stored[key]))
            for name, key in stored_names.items()
        }

    trains = ("t1_train", "t2_train", "t3_train", "t4_train")
    fakes = (
        Benchmark(
            "m_owodb",
            trains,
            "all_task_test",
            "all_task_val",
            ("", "t2_ft", "", ""),
            table({name: f"m_owodb/{name}" for name in LISTS}),
        ),
        Benchmark("s_owodb", (), "test", None, (), table({"test": "s_owodb/test"})),
        Benchmark(
            "voc_10_10",
            ("trainval", "trainval"),
            "test",
            None,
            ("", ""),
            table({"trainval": "voc/trainval", "test": "m_owodb/t1_known_test"}),
        ),
    )
    for fake in fakes:
        monkeypatch.setitem(BENCHMARKS, fake.name, fake)  # type: ignore[arg-type]
    root = tmp_path / "datasets"
    write_voc(root)
    write_coco(root)
    for function in (lists_module._stored, reader._val2017):
        function.cache_clear()
    yield Tiny(root)
    for function in (lists_module._stored, reader._val2017):
        function.cache_clear()


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def write_voc(root: Path) -> None:
    for year, images in VOC.items():
        folder = root / "VOCdevkit" / year
        (folder / "Annotations").mkdir(parents=True)
        for image_id, objects in images.items():
            write_image(folder / "JPEGImages" / f"{image_id}.jpg")
            text = "".join(
                f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin>"
                f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{min(y2, HEIGHT)}</ymax></bndbox></object>"
                for name, difficult, x1, y1, x2, y2 in objects
            )
            size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
            (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{size}{text}</annotation>")


def write_coco(root: Path) -> None:
    to_coco = {new: old for old, new in COCO_TO_VOC.items()}
    names = sorted(to_coco.get(name, name) for task in SCHEDULES["m_owodb"].tasks for name in task)
    assert len(names) == 80
    (root / "coco" / "annotations").mkdir(parents=True)
    for source, images in COCO.items():
        annotations = [
            {"image_id": image, "category_id": names.index(name), "bbox": box, "iscrowd": crowd}
            for image, objects in images.items()
            for name, crowd, *box in objects
        ]
        content = {
            "images": [
                {"id": image, "file_name": f"{image:012d}.jpg", "width": WIDTH, "height": HEIGHT} for image in images
            ],
            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        }
        (root / "coco" / "annotations" / f"instances_{source}.json").write_text(json.dumps(content))
        for image in images:
            write_image(root / "coco" / source / f"{image:012d}.jpg")
