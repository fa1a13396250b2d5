"""COCO results files: a list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from openworld.errors import ConfigError, DataError
from openworld.labels import UNKNOWN_NAME, LabelSpace
from openworld.predictions.arrays import Predictions, Reals
from openworld.predictions.file import read_json
from openworld.predictions.foreign.match import ForeignDetections, Quote, Unseen, as_predictions, distinct
from openworld.records import Dataset
from openworld.repairs import Repairs

_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "image_id": ((int, float, str), "the image's id, a whole number or a text"),
    "category_id": ((int, float), "the number of a category"),
    "bbox": ((list,), "a list of four numbers: x, y, width and height in pixels"),
    "score": ((int, float), "a probability from 0 to 1"),
}
"""Types of the fields of a record, and what they mean."""


def read_coco_results(
    path: Path,
    dataset: Dataset,
    space: LabelSpace,
    category_names: Mapping[int, str],
    *,
    unknown_category: int | None = None,
    unseen: Unseen = "error",
    repairs: Repairs | None = None,
) -> Predictions:
    """Read a COCO results file.

    Args:
        path: the .json file, a list.
        dataset: the ground truth; its records have ``image_id``, ``path``, ``width`` and ``height``.
        space: the task whose model predicted.
        category_names: class name of each category id, in the names of the schedule; for a COCO ground truth,
            :func:`openworld.data.formats.coco.coco_category_names`. A category named ``unknown`` is the unknown.
        unknown_category: another id that means unknown.
        unseen: see :data:`openworld.predictions.foreign.match.Unseen`.
        repairs: counts the detections of unseen classes.

    Raises:
        DataError: the file is not JSON or not a list; a record lacks a field or has one of another type; a score is not
            from 0 to 1, a bbox is not finite or of negative size; an image is not in the ground truth, or its id may
            mean several; a category is not known, or unseen where that is an error. Names the first such record.
        ConfigError: ``unknown_category`` is the id of a class.
    """
    path = Path(path)
    records = read_json(path)
    if not isinstance(records, list):
        raise DataError(
            f"holds a {type(records).__name__} where a COCO results file has a list",
            where=str(path),
            remedy='write a list of {"image_id", "category_id", "bbox", "score"}',
        )
    names: dict[float, str] = dict(category_names.items())
    if unknown_category is not None:
        if names.get(unknown_category, UNKNOWN_NAME) != UNKNOWN_NAME:
            raise ConfigError(
                f"unknown_category {unknown_category} is the class {names[unknown_category]!r}",
                where=str(path),
                remedy="give the category id under which the results write unknown objects",
            )
        names[unknown_category] = UNKNOWN_NAME
    for row, record in enumerate(records):
        _check_record(record, path, row)

    boxes = _floats(list(chain.from_iterable(record["bbox"] for record in records))).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # refused by as_predictions
        boxes[:, 2:] += boxes[:, :2]
    category_ids, class_index = distinct([record["category_id"] for record in records])
    found = ForeignDetections(
        image_ids=[record["image_id"] for record in records],
        class_index=class_index,
        class_names=[names.get(identifier) for identifier in category_ids],
        boxes=boxes,
        scores=_floats([record["score"] for record in records]),
        quote=lambda row: Quote(
            where=f"{path}, record {row}",
            label=f"category_id {records[row]['category_id']!r}",
            box=f"bbox {records[row]['bbox']!r}",
        ),
    )
    return as_predictions(found, dataset, space, unseen=unseen, repairs=repairs, source=str(path))


def _check_record(record: Any, path: Path, row: int) -> None:
    """Refuse a record that lacks a field or has one of another type."""
    if type(record) is not dict:
        raise DataError(
            f"{record!r} is not an object",
            where=f"{path}, record {row}",
            remedy=f"a record has {', '.join(_FIELDS)}",
        )
    for key, (kinds, meaning) in _FIELDS.items():
        if type(record.get(key)) not in kinds:
            problem = f"{key} {record[key]!r}" if key in record else f"has no {key!r}"
            raise DataError(problem, where=f"{path}, record {row}", remedy=f"{key} is {meaning}")
    box = record["bbox"]
    if len(box) != 4 or not {type(value) for value in box} <= {int, float}:
        raise DataError(f"bbox {box!r}", where=f"{path}, record {row}", remedy=f"bbox is {_FIELDS['bbox'][1]}")


def _floats(values: Sequence[float]) -> Reals:
    """(N,) float64; whole numbers beyond its range are infinite."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([value if abs(value) <= sys.float_info.max else math.inf for value in values])
