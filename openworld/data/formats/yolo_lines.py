"""Lines of YOLO label files: a class and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openworld.data.boxes import are_corners
from openworld.data.formats.yolo_evidence import DIVIDE, MAX_FRACTION, Evidence, largest_of
from openworld.errors import DataError


@dataclass(frozen=True)
class Lines:
    """The L objects of one label file.

    Args:
        path: the file.
        numbers: (L,) lines of the file, from 1.
        classes: (L,) class numbers, any whole numbers.
        boxes: (L, 4) x1 y1 x2 y2 in fractions of the image, with the first four values of a line as its box.
        extents: (L, 4) the same, with all values of a long line as points, and the box around them.
        long: (L,) bool, more than four values.
    """

    path: Path
    numbers: list[int]
    classes: list[int]
    boxes: NDArray[np.float64]
    extents: NDArray[np.float64]
    long: NDArray[np.bool_]


def read_lines(path: Path, text: str, evidence: Evidence) -> Lines:
    """Read the lines of a label file.

    Args:
        path: the file, for messages.
        text: its content.
        evidence: sees each line with more than four values.

    Raises:
        DataError: a field that is not a number, a class that is not a whole number, fewer than four values, or values
            that are not fractions of the image.
    """
    numbers: list[int] = []
    classes: list[int] = []
    boxes: list[list[float]] = []
    extents: list[list[float]] = []
    long: list[bool] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        shown = line.strip()[:80]
        values = [_number(field, fields, where) for field in fields[1:]]
        if len(values) < 4:
            raise DataError(
                f"has {len(fields)} fields: {shown!r}",
                where=where,
                remedy="write `class cx cy width height`, or the class and the points of a polygon",
            )
        largest = largest_of(values[:4])
        if largest > MAX_FRACTION:
            raise DataError(
                f"{shown!r} holds {largest:g}, which is not a fraction of the image", where=where, remedy=DIVIDE
            )
        numbers.append(number)
        classes.append(_class_number(fields[0], where))
        x, y, width, height = values[:4]
        boxes.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        long.append(len(values) > 4)
        if long[-1]:
            evidence.add(values, where, shown)
        extents.append(_extent(values) if long[-1] else boxes[-1])
    return Lines(
        path,
        numbers,
        classes,
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(extents, dtype=np.float64).reshape(-1, 4),
        np.array(long, dtype=np.bool_),
    )


def check_order(files: Iterable[Lines], where: object) -> None:
    """Refuse a set whose boxes seem to be corners ``x1 y1 x2 y2`` in fractions of the image.

    Raises:
        DataError: see :func:`openworld.data.boxes.are_corners`.
    """
    short = [
        (lines, row)
        for lines in files
        for row in np.flatnonzero(~lines.long & np.isfinite(lines.boxes).all(axis=1)).tolist()
    ]
    boxes = np.array([lines.boxes[row] for lines, row in short], dtype=np.float64).reshape(-1, 4)
    middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    outside = np.any(((boxes < -0.05) | (boxes > 1.05)), axis=1)
    if are_corners(middles, sides, 1.0, outside):
        lines, row = short[int(np.argmax(outside))]
        raise DataError(
            f"its boxes seem to be x1 y1 x2 y2: as cx cy width height, {outside.sum():,} of {len(short):,} leave their "
            f"image, as in {lines.path}, line {lines.numbers[row]}",
            where=str(where),
            remedy="write `class cx cy width height`: the middle of the box and its sides, in fractions of the image",
        )


def _extent(values: Sequence[float]) -> list[float]:
    """The box around points x y x y …; a point that is not finite makes the box so."""
    if not all(map(math.isfinite, values)):
        return [math.nan] * 4
    return [min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])]


def _number(text: str, fields: Sequence[str], where: str) -> float:
    """One of the fields of a line."""
    try:
        return float(text)
    except ValueError:
        if not any(sign.isdigit() for field in fields for sign in field):
            remedy = "remove the line if it is a heading"
        elif "," in text:
            remedy = "put blanks between the numbers, and a point before decimals"
        else:
            remedy = "begin the line with the number of the class, from 0; only numbers follow it"
        raise DataError(f"holds {text!r}, which is not a number", where=where, remedy=remedy) from None


def _class_number(text: str, where: str) -> int:
    value = _number(text, (text, "0"), where)
    if not value.is_integer():
        raise DataError(
            f"the class is {text!r}", where=where, remedy="begin the line with the number of the class, from 0"
        )
    return int(value)
