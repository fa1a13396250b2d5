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

from openworld.audit.duplicates import (
    MAX_DISTANCE,
    Look,
    file_contents,
    identical_files,
    look_of,
    similar_images,
)
from openworld.audit.images_and_boxes_findings import images_and_boxes_findings
from openworld.audit.suspicions import (
    EXTREME_ASPECT,
    HUGE_SHARE,
    SAME_IOU,
    SUSPICIONS,
    TINY_SIDE,
    WHOLE_SHARE,
    suspicions,
)
from openworld.data.splits import check_schedule
from openworld.errors import DataError
from openworld.records import Dataset
from openworld.runtime.images import is_turned, read_rgb
from openworld.runtime.runlog import progress_bar

LISTED = 1000
"""Maximum number of cases of one kind that the result lists."""
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
        max_distance: number of bits in which the hashes of look-alikes may differ.
        workers: number of threads that decode.

    Returns:
        ready for JSON: ``tasks``; ``thresholds``; ``sets`` by name, each with ``images``, ``objects``,
        ``without_objects``, ``unreadable``, ``other_size``, ``turned``, ``image_sizes``, ``box_sides`` and
        ``box_aspects`` (counts in the bins of ``thresholds``), ``suspicious`` by kind, ``repairs``,
        ``harmful_repairs`` (kinds that cost records) and ``repair_examples`` by kind; ``classes``
        [{"class", "task", set: objects, …}, …]; ``task_objects`` by task; ``files``, equal ones; ``similar``,
        look-alikes; ``findings`` as an audit's. Each list of cases ends after :data:`LISTED`.

    Raises:
        DataError: there is no set, or no set has a class of the schedule.
    """
    if not sets:
        raise DataError("there is no data set to check", remedy="name at least one of train, val and test")
    check_schedule(tasks, *sets.values())
    paths = [Path(str(path)) for dataset in sets.values() for path in dataset.paths]
    seen, problems = _decode(paths, workers)
    content = file_contents(paths)
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
    result["findings"] = images_and_boxes_findings(result)
    return result


def _decode(paths: Sequence[Path], workers: int) -> tuple[dict[Path, Seen], dict[Path, str]]:
    """Decode each image once; returns what was seen, and what is wrong with images that cannot be read."""

    def examine(path: Path) -> Seen | str:
        try:
            picture = read_rgb(path)
        except DataError as error:
            return error.problem
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
    records = list(dataset)
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
    sides = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).astype(np.float64)
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
        "harmful_repairs": sorted(dataset.repairs.harmful),
        "repair_examples": {
            kind: messages[: dataset.repairs.SHOWN] for kind, messages in sorted(dataset.repairs.cases.items())
        },
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


def _suspicious(dataset: Dataset) -> dict[str, Any]:
    found: dict[str, Any] = {kind: {"boxes": 0, "images": 0, "examples": []} for kind in SUSPICIONS}
    for record in dataset:
        for kind, places in suspicions(record).items() if len(record) else ():
            entry = found[kind]
            entry["boxes"] += len(places)
            entry["images"] += bool(places)
            for place in places[: LISTED - len(entry["examples"])]:
                entry["examples"].append(
                    {
                        "image": record.image_id,
                        "annotation": record.annotation_ids[place],
                        "class": dataset.categories[record.categories[place]],
                        "box": [round(value, 2) for value in record.boxes[place].tolist()],
                    }
                )
    return found


# -- classes and tasks -------------------------------------------------------------------------------------------------


def class_counts(dataset: Dataset) -> dict[str, int]:
    """Objects of each class of a data set, without crowds, in the order of its categories."""
    counts = np.bincount(dataset.box_categories[~dataset.crowd], minlength=len(dataset.categories))
    return dict(zip(dataset.categories, counts.tolist(), strict=True))


def _classes(sets: Mapping[str, Dataset], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Objects of each class per set, by task, then by falling number; classes of no task last."""
    counts = {name: class_counts(dataset) for name, dataset in sets.items()}
    task_of = {name: number for number, names in enumerate(tasks, start=1) for name in names}
    names = dict.fromkeys(name for found in counts.values() for name in found)
    rows = [
        {"class": name, "task": task_of.get(name), **{key: found.get(name, 0) for key, found in counts.items()}}
        for name in names
    ]
    return sorted(rows, key=lambda row: (row["task"] or math.inf, -sum(row[key] for key in counts), row["class"]))


def _task_objects(sets: Mapping[str, Dataset], tasks: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Count, per task and set, images and objects of its classes; the last entry, task None, is for other classes."""
    if not tasks:
        return []
    task_of = {name: number for number, names in enumerate(tasks, start=1) for name in names}
    rows: list[dict[str, Any]] = [{"task": number or None} for number in (*range(1, len(tasks) + 1), 0)]
    for key, dataset in sets.items():
        number_of = np.array([task_of.get(name, 0) for name in dataset.categories], dtype=np.int64)
        single = ~dataset.crowd
        number_of_box, image_index = number_of[dataset.box_categories[single]], dataset.image_index[single]
        for row in rows:
            here = number_of_box == (row["task"] or 0)
            row[key] = {"images": len(np.unique(image_index[here])), "objects": int(here.sum())}
    return rows
