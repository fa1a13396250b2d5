"""Data sets in columns: selections, renaming and joining beside slow loops over single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openworld.columns import Names
from openworld.errors import DataError
from openworld.records import Dataset, Record, check_files, merged, renamed
from openworld.repairs import Repairs

IDS = st.one_of(st.integers(-(10**30), 10**30), st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
NAMES = ("a", "b", "c")


def record(image_id: int | str, categories: list[int], seed: int = 0) -> Record:
    """Boxes, flags and ids that tell each box from every other."""
    count, rng = len(categories), np.random.default_rng(seed)
    corners = rng.uniform(0, 9, (count, 4)).astype(np.float32)
    crowd = rng.random(count) < 0.3
    return Record(
        image_id=image_id,
        path=Path(f"images/{seed}.jpg"),
        width=10 + seed,
        height=20,
        boxes=corners,
        categories=np.array(categories, dtype=np.int64),
        ignore=crowd | (rng.random(count) < 0.3),
        annotation_ids=[f"{seed}/{number}" for number in range(count)],
        crowd=crowd,
        listed=1 + seed % 2,
    )


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Dataset, list[Record]]:
    categories = draw(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=5))
    ids = draw(st.lists(IDS, min_size=len(categories), max_size=len(categories), unique_by=repr))
    records = [record(name, rows, seed) for seed, (name, rows) in enumerate(zip(ids, categories, strict=True))]
    return Dataset.from_records(NAMES, records), records


def content(one: Record) -> list[Any]:
    arrays = [one.boxes, one.categories, one.ignore, one.crowd]
    rows = [(array.dtype.str, array.shape, array.tolist()) for array in arrays]
    return [one.image_id, one.path, one.width, one.height, list(one.annotation_ids), one.listed, *rows]


@given(datasets())
def test_a_record_is_a_view_of_the_columns(pair: tuple[Dataset, list[Record]]) -> None:
    dataset, records = pair
    assert len(dataset) == len(records) and dataset.num_annotations == sum(map(len, records))
    assert list(map(content, dataset)) == list(map(content, records))
    for number, one in enumerate(dataset):
        assert type(one.image_id) is type(records[number].image_id)
        assert dataset.image_index.tolist().count(number) == len(one)
        assert np.shares_memory(one.boxes, dataset.boxes) or not len(one)
        assert content(dataset[number - len(dataset)]) == content(one)
        assert content(dataset.find(one.image_id)) == content(one)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@given(datasets(), st.data())
def test_selected_images_and_boxes_equal_a_slow_loop(pair: tuple[Dataset, list[Record]], data: st.DataObject) -> None:
    dataset, records = pair
    places = st.integers(0, len(records) - 1)
    images = data.draw(st.lists(places, max_size=6)) if records else []
    count = dataset.num_annotations
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=np.bool_)
    whole, part = dataset.select(images), dataset.select(images, kept)
    first = np.cumsum([0, *map(len, records)])
    for place, number in enumerate(images):
        assert content(whole[place]) == content(records[number])
        own = np.flatnonzero(kept[first[number] : first[number + 1]])
        expected = records[number]
        assert part[place].boxes.tolist() == expected.boxes[own].tolist()
        assert part[place].categories.tolist() == expected.categories[own].tolist()
        assert part[place].annotation_ids == [expected.annotation_ids[position] for position in own]
        assert (part[place].image_id, part[place].width) == (expected.image_id, expected.width)
    assert len(whole) == len(part) == len(images)


@given(st.lists(datasets(), max_size=3))
def test_joined_data_sets_are_one_after_the_other(pairs: list[tuple[Dataset, list[Record]]]) -> None:
    """Each part calls its categories otherwise; one name is common to all."""
    parts = [renamed(dataset, {"a": f"a{number}", "b": f"b{number}"}) for number, (dataset, _) in enumerate(pairs)]
    joined = merged(parts)
    named = [[joined.categories[position] for position in one.categories.tolist()] for one in joined]
    assert named == [
        [part.categories[position] for position in one.categories.tolist()] for part in parts for one in part
    ]
    assert [content(one)[:6] for one in joined] == [content(one)[:6] for part in parts for one in part]
    assert [one.boxes.tolist() for one in joined] == [one.boxes.tolist() for part in parts for one in part]
    assert len(set(joined.categories)) == len(joined.categories)


def test_repairs_of_joined_data_sets_add_up() -> None:
    parts = []
    for number in (15, 9):
        repairs = Repairs()
        for case in range(number):
            repairs.add("clipped", f"case {case}")
        parts.append(Dataset.from_records(NAMES, [], repairs))
    joined = merged(parts).repairs
    assert joined.counts == {"clipped": 24} and joined.cases["clipped"][14:16] == ["case 14", "case 0"]
    assert len(joined.cases["clipped"]) == 24


def test_a_frequent_repair_does_not_crowd_out_a_rare_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two parts are joined; and the memory is bounded."""
    monkeypatch.setattr(Repairs, "MAX_CASES", 30)
    parts = []
    for number in (0, 1):
        repairs = Repairs()
        for case in range(25):
            repairs.add("clipped", f"case {case}")
        repairs.add("dropped: inverted", f"file {number}")
        parts.append(Dataset.from_records(NAMES, [], repairs))
    found = merged(parts).repairs
    assert found.counts == {"clipped": 50, "dropped: inverted": 2} and len(found.cases["clipped"]) == 30
    assert found.cases["dropped: inverted"] == ["file 0", "file 1"] and found.harmful == {"dropped: inverted": 2}
    assert found.examples == [
        *(f"clipped: case {case}" for case in range(3)),
        "dropped: inverted: file 0",
        "dropped: inverted: file 1",
    ]
    assert parts[0].repairs.counts["clipped"] == 25 and len(parts[0].repairs.cases["clipped"]) == 25


