"""The label space: rows by hand, growth along the schedule."""

import pytest

from openworld.errors import ConfigError, DataError
from openworld.labels import LabelSpace

TASKS = (("cat", "dog"), ("car",), ("cup", "pen"))


def test_rows_by_hand() -> None:
    space = LabelSpace.of(TASKS, 2)
    assert space.previous == ("cat", "dog")
    assert space.current == ("car",)
    assert [space.row(name) for name in ("cat", "dog", "car", "unknown", "background")] == [0, 1, 2, 3, 4]
    assert space.num_rows == 5
    assert space.row_or_unknown("cup") == space.unknown == 3


def test_growth_keeps_known_rows_and_moves_the_last_two() -> None:
    assert LabelSpace.of(TASKS, 2).kept_rows(LabelSpace.of(TASKS, 1)) == [(0, 0), (1, 1), (2, 3), (3, 4)]


def test_growth_along_another_schedule_is_refused() -> None:
    with pytest.raises(ConfigError, match="not the first known"):
        LabelSpace.of((("dog", "cat"), ("car",)), 2).kept_rows(LabelSpace.of(TASKS, 1))


@pytest.mark.parametrize(
    ("tasks", "task", "message"),
    [
        ((("cat",), ("cat",)), 1, "'cat' is in task 1 and in task 2"),
        ((("unknown",),), 1, "reserved"),
        ((("cat",), ()), 1, "task 2 has no classes"),
        ((("cat",),), 2, "not in a schedule of 1"),
    ],
)
def test_bad_schedules_name_the_culprit(tasks: tuple[tuple[str, ...], ...], task: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelSpace(tasks, task)


def test_a_later_class_is_not_known_yet() -> None:
    with pytest.raises(DataError, match="'cup' is not known at task 2"):
        LabelSpace.of(TASKS, 2).row("cup")
