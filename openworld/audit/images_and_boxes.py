"""Check annotated images: counts, sizes, suspicious boxes, unreadable files, duplicates.

:mod:`openworld.audit.split` asks what a split does to scores; this module asks whether the data are what their owner
thinks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from openworld.audit.duplicates import (
    HARM,
    MAX_DISTANCE,
    PAIRS,
    Look,
    file_contents,
    identical_files,
    look_of,
    similar_images,
)
from openworld.audit.findings import (
    by_gravity,
    counted,
    has_or_have,
    is_or_are,
    listed,
    make_finding,
    shown,
)
from openworld.data.images import is_turned, load_image
from openworld.data.records import Dataset, Record
from openworld.data.splits import check_schedule
from openworld.errors import DataError
from openworld.runtime.runlog import progress_bar

TINY_SIDE = 4.0
"""Pixels. A box with a shorter side below this is *tiny*."""
HUGE_SHARE = 0.9
"""Of the image's area. A larger box is *huge*."""
WHOLE_SHARE = 0.99
"""Of both sides. A larger box is the *whole image*."""
EXTREME_ASPECT = 10.0
"""Longer over shorter side, from which on a shape is *extreme*."""
SAME_IOU = 0.9
"""Two boxes of one image that overlap so far are taken for one object."""
FEW_OBJECTS = 20
"""A class with fewer objects to learn from gets a warning."""
LISTED = 1000
"""Most cases of one kind that the result lists."""

SUSPICIONS = {
    "tiny": f"with a side below {TINY_SIDE:g} px",
    "whole image": "as large as the image",
    "huge": f"over more than {HUGE_SHARE:.0%} of the image".replace("%", " %"),
    "extreme shape": f"{EXTREME_ASPECT:g} times as long as wide, or more",
    "repeated": f"on another of the same class (IoU {SAME_IOU:g} or more)",
    "two classes": f"on another of a different class (IoU {SAME_IOU:g} or more)",
}
"""Kinds of suspicious boxes, and each in words."""
_REMEDIES = {
    "tiny": "Remove what is a slip of the mouse; if objects are so small, raise data.loader.min_size or cut the images "
    "into tiles.",
    "whole image": "Look whether these are labels of the image rather than of an object in it.",
    "huge": "Look whether they enclose one object each.",
    "extreme shape": "Look at them; if they are right, set model.rpn.anchor_ratios to such shapes.",
    "repeated": "Keep one box for each object: evaluation asks for both, and only one can be found.",
    "two classes": "Decide for one class: the detector is taught both for the same pixels.",
}
SIDE_EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, math.inf)
"""Pixels. Bins of the square root of a box's area."""
ASPECT_EDGES = (0.0, 0.1, 0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 10.0, math.inf)
"""Bins of width over height."""


@dataclass(frozen=True)
class Seen:
    """An image that could be decoded: ``size`` is its width and height in pixels."""

    size: tuple[int, int]
    look: Look


