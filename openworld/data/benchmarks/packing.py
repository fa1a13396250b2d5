"""Lists of image ids in few bytes: ``lists.xz``.

An id of VOC 2007 is ``NNNNNN``, of VOC 2012 ``YYYY_NNNNNN``, of COCO twelve digits; each becomes one whole number. The
published training lists follow the order of COCO's annotation files, so a list is stored as steps along that order,
most of which are 1 or 2.

Layout after xz: a line of JSON, ``[[name, number of entries], …]``, then for each name its entries as four planes of
bytes (all lowest bytes, then the next, …), little-endian, signed. The first is ``order``, the ids as numbers; the
others are differences of positions in it.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOC2007_OFFSET = 10**9
"""Added to the number of a VOC 2007 id: above all of COCO's, below ``YYYY`` times a million."""


def id_number(image_id: str) -> int:
    """The number of an id.

    Raises:
        ValueError: an id of none of the three forms.
    """
    year, separator, rest = image_id.partition("_")
    if separator and len(year) == 4 and len(rest) == 6:
        return int(year) * 10**6 + int(rest)
    if not separator and len(image_id) == 6:
        return VOC2007_OFFSET + int(image_id)
    if not separator and len(image_id) == 12:
        return int(image_id)
    raise ValueError(f"{image_id!r} is not an image id of VOC 2007, VOC 2012 or COCO")


def number_id(number: int) -> str:
    """The id of a number; the inverse of :func:`id_number`."""
    if number >= 2 * VOC2007_OFFSET:
        return f"{number // 10**6}_{number % 10**6:06d}"
    if number >= VOC2007_OFFSET:
        return f"{number - VOC2007_OFFSET:06d}"
    return f"{number:012d}"


def pack(order: Sequence[str], lists: Mapping[str, Sequence[str]]) -> bytes:
    """The bytes of ``lists.xz``.

    Args:
        order: every id that a list names, once.
        lists: ids by name; an id may repeat.

    Raises:
        ValueError: an id that ``order`` does not have, or has twice.
    """
    position = {image_id: place for place, image_id in enumerate(order)}
    if len(position) != len(order):
        raise ValueError("the order names an id twice")
    absent = {image_id for ids in lists.values() for image_id in ids} - position.keys()
    if absent:
        raise ValueError(f"{len(absent)} ids are not in the order, such as {min(absent)!r}")
    columns = {"order": np.array([id_number(image_id) for image_id in order], dtype="<i4")}
    for name, ids in lists.items():
        columns[name] = np.diff(np.array([position[image_id] for image_id in ids], dtype="<i4"), prepend=np.int32(0))
    head = json.dumps([[name, len(column)] for name, column in columns.items()]).encode() + b"\n"
    planes = [column.astype("<i4").view(np.uint8).reshape(-1, 4).T.tobytes() for column in columns.values()]
    return lzma.compress(head + b"".join(planes), preset=6 | lzma.PRESET_EXTREME)


def unpack(content: bytes) -> dict[str, NDArray[Any]]:
    """The lists of :func:`pack`: numbers of ids by name, (L,) int32 in the order of each list.

    Raises:
        ValueError: content that is damaged or of another kind.
    """
    try:
        head, _, planes = lzma.decompress(content).partition(b"\n")
        sizes: list[tuple[str, int]] = json.loads(head)
        if sum(4 * size for _, size in sizes) != len(planes):
            raise ValueError("its length differs from what its head says")
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it cannot be decompressed ({error})") from None
    columns, start = {}, 0
    for name, size in sizes:
        block = np.frombuffer(planes, dtype=np.uint8, count=4 * size, offset=start)
        columns[name] = np.ascontiguousarray(block.reshape(4, size).T).view("<i4").reshape(size)
        start += 4 * size
    order = columns.pop("order")
    return {name: order[np.cumsum(steps)] for name, steps in columns.items()}
