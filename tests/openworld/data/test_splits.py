"""What each view shows, and that no schedule lets a later task's label through."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openworld.data import splits
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record

NAMES = ("a", "b", "c", "d", "e")
ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[2] / "oracles")) / "losses"


def record(
    image_id: int, categories: list[int], crowd: list[int] | None = None, difficult: tuple[int, ...] = ()
) -> Record:
    """Box ``n`` of an image starts at (n, 0), so that boxes can be told apart."""
    count = len(categories)
    crowds = np.isin(np.arange(count), crowd or [])
    return Record(
        image_id=image_id,
        path=Path(f"{image_id}.jpg"),
        width=100,
        height=100,
        boxes=np.array([[number, 0, number + 5, 5] for number in range(count)], dtype=np.float32).reshape(-1, 4),
        categories=np.array(categories, dtype=np.int64),
        ignore=crowds | np.isin(np.arange(count), difficult),
        crowd=crowds,
    )


DATASET = Dataset.from_records(
    NAMES, (record(1, [0, 2, 4]), record(2, [2, 2], crowd=[1]), record(3, []), record(4, [3, 1]))
)
LABELS = LabelSpace.of([["b", "a"], ["c"], ["d"]], 2)


def seen(view: splits.View) -> dict[int | str, list[tuple[int, int]]]:
    """image id: (number of the box, head row)."""
    return {
        sample.record.image_id: [
            (int(box[0]), int(row)) for box, row in zip(sample.record.boxes, sample.labels, strict=True)
        ]
        for sample in view
    }


def test_training_sees_current_classes_and_no_crowd() -> None:
    assert seen(splits.training_view(DATASET, LABELS)) == {1: [(1, 2)], 2: [(0, 2)]}


def test_difficult_boxes_are_trained_on() -> None:
    dataset = Dataset.from_records(NAMES, (record(1, [2], difficult=(0,)),))
    (sample,) = splits.training_view(dataset, LABELS)
    assert sample.record.ignore.tolist() == [True]


def test_replay_sees_known_classes_of_the_named_images_in_their_order() -> None:
    assert seen(splits.replay_view(DATASET, LABELS, [4, 1])) == {4: [(1, 0)], 1: [(0, 1), (1, 2)]}
    with pytest.raises(DataError, match=r"1 of 2 replay images are not in the data: \[9\]"):
        splits.replay_view(DATASET, LABELS, [1, 9])


def test_held_out_sees_known_classes() -> None:
    assert seen(splits.held_out_view(DATASET, LABELS)) == {1: [(0, 1), (1, 2)], 2: [(0, 2)], 4: [(1, 0)]}


def test_held_out_with_unknown_sees_all_but_crowds() -> None:
    view = splits.held_out_view(DATASET, LABELS, with_unknown=True)
    assert seen(view) == {1: [(0, 1), (1, 2), (2, 3)], 2: [(0, 2)], 4: [(0, 3), (1, 0)]}
    alone = Dataset.from_records(NAMES, (record(1, [4, 3]), record(2, [])))
    assert seen(splits.held_out_view(alone, LABELS, with_unknown=True)) == {1: [(0, 3), (1, 3)]}


def test_evaluation_sees_everything_and_the_rest_is_unknown() -> None:
    view = splits.test_view(DATASET, LABELS)
    assert seen(view) == {1: [(0, 1), (1, 2), (2, 3)], 2: [(0, 2), (1, 2)], 3: [], 4: [(0, 3), (1, 0)]}
    assert view[1].record.ignore.tolist() == [False, True]


def test_category_called_background_is_an_unknown_object() -> None:
    dataset = Dataset.from_records(("background", "unknown", "a"), (record(1, [0, 1, 2]),))
    labels = LabelSpace.of([["a"]], 1)
    assert splits.test_view(dataset, labels)[0].labels.tolist() == [1, 1, 0]
    assert seen(splits.training_view(dataset, labels)) == {1: [(2, 0)]}


def test_schedule_with_a_name_that_no_data_has() -> None:
    dataset = Dataset.from_records(("traffic light", "Aeroplane"), ())
    splits.check_schedule([["traffic light"], ["Aeroplane"]], dataset)
    splits.check_schedule([["traffic light"], ["cat"]], dataset, Dataset.from_records(("cat",), ()))
    with pytest.raises(DataError) as caught:
        splits.check_schedule([["trafic light"], ["aeroplane", "zzz"]], dataset)
    message = str(caught.value)
    assert "'trafic light' of task 1 (did you mean 'traffic light'?)" in message
    assert "'aeroplane' of task 2 (did you mean 'Aeroplane'?)" in message
    assert "'zzz' of task 2;" in message or "'zzz' of task 2\n" in message


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Dataset, LabelSpace]:
    order = draw(st.permutations([f"class {number}" for number in range(7)]))
    cuts = sorted(draw(st.sets(st.integers(1, 6), min_size=1, max_size=4)))
    tasks = [order[low:high] for low, high in zip([0, *cuts[:-1]], cuts, strict=True)]  # the rest is in no task
    images = draw(st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=6))
    names = draw(st.permutations(order))
    records = tuple(record(number, categories, crowd=[4]) for number, categories in enumerate(images))
    layout = draw(st.sampled_from(["growing", "fixed"]))
    return Dataset.from_records(tuple(names), records), LabelSpace.of(tasks, draw(st.integers(1, len(tasks))), layout)


@given(worlds())
def test_no_label_of_a_later_task_is_visible(world: tuple[Dataset, LabelSpace]) -> None:
    dataset, labels = world
    ids = [record.image_id for record in dataset]
    views = {
        "current": splits.training_view(dataset, labels),
        "known": splits.held_out_view(dataset, labels),
        "replay": splits.replay_view(dataset, labels, ids),
    }
    for kind, view in views.items():
        visible = labels.current if kind == "current" else labels.known
        expected = {}
        for entry in dataset:  # by name, box by box
            rows = [
                (number, labels.known.index(dataset.categories[category]))
                for number, category in enumerate(entry.categories)
                if dataset.categories[category] in visible and number != 4
            ]
            if rows:
                expected[entry.image_id] = rows
        assert seen(view) == expected
        assert all(row < labels.num_known for rows in seen(view).values() for _, row in rows)
        reachable = {dataset.categories[category] for category in view.images.box_categories}
        assert reachable <= set(visible)
        assert all(len(sample.record) == len(sample.labels) for sample in view)


POLICIES: dict[str, Any] = {
    "remove_prev_class_and_unk_instances": lambda dataset, labels: splits.training_view(dataset, labels),
    "remove_unknown_instances": lambda dataset, labels: splits.replay_view(dataset, labels, list(dataset.image_ids)),
    "label_known_class_and_unknown": lambda dataset, labels: splits.test_view(dataset, labels),
}
"""The reference code's label policies (train, fine-tune, test), and the view that stands for each."""


