"""Published schedules by name, schedules of files and runs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from openworld.config import RunConfig
from openworld.configfile import dump_config
from openworld.data.options import default_tasks
from openworld.data.schedules import COCO_TO_VOC, SCHEDULES, read_schedule
from openworld.errors import ConfigError

OWODB_SIZES = {"m_owodb": [20, 20, 20, 20], "s_owodb": [19, 21, 20, 20]}


@pytest.mark.parametrize(("name", "sizes"), OWODB_SIZES.items())
def test_open_world_schedules(name: str, sizes: list[int]) -> None:
    schedule = read_schedule(name)
    assert schedule.name == name and [len(names) for names in schedule.tasks] == sizes
    every = [name for names in schedule.tasks for name in names]
    assert len(set(every)) == 80 and schedule.at(4).num_known == 80
    assert set(schedule.rename.values()) <= set(every) and not set(schedule.rename) & set(every)
    assert schedule.rename["airplane"] == "aeroplane" and "aeroplane" not in schedule.rename
    assert "unknown" not in every


def test_both_open_world_schedules_order_the_same_classes() -> None:
    mixed, separate = (read_schedule(name) for name in OWODB_SIZES)
    assert set(sum(mixed.tasks, ())) == set(sum(separate.tasks, ()))
    assert mixed.tasks[2] == separate.tasks[2]
    # the super-category of animals is whole in the first task of the second schedule
    assert {"cat", "zebra", "giraffe", "elephant"} <= set(separate.tasks[0])
    assert "zebra" not in mixed.tasks[0] and "zebra" in mixed.tasks[1]


@pytest.mark.parametrize("first", [10, 15, 19])
def test_incremental_schedules_cut_the_alphabet_of_voc(first: int) -> None:
    schedule = read_schedule(f"voc_{first}_{20 - first}")
    every = sum(schedule.tasks, ())
    assert list(every) == sorted(every) and len(every) == 20
    assert [len(names) for names in schedule.tasks] == [first, 20 - first]
    assert set(every) == set(SCHEDULES["m_owodb"].tasks[0]) and set(COCO_TO_VOC.values()) <= set(every)


def test_a_file_with_tasks(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("tasks:\n- [cat, dog]\n- [traffic light]\nrename: {hound: dog}\n", encoding="utf-8-sig")
    schedule = read_schedule(path)
    assert schedule.tasks == (("cat", "dog"), ("traffic light",)) and schedule.rename == {"hound": "dog"}
    assert schedule.name == str(path)
    path.write_text("tasks: [[cat]]")
    assert read_schedule(str(path)).rename == {}


def test_a_configuration_and_the_folder_of_a_run(tmp_path: Path) -> None:
    config = RunConfig(tasks=2)
    config.data.rename = {"disc": "ball"}
    (tmp_path / "config.yaml").write_text(dump_config(config))
    for place in (tmp_path, tmp_path / "config.yaml"):
        schedule = read_schedule(place)
        assert [list(names) for names in schedule.tasks] == default_tasks() and schedule.rename == {"disc": "ball"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m-owod", "did you mean 'm_owodb'"),
        ("S-OWODB", "did you mean 's_owodb'"),
        ("voc_10_5", "did you mean 'voc_1"),
        ("xyz", "name one of: m_owodb, s_owodb, voc_10_10, voc_15_5, voc_19_1"),
        ("nowhere/own.yaml", "there is no such file"),
        ("own.yaml", "there is no such file"),
    ],
)
def test_a_name_that_nobody_knows(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_schedule(name)
    assert words in str(caught.value) and name in str(caught.value)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        read_schedule(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no list `tasks`"),
        ("- [cat]", "holds a list"),
        ("tasks: [[cat]", "cannot be read as YAML"),
        ("tasks: 2", "has no list `tasks`"),
        ("tasks: 0\ndata: {synthetic: null}", "has no list `tasks`"),
        ("tasks: []", "`tasks` is empty"),
        ("tasks: [[cat], []]", "task 2 has no classes"),
        ("tasks: [cat, no]", "write [[cat, no]] for a single task, or [[cat], [no]] for a task each"),
        ("tasks: [[cat], dog]", "task 2 is 'dog', not a list"),
        ("tasks: {1: [cat]}", "has no list `tasks`"),
        ("tasks: [[cat, null]]", "class null of task 1 is not a text"),
        ("tasks:\n- - cat\n  - # dog", "class null of task 1 is not a text"),
        ("tasks: [[cat, ' ']]", "class ' ' of task 1 is blank"),
        ("tasks: [[cat, [dog]]]", "class ['dog'] of task 1 is not a text"),
        ("tasks: [[cat], [cat]]", "class 'cat' is in task 1 and in task 2"),
        ("tasks: [[unknown]]", "reserved"),
        ("tasks: [[cat]]\nrename: [a]", "`rename` is ['a'], not a mapping"),
        ("tasks: [[cat]]\nrename: {hound: }", "null, the name for 'hound', is not a text"),
        ("tasks: [[cat]]\nrename: {~: cat}", "the name null is not a text"),
        ("tasks: [[cat]]\nrename: {a: cat, 'a': dog}", "line 2: the key 'a' is in line 2 already"),
        ("tasks: [[cat]]\ntasks: [[dog]]", "line 2: the key 'tasks' is in line 1 already"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_schedule(path)
    assert words in str(caught.value) and "own.yaml" in str(caught.value) and "What to do:" in str(caught.value)


def test_names_that_yaml_takes_for_something_else(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "tasks: [[no, 0, 007, 1e3], [0x10, 1.5, 2020-01-01, 99999999999999999999]]\nrename: {off: no, 1: 0}"
    )
    schedule = read_schedule(path)
    assert schedule.tasks == (("no", "0", "007", "1e3"), ("0x10", "1.5", "2020-01-01", "99999999999999999999"))
    assert schedule.rename == {"off": "no", "1": "0"}
    assert {type(name) for names in schedule.tasks for name in names} == {str}


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "own.json").write_text("{}")
    with pytest.raises(ConfigError, match="line 1 is not UTF-16"):
        read_schedule(tmp_path / "own.yaml")
    with pytest.raises(ConfigError, match=r"is not a \.yaml file"):
        read_schedule(tmp_path / "own.json")


def test_a_task_that_the_schedule_lacks() -> None:
    with pytest.raises(ConfigError, match="task 5 is not in a schedule of 4 tasks"):
        read_schedule("m_owodb").at(5)
