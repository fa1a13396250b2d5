"""Class numbers of a set that counts them otherwise than its format does."""

from __future__ import annotations

from collections.abc import Iterable

from openworld.repairs import Repairs

FROM_ONE = "class numbers begin at 1, and YOLO counts from 0"
"""Kind of repair, although nothing can be repaired: whether the numbers or the names are wrong is not known."""


def note_numbers_from_one(numbers: Iterable[int], count: int, where: object, repairs: Repairs) -> None:
    """Note where the class numbers of a set are 1 to ``count``: one class too far, and never the first one.

    Args:
        numbers: the class number of every object, as written.
        count: number of class names.
        where: the set, for the message.
        repairs: counts it.
    """
    seen = set(numbers)
    if seen and min(seen) >= 1 and max(seen) == count:
        repairs.add(
            FROM_ONE,
            f"{where}: its numbers are 1 to {count} for {count} names, so that each object has the name of the class "
            "after its own, and those of the last one are dropped: subtract 1 from each, or add the missing name",
        )
