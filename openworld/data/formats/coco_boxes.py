"""The box of a COCO annotation: its ``bbox`` or, where it has none, the extent of its polygon or mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.columns import ImageId
from openworld.data.boxes import are_corners
from openworld.data.formats.coco_fields import Where, number_of
from openworld.errors import AnnotationError
from openworld.repairs import Repairs

Box = tuple[float, float, float, float]

COMPARED = 200
"""Annotations whose bbox is compared with their area."""

NO_BOX = "dropped: no bbox, and no polygon or mask to take it from"
ONLY_KEYPOINTS = "dropped: keypoints without a bbox"
OTHER_MASK = "dropped: mask that is empty or not one of the image"
FROM_POLYGON = "bbox taken from the polygon"
FROM_MASK = "bbox taken from the mask"
"""Kinds of repair."""


def box_of(entry: dict[str, Any], where: Where, size: tuple[int, int] | None, repairs: Repairs) -> Box | None:
    """Corners x1 y1 x2 y2 of an annotation's ``[x, y, width, height]``, or of its polygon or mask where it has none.

    Args:
        entry: the annotation.
        where: names it.
        size: width and height of its image in pixels, or None where they are not known.
        repairs: counts what is not taken from the bbox, and what is dropped.

    Returns:
        the box, which may still be unusable, or None for an annotation from which none can be taken.

    Raises:
        AnnotationError: a bbox that is something else.
    """
    box = entry.get("bbox")
    shape = entry.get("segmentation")
    if isinstance(box, list) and len(box) == 4 and box != [None] * 4:
        x, y, width, height = [value if type(value) is float else number_of(value, "bbox", where) for value in box]
        if any((x, y, width, height)) or not (isinstance(shape, dict) or _polygons(shape)):
            return x, y, x + width, y + height
        box = None  # 0 0 0 0 is how some tools leave out the box of a shape
    if box is not None and box not in ([], {}, "", [None] * 4):
        raise AnnotationError(f"bbox is {box!r}", where=str(where), remedy="give [x, y, width, height] in pixels")
    if isinstance(shape, dict):
        found = _box_of_mask(shape, size)
        repairs.add(OTHER_MASK if found is None else FROM_MASK, str(where))
        return found
    if polygons := _polygons(shape):
        repairs.add(FROM_POLYGON, str(where))
        points = np.concatenate(polygons)
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return left, top, right, bottom
    repairs.add(ONLY_KEYPOINTS if entry.get("keypoints") else NO_BOX, str(where))
    return None


def check_order(entries: Sequence[Any], path: Path, sizes: Mapping[ImageId, tuple[int, int] | None]) -> None:
    """Refuse a file whose bboxes are corners x1 y1 x2 y2, as the areas beside them prove, or the sizes of the images.

    Args:
        entries: the annotations. The first :data:`COMPARED` are looked at, if they have a bbox and a positive area, or
            an image of known size.
        path: of the file, for the message.
        sizes: width and height of each image in pixels by its id, None where they are not known.

    Raises:
        AnnotationError: each has the area between such corners, and three or more cannot have it otherwise. Or at least
            four of five are corners inside their image, and three or more, and one of five, leave it as
            ``[x, y, width, height]``.
    """
    _check_areas(entries, path)
    rows = [
        (*entry["bbox"], *size)
        for entry in entries[:COMPARED]
        if isinstance(entry, dict) and isinstance(entry.get("bbox"), list) and len(entry["bbox"]) == 4
        if all(type(value) in (int, float) and abs(value) < 1e9 for value in entry["bbox"])
        if isinstance(entry.get("image_id"), int | str)
        if (size := sizes.get(entry["image_id"])) is not None
    ]
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 6)
    first, second, limits = boxes[:, :2], boxes[:, 2:4], boxes[:, 4:]
    outside = np.any((first + second > 1.05 * limits), axis=1)
    if are_corners(first, second, limits, outside):
        row = int(np.argmax(outside))
        width, height = rows[row][4:]
        raise AnnotationError(
            f"bbox of its annotations seems to be [x1, y1, x2, y2]: as [x, y, width, height], {outside.sum()} of "
            f"{len(rows)} leave their image, as does {[*rows[row][:4]]} of {width}x{height} pixels",
            where=str(path),
            remedy="write bbox as [x, y, width, height]",
        )


def _check_areas(entries: Sequence[Any], path: Path) -> None:
    rows = [
        (*entry["bbox"], entry["area"])
        for entry in entries[:COMPARED]
        if isinstance(entry, dict) and isinstance(entry.get("bbox"), list) and len(entry["bbox"]) == 4
        if all(type(value) in (int, float) and abs(value) < 1e9 for value in (*entry["bbox"], entry.get("area")))
        if entry["area"] > 0
    ]
    left, top, third, fourth, area = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    of_corners = np.abs((third - left) * (fourth - top) - area) <= 0.001 * area
    if of_corners.all() and (area < 0.99 * third * fourth).sum() >= 3:
        raise AnnotationError(
            f"bbox of its annotations is [x1, y1, x2, y2]: the areas are those of corners, as of {[*rows[0][:4]]}",
            where=str(path),
            remedy="write bbox as [x, y, width, height]",
        )


# -- polygons ----------------------------------------------------------------------------------------------------------


def _polygons(shape: Any) -> list[NDArray[np.float64]]:
    """The polygons of a segmentation, each (P, 2) float64 x y.

    COCO has a list of polygons ``[x1, y1, x2, y2, …]``. One that is not in a list is read, too, and points ``[x, y]``
    in place of the numbers. What has fewer than three points may be a box or a line, and is not a polygon.
    """
    if not isinstance(shape, list):
        return []
    single = _polygon(shape)
    return [single] if single is not None else [found for part in shape if (found := _polygon(part)) is not None]


def _polygon(values: Any) -> NDArray[np.float64] | None:
    if isinstance(values, list) and values and all(isinstance(point, list) and len(point) == 2 for point in values):
        values = [value for point in values for value in point]
    if not isinstance(values, list) or len(values) < 6 or len(values) % 2:
        return None
    if not all(type(value) in (int, float) for value in values):
        return None
    return np.array([_coordinate(value) for value in values], dtype=np.float64).reshape(-1, 2)


def _coordinate(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


# -- masks -------------------------------------------------------------------------------------------------------------


def _box_of_mask(shape: dict[str, Any], size: tuple[int, int] | None) -> Box | None:
    """Corners of the pixels of a mask in COCO's run lengths, or None if it has none or is not one of the image.

    ``size`` is height, width; ``counts`` are the lengths of runs of 0, 1, 0, … pixels, column after column, as numbers
    or compressed into a text (cocodataset/cocoapi, common/maskApi.c, rleToString).

    They are decoded here because ``pycocotools.mask.toBbox`` does not check them: runs beyond the image give a box
    beyond it, and a text that breaks off gives an empty one.
    """
    declared, counts = shape.get("size"), shape.get("counts")
    if not isinstance(declared, list) or [type(side) for side in declared] != [int, int]:
        return None
    height, width = declared
    if size is not None and (width, height) != size:
        return None
    runs = _decompressed(counts) if isinstance(counts, str) else _whole_numbers(counts)
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        return None
    ends = runs.cumsum()[1::2]
    starts = ends - runs[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(ends):
        return None
    first, last = starts // height, (ends - 1) // height
    whole = (first != last).any()  # a run that reaches the next column has the bottom of one and the top of the other
    top = 0 if whole else int((starts % height).min())
    bottom = height if whole else int(((ends - 1) % height).max()) + 1
    return float(first.min()), float(top), float(last.max() + 1), float(bottom)


def _whole_numbers(counts: Any) -> NDArray[np.int64] | None:
    if not isinstance(counts, list) or not all(type(count) is int and 0 <= count < 2**31 for count in counts):
        return None
    return np.array(counts, dtype=np.int64)


def _decompressed(text: str) -> NDArray[np.int64] | None:
    """Run lengths of a compressed text: five bits a character, the sixth says that more follow; differences."""
    if not text.isascii():
        return None
    bits = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        return None
    ends = np.flatnonzero(bits & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(bits)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        return None
    values = np.add.reduceat((bits & 31) << (5 * place), starts)
    values -= np.where(bits[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)  # the highest bit is the sign
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values
