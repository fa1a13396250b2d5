"""The label space of a task: previous | current | unknown | background.

This is the only place that turns class names into head rows and back. The rows of a detector's head are

    0 … K-1   known classes, in the order in which the tasks introduced them (previous first, then current)
    K … F-1   classes of later tasks: only in the ``fixed`` layout; in the ``growing`` layout there are none, F = K
    F         unknown
    F+1       background

so a class always keeps its row, the known classes are always the first rows, and unknown and background are always the
last two. Files (predictions, metrics) hold class names, and are read in the growing layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from openworld.errors import ConfigError, DataError

UNKNOWN_NAME = "unknown"
BACKGROUND_NAME = "background"

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Rows = TypeVar("Rows", Tensor, np.ndarray[Any, Any])


@dataclass(frozen=True)
class LabelSpace:
    """Classes known at one task of a schedule.

    Args:
        tasks: class names, one tuple per task, in the order of the schedule.
        task: the current task, counted from 1.
        layout: ``growing`` has rows for the known classes; a later task adds its own, and unknown and background move
            behind them. ``fixed`` has rows for all classes of the schedule from the start, as in the reference code of
            ORE (81 + 1 rows); no row ever moves.

    Raises:
        ConfigError: a task has no classes, a class is named twice, a name is reserved, the task is outside the
            schedule, or the layout does not exist.
    """

    tasks: tuple[tuple[str, ...], ...]
    task: int
    layout: Literal["growing", "fixed"] = "growing"

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for number, names in enumerate(self.tasks, start=1):
            if not names:
                raise ConfigError(f"task {number} has no classes", remedy="name at least one class for every task")
            for name in names:
                if name in (UNKNOWN_NAME, BACKGROUND_NAME):
                    raise ConfigError(f"class name {name!r} of task {number} is reserved", remedy="rename the class")
                if name in seen:
                    raise ConfigError(
                        f"class {name!r} is in task {seen[name]} and in task {number}",
                        remedy="a class belongs to one task",
                    )
                seen[name] = number
        if not 1 <= self.task <= len(self.tasks):
            raise ConfigError(
                f"task {self.task} is not in a schedule of {len(self.tasks)} tasks",
                remedy=f"choose a task from 1 to {len(self.tasks)}",
            )
        if self.layout not in ("growing", "fixed"):
            raise ConfigError(f"the layout of the head is {self.layout!r}", remedy="choose growing or fixed")

    @classmethod
    def of(
        cls, tasks: Sequence[Sequence[str]], task: int, layout: Literal["growing", "fixed"] = "growing"
    ) -> LabelSpace:
        """Build from any nested sequence of names."""
        return cls(tuple(tuple(names) for names in tasks), task, layout)

    @property
    def previous(self) -> tuple[str, ...]:
        """Classes of the tasks before the current one."""
        return tuple(name for names in self.tasks[: self.task - 1] for name in names)

    @property
    def current(self) -> tuple[str, ...]:
        """Classes that the current task introduces."""
        return self.tasks[self.task - 1]

    @property
    def known(self) -> tuple[str, ...]:
        """Previous and current classes; a name's position is its head row."""
        return self.previous + self.current

    @property
    def num_known(self) -> int:
        return len(self.known)

    @property
    def future(self) -> tuple[str, ...]:
        """Classes of later tasks, in the order of the schedule."""
        return tuple(name for names in self.tasks[self.task :] for name in names)

    @property
    def future_rows(self) -> range:
        """Head rows of classes that no task has taught yet; none in the growing layout."""
        return range(self.num_known, self.num_known + (len(self.future) if self.layout == "fixed" else 0))

    @property
    def unknown(self) -> int:
        """Head row of *unknown*."""
        return self.future_rows.stop

    @property
    def background(self) -> int:
        """Head row of *background*."""
        return self.unknown + 1

    @property
    def num_rows(self) -> int:
        """Rows of the classification head."""
        return self.unknown + 2

    @property
    def row_names(self) -> tuple[str, ...]:
        future = self.future if self.layout == "fixed" else ()
        return (*self.known, *future, UNKNOWN_NAME, BACKGROUND_NAME)

    @property
    def detected_rows(self) -> tuple[int, ...]:
        """Head rows that a detection may have: the known classes, then unknown."""
        return (*range(self.num_known), self.unknown)

    @property
    def growing(self) -> LabelSpace:
        """The same task in the growing layout, in which files are read."""
        return replace(self, layout="growing")

    def is_known(self, rows: Rows) -> Rows:
        """Return which head rows of an array are known classes: an array of bool, of the same shape and library."""
        return (rows >= 0) & (rows < self.num_known)

    def row(self, name: str) -> int:
        """Return the head row of a known class, of ``unknown`` or of ``background``.

        Raises:
            DataError: the name is not known at this task.
        """
        rows = {name: row for row, name in enumerate(self.known)}
        rows |= {UNKNOWN_NAME: self.unknown, BACKGROUND_NAME: self.background}
        if name not in rows:
            raise DataError(
                f"class {name!r} is not known at task {self.task}",
                remedy=f"known are: {', '.join(self.known)}",
            )
        return rows[name]

    def row_or_unknown(self, name: str) -> int:
        """Return the head row of a known class, and that of unknown for every other name."""
        known = self.known
        return known.index(name) if name in known else self.unknown

    def name(self, row: int) -> str:
        return self.row_names[row]

    def at(self, task: int) -> LabelSpace:
        """Return the label space of the same schedule at another task."""
        return replace(self, task=task)

    def kept_rows(self, older: LabelSpace) -> list[tuple[int, int]]:
        """Return the positions of the rows of an older label space in this one: (old row, new row) pairs.

        In the growing layout known classes keep their row, and unknown and background move to the end. In the fixed
        layout every row stays where it is.

        Raises:
            ConfigError: the older label space is not a beginning of this one, or has another layout.
        """
        if self.layout != older.layout:
            raise ConfigError(
                f"a head of {older.layout} layout cannot go on in {self.layout} layout",
                remedy="keep model.layout as the model was trained with",
            )
        if self.layout == "fixed" and self.row_names != older.row_names:
            raise ConfigError(
                f"the rows {list(older.row_names)} are not the rows {list(self.row_names)}",
                remedy="a fixed head has the classes of one schedule; train a new model for another",
            )
        if self.known[: older.num_known] != older.known:
            raise ConfigError(
                f"the classes {list(older.known)} are not the first known classes of {list(self.known)}",
                remedy="a model can only grow along the schedule that it was trained with",
            )
        pairs = [(row, row) for row in range(older.unknown)]
        return [*pairs, (older.unknown, self.unknown), (older.background, self.background)]
