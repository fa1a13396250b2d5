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
from openworld.data.orientation import OrientationDoubt, orientation_doubt
from openworld.data.splits import check_schedule
from openworld.errors import DataError
from openworld.records import Dataset, Record, file_exists
from openworld.runtime.image_depth import depth_doubt
from openworld.runtime.image_headers import Header, read_header
from openworld.runtime.images import brightest_value, read_rgb
from openworld.runtime.runlog import progress_bar

LISTED = 1000
"""Maximum number of cases of one kind that the result lists."""
SIDE_EDGES = (0.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, math.inf)
"""Pixels. Bins of the square root of a box's area."""
ASPECT_EDGES = (0.0, 0.1, 0.25, 0.5, 0.8, 1.25, 2.0, 4.0, 10.0, math.inf)
"""Bins of width over height."""


@dataclass(frozen=True)
class Seen:
    """An image that could be decoded: its header, what it looks like upright, and its brightest 16-bit value if any."""

    header: Header
    look: Look
    brightest: int | None

    def size(self, record: Record) -> tuple[int, int]:
        """Width and height in pixels as the loader gives the image of a record."""
        return self.header.upright if self.header.applies(record.turned_to) else self.header.stored


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
        ``without_objects``, ``unreadable``, ``missing`` (those of them that do not exist, and what the reader says of
        such), ``other_size``, ``turned``, ``undecided_orientation``, ``deep`` (images of more than 8 bits),
        ``image_sizes``, ``box_sides`` and ``box_aspects`` (counts in the bins of ``thresholds``), ``suspicious`` by
        kind, ``repairs``, ``harmful_repairs`` (kinds that cost records) and ``repair_examples`` by kind; ``classes``
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
        "sets": {name: _facts(name, dataset, seen, problems) for name, dataset in sets.items()},
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
            header = read_header(path)
            brightest = brightest_value(path) if header.deep else None
            return Seen(header, look_of(read_rgb(path, upright=True)), brightest)
        except DataError as error:
            return error.problem

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


def _undecided(doubt: OrientationDoubt | None, name: str) -> dict[str, Any]:
    """Images whose EXIF tag may or may not have been applied when they were annotated."""
    undecided = [] if doubt is None else doubt.undecided
    return {
        "images": len(undecided),
        "examples": undecided[:LISTED],
        "evidence": bool(doubt and doubt.turned),
        "doubt": None if doubt is None else doubt.words(name),
    }


def _facts(name: str, dataset: Dataset, seen: Mapping[Path, Seen], problems: Mapping[Path, str]) -> dict[str, Any]:
    records = list(dataset)
    empty = [record.image_id for record in records if not len(record)]
    broken = [
        {"image": record.image_id, "path": str(record.path), "problem": problems[record.path]}
        for record in records
        if record.path in problems
    ]
    missing = [entry for entry in broken if not file_exists(str(entry["path"]))]
    readable = [(record, seen[record.path]) for record in records if record.path in seen]
    turned = [record.image_id for record, one in readable if one.header.applies(record.turned_to)]
    other = [
        {"image": record.image_id, "annotated": [record.width, record.height], "file": list(one.size(record))}
        for record, one in readable
        if one.size(record) != (record.width, record.height)
    ]
    doubt = orientation_doubt(dataset, {record.path: one.header for record, one in readable})
    brightest = [one.brightest for _, one in readable if one.brightest is not None]
    sizes = Counter((record.width, record.height) for record in records)
    sides = (dataset.boxes[:, 2:] - dataset.boxes[:, :2]).astype(np.float64)
    return {
        "images": len(records),
        "objects": dataset.num_annotations,
        "without_objects": {"images": len(empty), "examples": empty[:LISTED]},
        "unreadable": {"images": len(broken), "examples": broken[:LISTED]},
        "missing": {"images": len(missing), "examples": missing[:LISTED], "searched": dataset.searched},
        "other_size": {"images": len(other), "examples": other[:LISTED]},
        "turned": {"images": len(turned), "examples": turned[:LISTED]},
        "undecided_orientation": _undecided(doubt, name),
        "deep": {
            "images": len(brightest),
            "brightest": max(brightest, default=None),
            "doubt": depth_doubt(brightest, dataset.white_level),
        },
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