def check_data(
    sets: Mapping[str, Dataset],
    tasks: Sequence[Sequence[str]] = (),
    *,
    max_distance: int = MAX_DISTANCE,
    workers: int = 2,
) -> dict[str, Any]:
    """Check annotated sets of images. Each image file is decoded once; one that cannot be read is noted.

    Args:
        sets: ``train``, ``val`` and ``test``, or some of them.
        tasks: class names that each task introduces; empty without a schedule.
        max_distance: bits in which the hashes of two images may differ that look alike.
        workers: threads that decode.

    Returns:
        ready for JSON: ``tasks``; ``thresholds``; ``sets`` by name, each with ``images``, ``objects``,
        ``without_objects``, ``unreadable``, ``other_size``, ``turned``, ``image_sizes``, ``box_sides`` and
        ``box_aspects`` (counts in the bins of ``thresholds``), ``suspicious`` by kind, ``repairs`` and
        ``repair_examples``; ``classes``
        [{"class", "task", set: objects, …}, …]; ``task_objects`` by task; ``files``, equal ones; ``similar``,
        look-alikes; ``findings`` as an audit's. Each list of cases ends after :data:`LISTED`.

    Raises:
        DataError: no set; a class of the schedule that no set has.
    """
    if not sets:
        raise DataError("there is no data set to check", remedy="name at least one of train, val and test")
    check_schedule(tasks, *sets.values())
    seen, problems = _decode([record.path for dataset in sets.values() for record in dataset.records], workers)
    content = file_contents(record.path for dataset in sets.values() for record in dataset.records)
    result: dict[str, Any] = {
        "tasks": [list(names) for names in tasks],
        "thresholds": {
            "tiny_side": TINY_SIDE,
            "huge_share": HUGE_SHARE,
            "whole_share": WHOLE_SHARE,
            "extreme_aspect": EXTREME_ASPECT,
            "same_iou": SAME_IOU,
            "side_edges": [edge if math.isfinite(edge) else None for edge in SIDE_EDGES],
            "aspect_edges": [edge if math.isfinite(edge) else None for edge in ASPECT_EDGES],
        },
        "sets": {name: _facts(dataset, seen, problems) for name, dataset in sets.items()},
        "classes": _classes(sets, tasks),
        "task_objects": _task_objects(sets, tasks),
        "files": identical_files(sets, content, examples=LISTED),
        "similar": similar_images(
            sets,
            {path: one.look for path, one in seen.items()},
            content,
            max_distance=max_distance,
            examples=LISTED,
        ),
    }
    result["findings"] = by_gravity([*_set_findings(result), *_pair_findings(result), *_class_findings(result)])
    return result


def _decode(paths: Sequence[Path], workers: int) -> tuple[dict[Path, Seen], dict[Path, str]]:
    """What is seen of each image, and what is wrong with those that cannot be read."""

    def examine(path: Path) -> Seen | str:
        try:
            pixels = load_image(path)
        except DataError as error:
            return error.problem
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        return Seen(picture.size, look_of(picture))

    distinct = list(dict.fromkeys(paths))
    seen: dict[Path, Seen] = {}
    problems: dict[Path, str] = {}
    with progress_bar("look at images", len(distinct)) as bar, ThreadPoolExecutor(max(1, workers)) as pool:
        for path, found in zip(distinct, pool.map(examine, distinct), strict=True):
            bar.advance()
            if isinstance(found, str):
                problems[path] = found
            else:
                seen[path] = found
    return seen, problems


# -- one set -----------------------------------------------------------------------------------------------------------


def _facts(dataset: Dataset, seen: Mapping[Path, Seen], problems: Mapping[Path, str]) -> dict[str, Any]:
    records = dataset.records
    empty = [record.image_id for record in records if not len(record)]
    broken = [
        {"image": record.image_id, "path": str(record.path), "problem": problems[record.path]}
        for record in records
        if record.path in problems
    ]
    mismatched = [
        record for record in records if record.path in seen and seen[record.path].size != (record.width, record.height)
    ]
    turned = [record.image_id for record in mismatched if is_turned(record.path, (record.width, record.height))]
    other = [
        {
            "image": record.image_id,
            "annotated": [record.width, record.height],
            "file": list(seen[record.path].size),
        }
        for record in mismatched
        if record.image_id not in turned
    ]
    sizes = Counter((record.width, record.height) for record in records)
    boxes = np.concatenate([record.boxes for record in records] or [np.zeros((0, 4), dtype=np.float32)])
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    return {
        "images": len(records),
        "objects": dataset.num_annotations,
        "without_objects": {"images": len(empty), "examples": empty[:LISTED]},
        "unreadable": {"images": len(broken), "examples": broken[:LISTED]},
        "other_size": {"images": len(other), "examples": other[:LISTED]},
        "turned": {"images": len(turned), "examples": turned[:LISTED]},
        "image_sizes": _size_summary(sizes),
        "box_sides": np.histogram(np.sqrt(sides.prod(axis=1)), SIDE_EDGES)[0].tolist(),
        "box_aspects": np.histogram(sides[:, 0] / sides[:, 1], ASPECT_EDGES)[0].tolist(),
        "suspicious": _suspicious(dataset),
        "repairs": dict(sorted(dataset.repairs.counts.items())),
        "repair_examples": list(dataset.repairs.examples),
    }