def test_renamed_and_merged_categories() -> None:
    dataset = Dataset.from_records(("dog", "cat", "puppy"), [record(1, [0, 1, 2]), record(2, [2])])
    found = renamed(dataset, {"puppy": "dog", "cat": "feline", "cow": "ox"})
    assert found.categories == ("dog", "feline")
    assert [one.categories.tolist() for one in found] == [[0, 1, 0], [0]]
    assert found.repairs.counts == {} and dataset.categories == ("dog", "cat", "puppy")
    assert renamed(dataset, {}).box_categories.tolist() == dataset.box_categories.tolist()


def test_missing_files_are_named(tmp_path: Path) -> None:
    none = np.zeros(0, dtype=np.int64)
    records = [
        Record(number, tmp_path / f"{number}.jpg", 1, 1, np.zeros((0, 4), np.float32), none, none.astype(np.bool_))
        for number in range(6)
    ]
    dataset = Dataset.from_records((), records)
    for one in records:
        one.path.touch()
    assert check_files(dataset, "set.json") is dataset
    for one in records[1:5]:
        one.path.unlink()
    with pytest.raises(
        DataError, match=r"set\.json: 4 of 6 images do not exist: .*1\.jpg, .*2\.jpg, .*3\.jpg, …"
    ) as caught:
        check_files(dataset, "set.json")
    assert "4.jpg" not in str(caught.value)


@given(st.lists(IDS, max_size=8), st.data())
def test_packed_names_equal_a_list(values: list[int | str], data: st.DataObject) -> None:
    names = Names(values)
    assert list(names) == values and names == values and len(names) == len(values)
    first, last, step = (data.draw(st.none() | st.integers(-9, 9)) for _ in range(3))
    part = slice(first, last, step or None)
    assert list(names[part]) == values[part]
    again = names[part]
    assert list(Names.joined([names, again])) == [*values, *values[part]]
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=9)) if values else []
    assert list(names.take(np.array(rows, dtype=np.int64))) == [values[row] for row in rows]


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": np.array([0, 2, 1, 3])},
        {"offsets": np.array([0, 1, 3])},
        {"offsets": np.array([0, 1, 2, 4])},
        {"boxes": np.zeros((2, 4), np.float32)},
        {"boxes": np.zeros((3, 5), np.float32)},
        {"box_categories": np.array([0, 1, 3])},
        {"box_categories": np.array([0, -1, 2])},
        {"image_ids": Names([1, 2])},
        {"crowd": np.zeros(1, np.bool_)},
    ],
)
def test_columns_that_do_not_fit_together(change: dict[str, Any]) -> None:
    dataset = Dataset.from_records(NAMES, [record(1, [0]), record(2, [1]), record(3, [2])])
    columns = {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}
    with pytest.raises(ValueError, match="data set"):
        Dataset(**{**columns, **change})
