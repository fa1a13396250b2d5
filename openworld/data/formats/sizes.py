"""The size of an image that its annotations do not say, or say wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openworld.data.boxes import MAX_COORDINATE, size_of_boxes
from openworld.records import file_exists
from openworld.repairs import Repairs
from openworld.runtime.image_headers import read_header

FROM_FILE = "size read from the image file"
FROM_TAGGED_FILE = "size read from an image file with an EXIF tag, as stored"
FROM_BOXES = "size taken from the boxes"
"""Kinds of repair."""


def usable_size(width: float, height: float) -> tuple[int, int] | None:
    """Declared width and height as whole pixels, or None if they cannot be right."""
    if 1 <= width <= MAX_COORDINATE and 1 <= height <= MAX_COORDINATE:
        return round(width), round(height)
    return None


def size_text(width: object, height: object) -> str:
    """What annotations declare as the size, for messages."""
    return "no size" if width is None and height is None else f"{width!r} x {height!r}"


def found_size(
    file: Path, boxes: NDArray[np.float64], message: str, repairs: Repairs, *, upright: bool | None
) -> tuple[int, int]:
    """Return (width, height) in pixels from the image file or, if there is none, from the extent of the boxes.

    Args:
        file: the image.
        boxes: (K, 4) float64, those of the image.
        message: names the record and what it declares.
        repairs: counts it.
        upright: whether the upright picture was annotated; None: nothing says so, and it is the stored one.

    Raises:
        DataError: the image file cannot be read.
    """
    if not file_exists(file):
        repairs.add(FROM_BOXES, message)
        return size_of_boxes(boxes)
    header = read_header(file)
    repairs.add(FROM_TAGGED_FILE if upright is None and header.orientation > 1 else FROM_FILE, message)
    return header.upright if upright else header.stored