def _size_summary(sizes: Counter[tuple[int, int]]) -> dict[str, Any]:
    """Sizes as [width, height] in pixels; smallest and largest by area."""
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return {
        "smallest": list(by_area[0]) if by_area else None,
        "largest": list(by_area[-1]) if by_area else None,
        "distinct": len(sizes),
        "most_common": [{"size": list(size), "images": count} for size, count in sizes.most_common(10)],
    }


def suspicions(record: Record) -> dict[str, list[int]]:
    """Positions of the boxes of one image that look like mistakes, by kind; crowds are left out.

    ``huge`` does not name what is the ``whole image``, and of boxes on one another only the later ones are named.
    """
    boxes = record.boxes.astype(np.float64)
    width, height = (boxes[:, 2] - boxes[:, 0]), (boxes[:, 3] - boxes[:, 1])
    short, long = np.minimum(width, height), np.maximum(width, height)
    whole = (width >= WHOLE_SHARE * record.width) & (height >= WHOLE_SHARE * record.height)
    repeated, two_classes = np.zeros((2, len(record)), dtype=np.bool_)
    if len(record) > 1:
        same_place = np.tril(box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy() >= SAME_IOU, -1)
        if record.crowd is not None:
            same_place &= ~record.crowd[None, :]
        same_class = record.categories[:, None] == record.categories[None, :]
        repeated = (same_place & same_class).any(axis=1)
        two_classes = (same_place & ~same_class).any(axis=1)
    flags = {
        "tiny": short < TINY_SIDE,
        "whole image": whole,
        "huge": (width * height > HUGE_SHARE * record.width * record.height) & ~whole,
        "extreme shape": long >= EXTREME_ASPECT * short,
        "repeated": repeated,
        "two classes": two_classes,
    }
    single = np.ones(len(record), dtype=np.bool_) if record.crowd is None else ~record.crowd
    return {kind: np.flatnonzero(flags[kind] & single).tolist() for kind in SUSPICIONS}


