"""The audit of a split: what it counts, what it says, and that its advice follows the facts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from openworld.audit.split import audit_split
from openworld.audit.terminal import ceiling_rows, print_audit
from openworld.errors import ConfigError
from openworld.metrics.protocols import ORE, UNIQUE
from openworld.records import Dataset, Record
from openworld.repairs import Repairs

NAMES = ("cat", "dog", "cow", "bird")
TASKS = [["cat"], ["dog"], ["cow"]]


def record(
    name: Any, *names: str, listed: int = 1, path: Path | None = None, crowd: str = "", ignore: str = ""
) -> Record:
    """Objects 50 pixels apart. The letters of ``crowd`` and ``ignore`` are x where an object is one."""
    categories = np.array([NAMES.index(one) for one in names], dtype=np.int64)
    boxes = [[50.0 * place, 0.0, 50.0 * place + 40, 40.0] for place in range(len(names))]
    crowds = np.array([mark == "x" for mark in crowd.ljust(len(names))], dtype=np.bool_)
    ignored = np.array([mark == "x" for mark in ignore.ljust(len(names))], dtype=np.bool_)
    return Record(
        image_id=name,
        path=path or Path("nowhere") / str(name),
        width=500,
        height=100,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        categories=categories,
        ignore=ignored | crowds,
        crowd=crowds,
        listed=listed,
    )


def dataset(*records: Record) -> Dataset:
    return Dataset.from_records(NAMES, records)


def findings(result: dict[str, Any]) -> str:
    return "\n".join(f"{one['level']} {one['set']}: {one['finding']} {one['remedy']}" for one in result["findings"])


def printed(result: dict[str, Any], width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_audit(result, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


EVERY = ("cat", "dog", "cow", "bird")


def test_a_sound_split_has_notes_only() -> None:
    result = audit_split(dataset(record("a", *EVERY)), TASKS, hash_files=False)
    assert {one["level"] for one in result["findings"]} == {"note"}
    assert "1 class of test is in no task (objects of bird: 1): they stay unknown for ever." in findings(result)
    assert result["classes"]["unnamed"] == {"bird": 1} and result["classes"]["absent"] == []
    assert [entry["unknown"] for entry in result["classes"]["tasks"]] == [3, 2, 1]
    assert result["files"] is result["training"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_nothing_found() -> None:
    result = audit_split(dataset(record("a", "cat", "dog", "cow", "bird")), [["cat", "dog", "cow"]], hash_files=False)
    assert [one["finding"] for one in result["findings"]] == [
        "1 class of test is in no task (objects of bird: 1): they stay unknown for ever."
    ]
    result["findings"] = []
    assert "Nothing was found that distorts scores." in printed(result)


def test_repeated_lines_and_the_ceilings() -> None:
    test = dataset(record("1", *EVERY, listed=2), record("2", *EVERY), record("02", *EVERY, listed=3))
    result = audit_split(test, TASKS, hash_files=False)
    assert result["sets"]["test"]["listings"]["duplicate_lines"] == 3
    assert result["sets"]["test"]["collisions"]["same_number"]["examples"] == [["2", "02"]]
    text = findings(result)
    assert (
        "warning test: 3 of 6 lines of test repeat an image (1 image twice and 1 image 3 times): recall under "
        "protocols ore, owdetr and randbox cannot reach 100 %."
    ) in text
    assert "2 ids of test are only 1 number" in text and "under protocols randbox and orthogonaldet" in text
    assert "Even a detector without any fault scores a known mAP of only" in text
    ore = [entry for entry in result["ceilings"] if entry["protocol"] == "ore"]
    assert [entry["task"] for entry in ore] == [1, 2, 3]
    assert [entry["unknown_objects"] for entry in ore] == [18, 12, 6]
    assert [entry["findable_unknown_objects"] for entry in ore] == [9, 6, 3]
    assert all(entry["unknown_recall50"] == 0.5 and entry["unknown_recall_factor"] == 2.0 for entry in ore)
    assert "2.0000" in printed(result)


def test_only_the_protocols_that_are_asked_for() -> None:
    test = dataset(record("a", *EVERY, listed=2))
    result = audit_split(test, TASKS, protocols={"unique": UNIQUE}, hash_files=False)
    assert [(entry["task"], entry["protocol"]) for entry in result["ceilings"]] == [(t, "unique") for t in (1, 2, 3)]
    assert "1 of 2 lines of test repeat an image (1 image twice)." in findings(result)
    result = audit_split(test, TASKS, protocols={"ore": ORE}, hash_files=False)
    assert "recall under protocol ore cannot reach 100 %" in findings(result)
    assert ceiling_rows(result["ceilings"])[0][:2] == ("1", "ore")


def test_what_a_task_is_not_told() -> None:
    train = dataset(
        record("a", "cat", "cat", "dog", "bird"),
        record("b", "dog", "cat", "cow", "cow"),
        record("c", "cow"),
        record("d", "dog", "dog", "cow", crowd=" xx"),
        record("e"),
    )
    result = audit_split(dataset(record("t", *EVERY)), TASKS, train=train, hash_files=False)
    first, second, third = result["training"]
    assert (first["images"], first["taught_objects"]) == (2, 3)
    assert (first["hidden_previous"], first["hidden_later"], first["hidden_unnamed"]) == (0, 4, 1)
    assert first["hidden_by_class"] == {"dog": 2, "cow": 2, "bird": 1} and first["examples"] == ["a", "b"]
    assert (second["images"], second["taught_objects"], second["hidden_crowds"]) == (3, 3, 2)
    assert (second["hidden_previous"], second["hidden_later"], second["hidden_unnamed"]) == (3, 2, 1)
    assert second["images_with_hidden_objects"] == second["images_with_unknown_objects"] == 2
    assert (third["images"], third["taught_objects"], third["hidden_previous"], third["hidden_later"]) == (2, 3, 2, 0)
    assert third["images_with_unknown_objects"] == 0
    text = findings(result)
    assert "Training images show objects that are not told: 5 at task 1 and 3 at task 2." in text
    assert "1 image of train has no object (e.g. e): training leaves it out." in text
    assert "Objects of train, as the task is told" in printed(result)


def test_classes_without_objects() -> None:
    test = dataset(record("t", "cat", "dog", "cow", "bird", ignore="  x"))
    result = audit_split(test, TASKS, train=dataset(record("a", "cat")), hash_files=False)
    text = findings(result)
    assert "warning test: 1 class of the schedule has no object in test (cow)" in text
    assert "problem train: Task 2 introduces dog, of which train has no object" in text
    assert "Task 1 introduces" not in text
    assert result["findings"][0]["level"] == "problem" and result["findings"][-1]["level"] == "note"


def test_no_unknown_objects() -> None:
    last = findings(audit_split(dataset(record("t", "cat", "dog", "cow")), TASKS, hash_files=False))
    assert "note test: Test has no unknown object at task 3" in last
    all_tasks = findings(audit_split(dataset(record("t", "cat")), TASKS, hash_files=False))
    assert "warning test: Test has no unknown object at task 1, 2 and 3" in all_tasks


# -- leaks ------------------------------------------------------------------------------------------------------------


def files(folder: Path, **contents: str) -> dict[str, Path]:
    for name, content in contents.items():
        (folder / name).write_text(content)
    return {name: folder / name for name in contents}


def test_a_leak_by_id_without_files() -> None:
    result = audit_split(
        dataset(record("1", *EVERY), record("2", *EVERY)),
        TASKS,
        train=dataset(record("2", *EVERY), record("01", *EVERY)),
        val=dataset(record("2", *EVERY)),
    )
    text = findings(result)
    assert "problem train_test: 1 image of test is in train, too (e.g. 2, judged by the id, as not all" in text
    assert "warning train_val: 1 image of val is in train, too" in text and "problem val_test" in text
    assert "note train_test: 1 pair of ids of train and test is equal as whole numbers (e.g. 01 and 1)." in text
    assert result["files"]["not_found"] == 3 and "3 image files could not be read" in text


def test_leaks_by_content(tmp_path: Path) -> None:
    paths = files(tmp_path, one="aaaa", again="aaaa", other="bbbb", long="aaaaa", copy="aaaa")
    train = dataset(record(1, *EVERY, path=paths["one"]), record(2, *EVERY, path=paths["other"]))
    test = dataset(
        record(1, *EVERY, path=paths["again"]),
        record(5, *EVERY, path=paths["copy"]),
        record(6, *EVERY, path=paths["long"]),
    )
    result = audit_split(test, TASKS, train=train)
    shared = result["files"]
    assert shared["compared"] == 5 and shared["not_found"] == 0
    assert shared["within"]["test"] == {"groups": 1, "images": 2, "examples": [[1, 5]]}
    assert shared["across"]["train_test"] == {
        "same_id": {"images": 1, "examples": [[1, 1]]},
        "other_id": {"images": 1, "examples": [[1, 5]]},
    }
    text = findings(result)
    assert "problem train_test: 1 image of test is in train, too (e.g. 1): the detector is tested on what it" in text
    assert "1 image of test has the same file content as an image of train with another id (e.g. 5 is 1)" in text
    assert "2 images of test have files of the same content under different ids (e.g. 1, 5)" in text


def test_other_images_that_are_numbered_alike_are_no_leak(tmp_path: Path) -> None:
    paths = files(tmp_path, one="aaaa", other="bbbb")
    result = audit_split(
        dataset(record(1, *EVERY, path=paths["one"])),
        TASKS,
        train=dataset(record(1, *EVERY, path=paths["other"])),
    )
    assert "note train_test: 1 id is in train and in test (e.g. 1), but the files differ" in findings(result)
    assert "problem" not in findings(result)


def test_one_file_in_two_sets(tmp_path: Path) -> None:
    path = files(tmp_path, one="aaaa")["one"]
    result = audit_split(dataset(record("x", *EVERY, path=path)), TASKS, train=dataset(record("y", *EVERY, path=path)))
    assert "1 image of test has the same file content as an image of train with another id (e.g. x is y)" in findings(
        result
    )


# -- edges ------------------------------------------------------------------------------------------------------------


def test_repairs_are_told_without_the_lists() -> None:
    repairs = Repairs()
    repairs.add("dropped: inverted", "here")
    repairs.add("image listed again", "there")
    result = audit_split(Dataset.from_records(NAMES, (record("a", *EVERY),), repairs), TASKS, hash_files=False)
    assert "note test: Annotations of test were repaired while reading: dropped: inverted (1)." in findings(result)
    assert result["sets"]["test"]["repair_examples"][0] == "dropped: inverted: here"


def test_more_objects_than_a_protocol_scores() -> None:
    result = audit_split(dataset(record("a", *("cat",) * 101, *EVERY)), TASKS, hash_files=False)
    assert "An image of test has 105 objects, more than the detections that are scored under protocols unique" in (
        findings(result)
    )


def test_an_empty_test_set() -> None:
    result = audit_split(dataset(), TASKS, train=dataset())
    assert all(entry["known_ap50"] is None for entry in result["ceilings"])
    assert len(result["classes"]["absent"]) == 3
    assert "–" in printed(result)


@pytest.mark.parametrize("tasks", [[], [["cat"], []], [["cat"], ["cat"]]])
def test_a_schedule_that_cannot_be_used(tasks: Any) -> None:
    with pytest.raises(ConfigError):
        audit_split(dataset(record("a", "cat")), tasks)


def test_ids_are_printed_as_they_are() -> None:
    """Square brackets are no markup, and every line of a finding fits a narrow terminal."""
    text = printed(audit_split(dataset(record("[red]x", *EVERY), record("[b]")), TASKS, hash_files=False), width=100)
    assert "(e.g. [b])" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "    What to do: " in text
