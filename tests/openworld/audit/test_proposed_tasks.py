"""Proposed schedules: dealt out by hand, and read back by the reader of schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openworld.audit.proposed_tasks import by_frequency, by_group, propose, read_groups, schedule_text
from openworld.data.schedules import read_schedule
from openworld.errors import ConfigError, DataError, OpenWorldError

COUNTS = {"ant": 5, "bee": 50, "cow": 7, "dog": 50, "elk": 0, "fox": 1}


def test_most_frequent_first_and_balanced() -> None:
    assert by_frequency(COUNTS, 2) == [["bee", "dog", "cow"], ["ant", "fox"]]
    assert by_frequency(COUNTS, 2, leave_unknown=1) == [["bee", "dog"], ["cow", "ant"]]
    assert by_frequency(COUNTS, 5) == [["bee"], ["dog"], ["cow"], ["ant"], ["fox"]]


@pytest.mark.parametrize(("tasks", "unknown"), [(6, 0), (4, 2), (0, 0), (1, -1)])
def test_numbers_that_do_not_fit(tasks: int, unknown: int) -> None:
    with pytest.raises(ConfigError):
        by_frequency(COUNTS, tasks, leave_unknown=unknown)


def test_groups() -> None:
    groups = {"fox": "wild", "ant": "small", "bee": "small", "elk": "wild"}
    assert by_group(COUNTS, groups) == [["fox"], ["bee", "ant"]]
    assert by_group(COUNTS, groups, leave_unknown=1) == [["bee", "ant"]]
    assert by_group(COUNTS, {"fox": 2, "ant": 10, "bee": 1}) == [["bee"], ["fox"], ["ant"]]
    with pytest.raises(DataError, match="the groups name 'yak'"):
        by_group(COUNTS, {"yak": 1})
    with pytest.raises(ConfigError, match="no group has a class"):
        by_group(COUNTS, {"elk": 1})


@pytest.mark.parametrize("content", ["[a]", "", "{a: [b]}", "{null: 1}", "{a: }", "{a: b, 'a': c}", "{a"])
def test_groups_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"groups\.yaml"):
        read_groups(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_groups(tmp_path / "none.yaml")


def test_groups_that_yaml_takes_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text("no: 1\n007: on\n1_0: 2020-01-01\n'8': 010\n")
    assert read_groups(path) == {"no": 1, "007": "on", "1_0": "2020-01-01", "8": "010"}


def test_propose(tmp_path: Path) -> None:
    path = tmp_path / "groups.yaml"
    path.write_text("bee: 1\ndog: 2\n")
    assert propose(COUNTS, None, str(path))[0] == [["bee"], ["dog"]]
    with pytest.raises(ConfigError, match="the groups make 2 tasks, and 3 are asked for"):
        propose(COUNTS, 3, str(path))
    with pytest.raises(ConfigError, match="number of tasks is not given"):
        propose(COUNTS, None, "frequency")


def test_text_by_hand() -> None:
    assert schedule_text([["bee", "cow"], ["no"]], {"bee": 50, "cow": 7, "no": 1000, "fox": 1}, "By hand.") == (
        "# By hand.\n"
        "# Change it as you like: move lines, or delete them; a class of no task stays unknown.\n"
        "tasks:\n"
        "  - # task 1: 2 classes, 57 objects\n"
        "    - bee   # 50\n"
        "    - cow   # 7\n"
        "  - # task 2: 1 class, 1,000 objects\n"
        "    - 'no'  # 1,000\n"
        "# in no task:\n"
        "#   - fox   # 1\n"
    )


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12).filter(
    lambda name: name.strip() == name
)


def test_a_name_that_looks_like_a_number_is_put_into_quotes(tmp_path: Path) -> None:
    (tmp_path / "schedule.yaml").write_text(schedule_text([["0E0", "7"]], {"0E0": 2, "7": 1}, "By frequency."))
    assert read_schedule(tmp_path / "schedule.yaml").tasks == (("0E0", "7"),)


@given(counts=st.dictionaries(NAMES, st.integers(1, 10**6), min_size=1, max_size=9), data=st.data())
def test_text_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, counts: dict[str, int], data: st.DataObject
) -> None:
    tasks = by_frequency(counts, data.draw(st.integers(1, len(counts))))
    path = tmp_path_factory.mktemp("schedule") / "schedule.yaml"
    path.write_text(schedule_text(tasks, counts, "By frequency."), encoding="utf-8")
    try:
        found = read_schedule(path).tasks
    except OpenWorldError as error:
        assert "reserved" in str(error)
        return
    assert [list(names) for names in found] == tasks
    sizes = [len(names) for names in tasks]
    assert max(sizes) - min(sizes) <= 1