def _suspicious(dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {kind: {"boxes": 0, "images": 0, "examples": []} for kind in SUSPICIONS}
    for record in dataset.records:
        for kind, places in suspicions(record).items() if len(record) else ():
            entry = found[kind]
            entry["boxes"] += len(places)
            entry["images"] += bool(places)
            for place in places[: LISTED - len(entry["examples"])]:
                entry["examples"].append(
                    {
                        "image": record.image_id,
                        "annotation": record.annotation_ids[place] if record.annotation_ids else place,
                        "class": dataset.categories[record.categories[place]],
                        "box": [round(value, 2) for value in record.boxes[place].tolist()],
                    }
                )
    return found


# -- classes and tasks -------------------------------------------------------------------------------------------------


def class_counts(dataset: Dataset) -> dict[str, int]:
    """Objects of each class of a data set, without crowds, in the order of its categories."""
    counts: Counter[int] = Counter()
    for record in dataset.records:
        single = record.categories if record.crowd is None else record.categories[~record.crowd]
        counts.update(single.tolist())
    return {name: counts[position] for position, name in enumerate(dataset.categories)}


def _classes(sets: Mapping[str, Dataset], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """By task, then by falling number of objects; those of no task last."""
    counts = {name: class_counts(dataset) for name, dataset in sets.items()}
    task_of = {name: number for number, names in enumerate(tasks, start=1) for name in names}
    names = dict.fromkeys(name for found in counts.values() for name in found)
    rows = [
        {"class": name, "task": task_of.get(name), **{key: found.get(name, 0) for key, found in counts.items()}}
        for name in names
    ]
    return sorted(rows, key=lambda row: (row["task"] or math.inf, -sum(row[key] for key in counts), row["class"]))


def _task_objects(sets: Mapping[str, Dataset], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """For each task, images and objects of its classes in each set; the last entry, task None, is for other classes."""
    if not tasks:
        return []
    task_of = {name: number for number, names in enumerate(tasks, start=1) for name in names}
    rows: list[dict[str, Any]] = [{"task": number or None} for number in (*range(1, len(tasks) + 1), 0)]
    for key, dataset in sets.items():
        number_of = np.array([task_of.get(name, 0) for name in dataset.categories], dtype=np.int64)
        images, objects = Counter[int](), Counter[int]()
        for record in dataset.records:
            single = record.categories if record.crowd is None else record.categories[~record.crowd]
            present = number_of[single].tolist()
            objects.update(present)
            images.update(set(present))
        for row in rows:
            number = row["task"] or 0
            row[key] = {"images": images[number], "objects": objects[number]}
    return rows


# -- findings ----------------------------------------------------------------------------------------------------------


def _set_findings(result: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for name, facts in result["sets"].items():
        if number := facts["unreadable"]["images"]:
            first = facts["unreadable"]["examples"][0]
            found.append(
                make_finding(
                    "problem",
                    name,
                    f"{counted(number, 'image')} of {name} cannot be read (e.g. {first['path']}: {first['problem']}).",
                    "Replace the files, or remove them and their annotations; check.json lists them.",
                )
            )
        if number := facts["other_size"]["images"]:
            first = facts["other_size"]["examples"][0]
            (width, height), (real_width, real_height) = first["annotated"], first["file"]
            turned = "; the sides are exchanged, as in a photograph that a viewer turns" * (
                (width, height) == (real_height, real_width)
            )
            found.append(
                make_finding(
                    "problem",
                    name,
                    f"{counted(number, 'image file')} of {name} {has_or_have(number)} another size than the "
                    f"annotations say (e.g. {first['image']}: {width}x{height} annotated, {real_width}x{real_height} "
                    f"in the file{turned}): boxes lie elsewhere.",
                    "Annotate the files as they are, or fetch the ones that were annotated.",
                )
            )
        if number := facts["turned"]["images"]:
            found.append(
                make_finding(
                    "note",
                    name,
                    f"{counted(number, 'image file')} of {name} {is_or_are(number)} turned when loaded, as the EXIF "
                    f"tag says (e.g. {shown(facts['turned']['examples'], 3)}): their annotations have the turned size.",
                    "Nothing needs to be done; other programs may read these files unturned.",
                )
            )
        for kind, entry in facts["suspicious"].items():
            if number := entry["boxes"]:
                first = entry["examples"][0]
                found.append(
                    make_finding(
                        "warning" if kind in ("repeated", "two classes") else "note",
                        name,
                        f"{counted(number, 'box', 'boxes')} of {name} {is_or_are(number)} {SUSPICIONS[kind]} (e.g. "
                        f"{first['class']} on image {first['image']}).",
                        _REMEDIES[kind],
                    )
                )
        # Polygons become boxes as they should, and lists that repeat images are an audit's matter.
        repairs = {kind: count for kind, count in facts["repairs"].items() if kind != "polygon turned into its box"}
        if repairs:
            kinds = listed([f"{kind} ({count:,})" for kind, count in repairs.items()])
            dropped = any(kind.startswith("dropped") for kind in repairs)
            found.append(
                make_finding(
                    "warning" if dropped else "note",
                    name,
                    f"Annotations of {name} were repaired while reading: {kinds}. The first: "
                    f"{facts['repair_examples'][0]}.",
                    "Correct them in the files; repair_examples of check.json names the first ones.",
                )
            )
        if number := facts["without_objects"]["images"]:
            effect = "every detection there is a false positive" if name == "test" else "training leaves them out"
            found.append(
                make_finding(
                    "note",
                    name,
                    f"{counted(number, 'image')} of {name} {has_or_have(number)} no object (e.g. "
                    f"{shown(facts['without_objects']['examples'], 3)}): {effect}.",
                    "Make sure that nothing is to be seen there, and that no annotations were lost.",
                )
            )
    return found


def _pair_findings(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Images that are there twice."""
    found = []
    files, similar = result["files"], result["similar"]
    for name in result["sets"]:
        if number := files["within"][name]["images"]:
            groups = files["within"][name]["groups"]
            found.append(
                make_finding(
                    "warning",
                    name,
                    f"{counted(number, 'image')} of {name} are only {counted(groups, 'picture')}: their files have the "
                    f"same content (e.g. {shown(files['within'][name]['examples'][0], 3)}).",
                    "Keep one of each group and its annotations.",
                )
            )
        if number := similar["within"][name]["images"]:
            old, new, bits = similar["within"][name]["examples"][0]
            found.append(
                make_finding(
                    "note",
                    name,
                    f"{counted(number, 'image')} of {name} look like another one of {name} (e.g. {old} and {new}, "
                    f"{bits} of 64 bits differ).",
                    "Look at them; copies and frames of one scene count several times.",
                )
            )
    for first, second in PAIRS:
        key = f"{first}_{second}"
        level = "problem" if second == "test" else "warning"
        remedy = f"Remove them from {first if second == 'test' else second}."
        if key in files["across"] and (pairs := [*_both(files["across"][key])]):
            number = sum(entry["images"] for entry in files["across"][key].values())
            old, new = pairs[0]
            found.append(
                make_finding(
                    level,
                    key,
                    f"{counted(number, 'image')} of {second} {is_or_are(number)} in {first}, too, byte for byte (e.g. "
                    f"{new} is {old}): {HARM[key]}.",
                    remedy,
                )
            )
        if key in similar["across"] and (number := similar["across"][key]["images"]):
            old, new, bits = similar["across"][key]["examples"][0]
            found.append(
                make_finding(
                    "warning",
                    key,
                    f"{counted(number, 'image')} of {second} {'looks' if number == 1 else 'look'} like an image of "
                    f"{first} (e.g. {new} like {old}, {bits} of 64 bits differ): if they are copies, {HARM[key]}.",
                    f"Look at them. {remedy.removesuffix('.')} if they show the same scene.",
                )
            )
    return found


def _both(across: Mapping[str, Any]) -> list[list[Any]]:
    pairs: list[list[Any]] = [*across["same_id"]["examples"], *across["other_id"]["examples"]]
    return pairs


def _class_findings(result: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    classes, tasks, sets = result["classes"], result["tasks"], result["sets"]
    taught = [row for row in classes if row["task"] is not None or not tasks]
    for name, level, harm in (
        ("train", "problem", "that cannot be learned"),
        ("test", "warning", "no average precision there"),
    ):
        if name in sets and (absent := [row["class"] for row in taught if not row[name]]):
            found.append(
                make_finding(
                    level,
                    name,
                    f"{counted(len(absent), 'class', 'classes')} {has_or_have(len(absent))} no object in {name} "
                    f"({shown(absent)}): {harm}.",
                    "Correct the names, or add images that show them.",
                )
            )
    if "train" in sets and (few := [row for row in taught if 0 < row["train"] < FEW_OBJECTS]):
        names = [f"{row['class']}: {row['train']}" for row in few]
        found.append(
            make_finding(
                "warning",
                "train",
                f"{counted(len(few), 'class', 'classes')} {has_or_have(len(few))} fewer than {FEW_OBJECTS} objects in "
                f"train ({shown(names)}).",
                "Annotate more of them, or leave them out of the schedule, so that they stay unknown.",
            )
        )
    unnamed = [row for row in classes if row["task"] is None and tasks]
    if unnamed:
        names = [f"{row['class']}: {sum(row[key] for key in sets):,}" for row in unnamed]
        found.append(
            make_finding(
                "note",
                "all",
                f"{counted(len(unnamed), 'class', 'classes')} {is_or_are(len(unnamed))} in no task (objects of "
                f"{shown(names)}): they stay unknown for ever.",
                "Nothing, if that is meant; otherwise add them to a task.",
            )
        )
    return found
