"""The one policy for annotated boxes. Nothing else in the project drops or changes one.

N boxes, ``x1 y1 x2 y2`` in pixels, 0-based, with ``x2 - x1`` the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from openworld.columns import IntArray
from openworld.records import FloatArray
from openworld.repairs import Repairs

MAX_COORDINATE = 1e6
"""Pixels. Larger coordinates are taken for damage."""
MIN_SIDE = 1.0
"""Pixels. Boxes that are thinner inside their image are dropped."""
CLIP_TOLERANCE = 0.1
"""Pixels. A box that leaves the image by less is clipped without being counted: annotation tools round."""


def clean_boxes(
    boxes: NDArray[np.float64],
    width: int | IntArray,
    height: int | IntArray,
    repairs: Repairs,
    describe: Callable[[int], str],
) -> tuple[FloatArray, IntArray]:
    """Drop and clip annotated boxes.

    Dropped and counted: a coordinate that is not finite (it would crash ``roi_align``), a coordinate beyond
    ``MAX_COORDINATE``, an inverted box, a box wholly outside the image, a box thinner than ``MIN_SIDE`` inside it.
    Clipped and counted: a box partly outside.

    Args:
        boxes: (N, 4) float64 x1 y1 x2 y2, any values.
        width: of the image, pixels; or (N,) of each box's image.
        height: of the image, pixels; or (N,) of each box's image.
        repairs: counts what happens.
        describe: names box ``n`` for messages (file, image, annotation).

    Returns:
        boxes (M, 4) float32 inside the image with sides >= ``MIN_SIDE``, and (M,) int64 their positions in the input.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    limits = np.empty_like(boxes)
    limits[:, 0::2] = np.reshape(width, (-1, 1))
    limits[:, 1::2] = np.reshape(height, (-1, 1))
    clipped = np.clip(boxes, 0.0, limits).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        sides = clipped[:, 2:] - clipped[:, :2]
        suspect = ~(np.abs(clipped - boxes).max(axis=1) <= CLIP_TOLERANCE) | ~(sides >= MIN_SIDE).all(axis=1)
    kept = np.ones(len(boxes), dtype=np.bool_)
    for number in np.flatnonzero(suspect).tolist():
        box = boxes[number]
        image = f"image {limits[number, 0]:.0f}x{limits[number, 1]:.0f}"
        problem = _problem(box, clipped[number])
        if problem is not None:
            repairs.add(f"dropped: {problem}", f"{describe(number)} has the box {_text(box)}, {image}")
            kept[number] = False
        else:
            repairs.add("clipped to the image", f"{describe(number)} has the box {_text(box)}, {image}")
    return clipped[kept], np.flatnonzero(kept).astype(np.int64)


def _problem(box: NDArray[np.float64], clipped: FloatArray) -> str | None:
    """Why a box cannot be used, or None."""
    if not np.isfinite(box).all():
        return "coordinate not finite"
    if np.abs(box).max() > MAX_COORDINATE:
        return f"coordinate beyond {MAX_COORDINATE:.0e}"
    if box[2] < box[0] or box[3] < box[1]:
        return "inverted"
    if box[2] == box[0] or box[3] == box[1]:
        return "without area"
    sides = clipped[2:] - clipped[:2]
    if (sides <= 0).any():
        return "outside the image"
    if (sides < MIN_SIDE).any():
        return f"thinner than {MIN_SIDE:g} px"
    return None


def are_corners(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    limits: NDArray[np.float64] | float,
    outside: NDArray[np.bool_] | np.bool_,
) -> bool:
    """Whether the boxes of a set seem to be ``x1 y1 x2 y2``, and to have been read as something else.

    Args:
        first: (N, 2) the first two numbers of each box.
        second: (N, 2) the other two.
        limits: (N, 2) width and height of their images, in the same unit.
        outside: (N,) whether a box leaves its image by far, as it was read.

    Returns:
        True where at least four of five boxes are corners inside their image, and three or more, and at least one of
        five, are outside as they were read.
    """
    corners = (first >= 0) & (second > first) & (second <= np.multiply(limits, 1.01))
    inside, count = int(np.count_nonzero(corners.all(axis=1))), int(np.count_nonzero(outside))
    return count >= 3 and 5 * count >= len(first) and 5 * inside >= 4 * len(first)


def _text(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def size_of_boxes(boxes: NDArray[np.float64]) -> tuple[int, int]:
    """Return (width, height) in pixels of the smallest image, at least 1 x 1, that holds all usable boxes.

    Args:
        boxes: (N, 4) float64 x1 y1 x2 y2; those with a coordinate that is not finite or beyond ``MAX_COORDINATE``
            do not count.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    usable = boxes[(np.abs(boxes) <= MAX_COORDINATE).all(axis=1)]
    right, bottom = usable[:, 2:].max(axis=0, initial=1.0)
    return math.ceil(right), math.ceil(bottom)