def relabelled() -> list[Any]:
    found = []
    for path in sorted(ORACLES.glob("*relabel*.json")):
        content = json.loads(path.read_text())
        for key in content:
            if parts := re.fullmatch(r"(\w+?)_(\d+)_(\d+)", key):
                found.append(pytest.param(content["input"], content[key], *parts.groups(), id=f"{path.stem}-{key}"))
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("layout", ["growing", "fixed"])
@pytest.mark.parametrize(("given", "wanted", "policy", "previous", "current"), relabelled())
def test_views_are_the_label_policies_of_the_reference(
    given: list[Any], wanted: list[Any], policy: str, previous: str, current: str, layout: str
) -> None:
    names = tuple(f"class {number}" for number in range(80))
    known = int(previous) + int(current)
    parts = [part for part in (names[: int(previous)], names[int(previous) : known], names[known:]) if part]
    labels = LabelSpace.of(parts, 2 if int(previous) else 1, layout)  # type: ignore[arg-type]
    categories = {entry["image_id"]: [item["category_id"] for item in entry["annotations"]] for entry in given}
    records = tuple(record(number, rows) for number, rows in categories.items())
    number_of = {item["id"]: place for entry in given for place, item in enumerate(entry["annotations"])}
    reference_unknown = 80  # its unknown row; that of the fixed layout too
    expected = {
        entry["image_id"]: [
            (
                number_of[item["id"]],
                labels.unknown if item["category_id"] == reference_unknown else item["category_id"],
            )
            for item in entry["annotations"]
        ]
        for entry in wanted
    }
    view = POLICIES[policy](Dataset.from_records(names, records), labels)
    assert seen(view) == expected and len(view) == len(wanted)
    assert labels.unknown == (80 if layout == "fixed" else known)


def test_held_out_images_are_a_share_that_depends_on_their_ids_alone() -> None:
    records = tuple(record(number, [0]) for number in range(400))
    rest, held = splits.hold_out(Dataset.from_records(NAMES, records), 0.25)
    ids = [entry.image_id for entry in held]
    assert 70 < len(ids) < 130 and len(rest) + len(ids) == 400
    assert not set(ids) & set(rest.image_ids)
    _, fewer = splits.hold_out(Dataset.from_records(NAMES, records[100:][::-1]), 0.25)
    assert sorted(fewer.image_ids) == [number for number in ids if int(number) >= 100]
    assert len(splits.hold_out(Dataset.from_records(NAMES, records), 0.0)[1]) == 0
