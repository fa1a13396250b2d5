"""Reads thousands of damaged annotation files; run by test_fuzz.py in a process of its own.

    python fuzz_readers.py FOLDER COCO_MUTATIONS VOC_MUTATIONS

Prints what came of them as JSON. Exits with 1, and says how, if a reader raises anything but an error of the package or
lets a box pass that a detector cannot use.
"""

from __future__ import annotations

import copy
import json
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openworld.data.boxes import MIN_SIDE
from openworld.data.formats.coco import read_coco
from openworld.data.formats.voc import read_voc
from openworld.data.splits import training_view
from openworld.errors import OpenWorldError
from openworld.labels import LabelSpace
from openworld.records import Dataset, check_files
from openworld.structures import Target

COCO: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 0, "file_name": "b.png", "width": 20, "height": 20},
        {"id": 9, "file_name": "c.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10.5, 20], "iscrowd": 0, "area": 210},
        {"id": 5, "image_id": 0, "category_id": 90, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 6, "image_id": 1, "category_id": 90, "bbox": [3, 3, 6.5, 7], "ignore": 1},
        {"id": 7, "image_id": 9, "category_id": 90, "bbox": [2, 2, 20, 20]},
    ],
}
VOC = """<?xml version="1.0"?>
<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult><part><name>head</name><bndbox><xmin>4</xmin></bndbox></part>
<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object></annotation>
"""
VALUES: list[Any] = [
    None, True, False, "", "7", "nan", "-inf", "x", "\ud800", "\0", "../a.png", "/a.png", "C:\\a.png", "a" * 300, -1, 0,
    1, 5e-324, 1e-45, 0.5, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 10**6, 2**63, 10**30, 10**400, [],
    {}, [1], [1, 2, 3, 4], [[1, 2, 3, 4]], {"id": 1},
]  # fmt: skip
BYTES = [
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"]",
    b'"',
    b",",
    b"-",
    b"e999",
    b"NaN",
    b"Infinity",
    b"<",
    b"&x;",
    b">",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a tree, except the root."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def damaged_tree(rng: random.Random) -> bytes:
    """A valid file with one to three values replaced, removed or repeated."""
    content = copy.deepcopy(COCO)
    for _ in range(rng.randint(1, 3)):
        *parents, last = rng.choice(list(places(content)))
        holder = content
        for key in parents:
            holder = holder[key]
        action = rng.random()
        if action < 0.15:
            del holder[last]
        elif action < 0.25 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        else:
            holder[last] = copy.deepcopy(rng.choice(VALUES))
    try:
        return json.dumps(content).encode()
    except ValueError:  # a whole number with more digits than Python converts
        return b"[" + b"9" * 5000 + b"]"


def repeated_key(rng: random.Random) -> bytes:
    """A valid file with one key given twice in an object."""
    text = json.dumps(COCO)
    keys = ["id", "file_name", "width", "image_id", "category_id", "bbox", "iscrowd", "name", "images", "annotations"]
    key = rng.choice(keys)
    starts = [place for place in range(len(text)) if text.startswith(f'"{key}"', place)]
    place = rng.choice(starts)
    try:
        return (text[:place] + f'"{key}": {json.dumps(rng.choice(VALUES))}, ' + text[place:]).encode()
    except ValueError:
        return text[:place].encode()


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits turned, bytes removed, put in, or repeated; the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1)
        action = rng.randrange(6)
        if action <= 1 and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif action == 2:
            del changed[place : place + rng.randint(1, 12)]
        elif action == 3:
            changed[place:place] = rng.choice(BYTES)
        elif action == 4:
            changed[place:place] = changed[place : place + rng.randint(1, 60)]
        elif rng.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def damaged_xml(rng: random.Random) -> bytes:
    """The text of one element replaced, or bytes as above."""
    if rng.random() < 0.5:
        return damaged_bytes(VOC.encode(), rng)
    values = [
        "",
        "nan",
        "inf",
        "-inf",
        "1e308",
        "-1e308",
        "5e-324",
        "9" * 400,
        "x",
        "-3",
        "0",
        " 7 ",
        "<a/>",
        "1,5",
        "&#0;",
    ]
    pieces = VOC.split("<")
    number = rng.choice([n for n, piece in enumerate(pieces) if ">" in piece and not piece.startswith(("/", "?"))])
    pieces[number] = pieces[number].split(">")[0] + ">" + rng.choice(values)
    return "<".join(pieces).encode()


def check(dataset: Dataset) -> None:
    """Raise if a detector could be handed a box that it cannot use."""
    for record in dataset:
        boxes = record.boxes
        limits = np.array([record.width, record.height] * 2)
        assert boxes.dtype == np.float32 and boxes.shape == (len(record), 4)
        assert record.width >= 1 and record.height >= 1
        assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= limits).all()
        assert ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all()
        assert ((record.categories >= 0) & (record.categories < len(dataset.categories))).all()
        assert len(record.ignore) == len(record.annotation_ids) == len(record)
        json.dumps([record.image_id, str(record.path), *record.annotation_ids]).encode()
    json.dumps([dataset.as_json(), dataset.categories], ensure_ascii=False, allow_nan=False).encode()
    if dataset.categories:
        for record, labels in training_view(dataset, LabelSpace((dataset.categories,), 1)):
            Target(torch.from_numpy(record.boxes), torch.from_numpy(labels), record.image_id)


def run(name: str, read: Callable[[bytes], Dataset], cases: Iterator[bytes]) -> Counter[str]:
    """Count what becomes of the cases; exit at the first that goes wrong."""
    outcomes: Counter[str] = Counter()
    for number, content in enumerate(cases):
        try:
            dataset = read(content)
            check(dataset)
            outcomes["repaired" if dataset.repairs.counts else "loaded"] += 1
        except OpenWorldError as error:
            assert "What to do:" in str(error) and error.where, f"{name} {number}: {error}"
            str(error).encode()
            outcomes["refused"] += 1
        except BaseException:
            traceback.print_exc()
            print(f"{name} {number}: {content!r}", file=sys.stderr)
            sys.exit(1)
    return outcomes


def main(folder: Path, coco_mutations: int, voc_mutations: int) -> None:
    (folder / "images").mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (folder / "voc" / name).mkdir(parents=True)
    for file in (
        folder / "images/a.png",
        folder / "images/b.png",
        folder / "images/c.png",
        folder / "voc/JPEGImages/a.png",
    ):
        Image.new("RGB", (40, 30)).save(file)
    rng = random.Random(0)
    whole = json.dumps(COCO).encode()

    def coco(content: bytes) -> Dataset:
        (folder / "set.json").write_bytes(content)
        return (
            check_files(read_coco(folder / "set.json"), folder)
            if rng.random() < 0.5
            else read_coco(folder / "set.json")
        )

    def voc(content: bytes) -> Dataset:
        (folder / "voc/Annotations/a.xml").write_bytes(content)
        dataset = read_voc(folder / "voc")
        return check_files(dataset, folder) if rng.random() < 0.5 else dataset

    makers = [damaged_tree, damaged_tree, repeated_key, lambda rng: damaged_bytes(whole, rng)]
    found = {
        "coco": run("coco", coco, (makers[number % 4](rng) for number in range(coco_mutations))),
        "voc": run("voc", voc, (damaged_xml(rng) for _ in range(voc_mutations))),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
