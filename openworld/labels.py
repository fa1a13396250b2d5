"""The label space of a task: previous | current | unknown | background.

This is the only place that turns class names into head rows and back. The rows of a detector's head are

    0 … K-1   known classes, in the order in which the tasks introduced them (previous first, then current)
    K         unknown
    K+1       background

so that a class keeps its row for ever, and unknown and background are always the last two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openworld.errors import ConfigError, DataError

UNKNOWN_NAME = "unknown"
BACKGROUND_NAME = "background"


@dataclass(frozen=True)
class LabelSpace:
    """Classes known at one task of a schedule.

    Args:
        tasks: class names, one tuple a task, in the order of the schedule.
        task: the current task, counted from 1.

    Raises:
        ConfigError: a task without classes, a class named twice, a reserved name, a task outside the schedule.
    """

    tasks: tuple[tuple[str, ...], ...]
    task: int

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

    @classmethod
    def of(cls, tasks: Sequence[Sequence[str]], task: int) -> LabelSpace:
        """Build from any nested sequence of names."""
        return cls(tuple(tuple(names) for names in tasks), task)

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
    def unknown(self) -> int:
        """Head row of *unknown*."""
        return self.num_known

    @property
    def background(self) -> int:
        """Head row of *background*."""
        return self.num_known + 1

    @property
    def num_rows(self) -> int:
        """Rows of the classification head: known classes, unknown, background."""
        return self.num_known + 2

    @property
    def row_names(self) -> tuple[str, ...]:
        return (*self.known, UNKNOWN_NAME, BACKGROUND_NAME)

    def row(self, name: str) -> int:
        """Head row of a known class, of ``unknown`` or of ``background``.

        Raises:
            DataError: the name is not known at this task.
        """
        try:
            return self.row_names.index(name)
        except ValueError:
            raise DataError(
                f"class {name!r} is not known at task {self.task}",
                remedy=f"known are: {', '.join(self.known)}",
            ) from None

    def row_or_unknown(self, name: str) -> int:
        """Head row of a known class; every other name is an unknown object."""
        known = self.known
        return known.index(name) if name in known else self.unknown

    def name(self, row: int) -> str:
        return self.row_names[row]

    def at(self, task: int) -> LabelSpace:
        """The same schedule at another task."""
        return LabelSpace(self.tasks, task)

    def kept_rows(self, older: LabelSpace) -> list[tuple[int, int]]:
        """Where the rows of an older label space stand in this one: (old row, new row) pairs.

        Known classes keep their row; unknown and background move to the end.

        Raises:
            ConfigError: the older label space is not a beginning of this one.
        """
        if self.known[: older.num_known] != older.known:
            raise ConfigError(
                f"the classes {list(older.known)} are not the first known classes of {list(self.known)}",
                remedy="a model can only grow along the schedule that it was trained with",
            )
        pairs = [(row, row) for row in range(older.num_known)]
        return [*pairs, (older.unknown, self.unknown), (older.background, self.background)]
