"""Balanced exemplars: enough of every class, the same whatever the order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.ore.exemplars import exemplar_record, select_balanced
from openworld.ore.options import ExemplarOptions

ROWS = st.lists(st.integers(0, 4), max_size=6)


@settings(max_examples=60, deadline=None)
@given(images=st.lists(ROWS, max_size=30), per_class=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_every_class_has_its_instances_in_any_order(images: list[list[int]], per_class: int, seed: int) -> None:
    listed = [(number if number % 2 else f"{number}", rows) for number, rows in enumerate(images)]
    chosen, kept = select_balanced(listed, 3, per_class=per_class, seed=seed)
    by_id = dict(listed)
    for row in range(3):
        assert kept[row] == sum(by_id[image_id].count(row) for image_id in chosen)
        assert kept[row] >= min(per_class, sum(rows.count(row) for rows in images))
    assert all(any(row < 3 for row in by_id[image_id]) for image_id in chosen)
    random.Random(0).shuffle(listed)
    assert select_balanced(listed, 3, per_class=per_class, seed=seed) == (chosen, kept)


def test_the_seed_matters_and_the_set_is_small() -> None:
    images = [(number, [number % 4]) for number in range(400)]
    first, second = (select_balanced(images, 4, per_class=10, seed=seed) for seed in (1, 2))
    assert len(first[0]) == len(second[0]) == 40 and first[0] != second[0]
    assert first[1] == [10, 10, 10, 10]


def test_record_and_empty_data() -> None:
    space = LabelSpace.of([["cat"], ["dog"]], task=2)
    record = exemplar_record([(7, [1, 1, 2]), (5, [])], space, ExemplarOptions(), seed=3)
    assert record == {
        "task": 2,
        "per_class": 50,
        "strategy": "balanced",
        "seed": 3,
        "images": [7],
        "instances": {"cat": 0, "dog": 2},
    }
    assert exemplar_record([], space, ExemplarOptions(), seed=3)["images"] == []


def test_an_image_given_twice_is_named() -> None:
    with pytest.raises(DataError, match="'a' comes twice"):
        select_balanced([("a", [0]), ("a", [0])], 1, per_class=1, seed=0)
