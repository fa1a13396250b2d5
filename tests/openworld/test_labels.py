"""The label space: rows by hand, growth along the schedule."""

import numpy as np
import pytest
import torch

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


def test_fixed_rows_by_hand() -> None:
    space = LabelSpace.of(TASKS, 2, "fixed")
    assert space.known == ("cat", "dog", "car") and space.future == ("cup", "pen")
    assert [space.row(name) for name in ("cat", "dog", "car", "unknown", "background")] == [0, 1, 2, 5, 6]
    assert space.num_rows == 7 and list(space.future_rows) == [3, 4]
    assert space.row_names == ("cat", "dog", "car", "cup", "pen", "unknown", "background")
    assert space.row_or_unknown("cup") == space.unknown == 5
    assert space.detected_rows == (0, 1, 2, 5)
    assert space.at(3).future_rows == range(5, 5) and space.at(3).detected_rows == (0, 1, 2, 3, 4, 5)
    assert space.growing == LabelSpace.of(TASKS, 2) and space.growing.unknown == 3
    with pytest.raises(DataError, match="'cup' is not known at task 2"):
        space.row("cup")


@pytest.mark.parametrize("task", [1, 2, 3])
@pytest.mark.parametrize("layout", ["growing", "fixed"])
def test_rows_of_both_layouts_agree_by_name(layout: str, task: int) -> None:
    space = LabelSpace.of(TASKS, task, layout)  # type: ignore[arg-type]
    assert [space.name(space.row(name)) for name in (*space.known, "unknown", "background")] == [
        *space.known,
        "unknown",
        "background",
    ]
    assert len(space.row_names) == space.num_rows == space.background + 1
    rows = list(range(-1, space.num_rows))
    wanted = [row >= 0 and space.row_names[row] in space.known for row in rows]
    assert space.is_known(torch.tensor(rows)).tolist() == space.is_known(np.array(rows)).tolist() == wanted
    assert space.detected_rows == tuple(row for row in rows if wanted[row + 1] or row == space.unknown)
    assert (len(space.future_rows) == 0) == (layout == "growing" or task == 3)


def test_a_fixed_head_does_not_move() -> None:
    later = LabelSpace.of(TASKS, 3, "fixed")
    assert later.kept_rows(later.at(1)) == [(row, row) for row in range(7)]
    with pytest.raises(ConfigError, match="growing layout cannot go on in fixed"):
        later.kept_rows(LabelSpace.of(TASKS, 1))
    with pytest.raises(ConfigError, match="a fixed head has the classes of one schedule"):
        LabelSpace.of((("cat", "dog"), ("van",), ("cup", "pen")), 2, "fixed").kept_rows(later.at(1))
    with pytest.raises(ConfigError, match="first known classes"):
        later.at(1).kept_rows(later)
    with pytest.raises(ConfigError, match="layout of the head is 'round'"):
        LabelSpace.of(TASKS, 1, "round")  # type: ignore[arg-type]


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
