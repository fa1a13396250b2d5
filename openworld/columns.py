"""Columns of a data set that are not plain arrays: ids and texts, and rows that belong to groups."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

ImageId = int | str
IntArray = NDArray[np.int64]


class Names(Sequence[ImageId]):
    """A column of ids or texts, packed into one array of bytes.

    Worker processes that are forked share the array with their parent. They would copy a list of texts bit by bit,
    because using a Python object writes to its reference count.

    Args:
        values: whole numbers and texts.
    """

    def __init__(self, values: Iterable[ImageId] = ()) -> None:
        parts = [json.dumps(value).encode() for value in values]
        self.text: NDArray[np.uint8] = np.frombuffer(b"".join(parts), dtype=np.uint8)
        self.ends = ends_of(np.array([len(part) for part in parts], dtype=np.int64))

    @classmethod
    def of_arrays(cls, text: NDArray[np.uint8], ends: IntArray) -> Self:
        """Wrap packed values: entry i is the JSON in ``text[ends[i]:ends[i + 1]]``."""
        names = cls.__new__(cls)
        names.text, names.ends = text, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> ImageId: ...

    @overload
    def __getitem__(self, index: slice) -> Names: ...

    def __getitem__(self, index: int | slice) -> ImageId | Names:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                return self.take(np.arange(first, last, step))
            return Names.of_arrays(self.text, self.ends[first : max(first, last) + 1])
        place = range(len(self))[index]
        found: ImageId = json.loads(self.text[self.ends[place] : self.ends[place + 1]].tobytes())
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"Names({list(self)!r})"

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """The entries of all parts, part after part."""
        sizes = np.concatenate([np.diff(part.ends) for part in parts])
        texts = [part.text[int(part.ends[0]) : int(part.ends[-1])] for part in parts]
        return cls.of_arrays(np.concatenate(texts), ends_of(sizes))

    def take(self, rows: IntArray) -> Names:
        """The entries of (M,) rows, in their order."""
        places, ends = members_of(self.ends, rows)
        return Names.of_arrays(self.text[places], ends)


def ends_of(sizes: IntArray) -> IntArray:
    """(G,) sizes of groups -> (G + 1,) where each begins and the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def members_of(offsets: IntArray, groups: IntArray) -> tuple[IntArray, IntArray]:
    """Positions of all members of the groups, group after group.

    Args:
        offsets: (G + 1,) the members of group g are ``offsets[g]`` … ``offsets[g + 1] - 1``.
        groups: (M,) the groups that are wanted.

    Returns:
        their members, and the (M + 1,) offsets of the groups among these.
    """
    sizes = np.diff(offsets)[groups]
    ends = ends_of(sizes)
    return np.arange(ends[-1]) + np.repeat(offsets[groups] - ends[:-1], sizes), ends
