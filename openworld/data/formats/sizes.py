"""The size of an image that its annotations do not say, or say wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openworld.data.boxes import MAX_COORDINATE, size_of_boxes
from openworld.records import Repairs, file_exists
from openworld.runtime.images import image_size

FROM_FILE = "size read from the image file"
FROM_BOXES = "size taken from the boxes"
"""Kinds of repair."""


def usable_size(width: float, height: float) -> tuple[int, int] | None:
    """Declared width and height as whole pixels, or None if they cannot be right."""
    if 1 <= width <= MAX_COORDINATE and 1 <= height <= MAX_COORDINATE:
        return round(width), round(height)
    return None


def found_size(file: Path, boxes: NDArray[np.float64], message: str, repairs: Repairs) -> tuple[int, int]:
    """Return (width, height) in pixels from the image file or, if there is none, from the extent of the boxes.

    Args:
        file: the image.
        boxes: (K, 4) float64, those of the image.
        message: names the record and what it declares.
        repairs: counts it.

    Raises:
        DataError: the image file cannot be read.
    """
    if not file_exists(file):
        repairs.add(FROM_BOXES, message)
        return size_of_boxes(boxes)
    repairs.add(FROM_FILE, message)
    return image_size(file)
