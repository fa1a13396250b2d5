"""What a list of images does to scores: cases worked by hand, and slow loops over pairs."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.audit.split_facts import (
    ceiling,
    class_presence,
    duplicate_listings,
    id_collisions,
    images_without_objects,
    leaks,
    most_objects,
    perfect_detections,
)
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.metrics.ground_truth import GroundTruth
from openworld.metrics.protocols import ORE, PROTOCOLS, RANDBOX, UNIQUE, with_rules


def truth(
    images: tuple[Any, ...], *objects: tuple[int, int], known: int = 1, ignore: Any = None, crowd: Any = None
) -> GroundTruth:
    """Objects are (image, label), 50 pixels apart."""
    return GroundTruth.from_arrays(
        images,
        [image for image, _ in objects],
        [[50.0 * place, 0.0, 50.0 * place + 40, 40.0] for place in range(len(objects))],
        [label for _, label in objects],
        known,
        ignore,
        crowd,
    )


def listed(times: list[int], *, per_image: int = 1, label: int = 0, known: int = 1) -> GroundTruth:
    """Image n is listed times[n] times, first all images once; every one has the same objects on each listing."""
    order = [(copy, number) for number, count in enumerate(times) for copy in range(count)]
    numbers = [number for _, number in sorted(order)]
    rows = [(position, place) for position in range(len(numbers)) for place in range(per_image)]
    return GroundTruth.from_arrays(
        [f"image {number}" for number in numbers],
        [position for position, _ in rows],
        [[50.0 * place, 0.0, 50.0 * place + 40, 40.0] for _, place in rows],
        [label] * len(rows),
        known,
    )


# -- lists of images --------------------------------------------------------------------------------------------------


def test_duplicate_listings() -> None:
    assert duplicate_listings(["a", "b", "a", "c", "b", "a", 1, 1]) == {
        "lines": 8,
        "images": 4,
        "duplicate_lines": 4,
        "images_by_times": {"2": 2, "3": 1},
        "examples": [{"id": "a", "times": 3}, {"id": "b", "times": 2}, {"id": 1, "times": 2}],
    }


def test_a_list_without_repeats_and_an_empty_list() -> None:
    assert duplicate_listings(["a", "b"])["duplicate_lines"] == 0
    assert duplicate_listings([]) == {
        "lines": 0,
        "images": 0,
        "duplicate_lines": 0,
        "images_by_times": {},
        "examples": [],
    }


def test_ids_that_are_one_number() -> None:
    names = ["000139", "000000000139", "2008_000001", "2008000001", "2008-000001", "cat", "000139", 7, "07", "7.0"]
    found = id_collisions(names)["same_number"]
    assert found["groups"] == 3 and found["images"] == 6
    assert found["examples"] == [["000139", "000000000139"], ["2008_000001", "2008000001"], [7, "07"]]


def test_ids_that_differ_in_case_or_space() -> None:
    found = id_collisions(["Cat", "cat ", "cat", "dog", "dog", 7, 8])["same_text"]
    assert found == {"groups": 1, "images": 3, "examples": [["Cat", "cat ", "cat"]]}


IDS = st.one_of(st.integers(-3, 12), st.sampled_from(["1", "01", " 1", "1_0", "10", "1__0", "+1", "x", "X", "x ", ""]))


def number(name: int | str) -> int | str:
    try:
        return int(name)
    except ValueError:
        return f"text {name}"


@given(st.lists(IDS, max_size=12), st.lists(IDS, max_size=12))
@settings(max_examples=60, deadline=None)
def test_collisions_and_leaks_against_all_pairs(first: list[int | str], second: list[int | str]) -> None:
    pairs = list(combinations(dict.fromkeys(first), 2))
    together = {name for pair in pairs for name in pair if number(pair[0]) == number(pair[1])}
    found = id_collisions(first)["same_number"]
    assert found["images"] == len(together)
    assert found["groups"] == len({number(name) for name in together})
    shared = leaks(first, [], second)["train_test"]
    assert shared["images"] == len(set(first) & set(second))
    assert shared["same_number"] == sum(a != b and number(a) == number(b) for a in set(first) for b in set(second))


def test_leaks_name_the_sets_and_examples() -> None:
    found = leaks(["1", "2", "3"], ["3", "4"], ["002", "4", "3"])
    assert found["train_val"] == {
        "images": 1,
        "examples": ["3"],
        "same_number": 0,
        "same_number_examples": [],
    }
    assert found["train_test"]["same_number_examples"] == [["2", "002"]]
    assert found["val_test"]["examples"] == ["3", "4"]


def test_images_without_objects() -> None:
    found = images_without_objects(
        truth(("a", "b", "c", "b", "d"), (0, 0), (2, 0), (2, 0), (4, 0), ignore=[0, 1, 1, 0])
    )
    assert found == {"images": 1, "only_ignored": 1, "examples": ["b"]}
    assert images_without_objects(truth(()))["images"] == 0


def test_an_image_counts_as_annotated_wherever_it_is_listed() -> None:
    assert images_without_objects(truth(("a", "b", "a"), (2, 0)))["examples"] == ["b"]


def test_the_image_with_most_objects() -> None:
    objects = ((0, 0), (1, 0), (1, 1), (1, 1))
    assert most_objects(truth(("a", "b"), *objects)) == 3
    assert most_objects(truth(("a", "b"), *objects, ignore=[0, 1, 1, 1])) == 1
    assert most_objects(truth(())) == 0


# -- ceilings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_every_ceiling_is_one_where_each_image_is_listed_once(protocol: Any) -> None:
    found = ceiling(truth(("1", "2"), (0, 0), (0, 1), (1, 2), (1, 5), known=2), 1, 2, protocol)
    for name in ("known_ap50", "previous_ap50", "current_ap50", "unknown_ap50", "unknown_recall50"):
        assert found[name] == found["equal_scores"][name] == pytest.approx(1.0)
    assert found["protocol"] == protocol.name
    assert found["unknown_objects"] == found["findable_unknown_objects"] == 2
    assert found["unknown_recall_factor"] == 1.0
    json.dumps(found, allow_nan=False)


def by_protocol(ground_truth: GroundTruth, known: int = 1) -> dict[str, dict[str, Any]]:
    return {name: ceiling(ground_truth, 0, known, protocol) for name, protocol in PROTOCOLS.items()}


def test_each_image_listed_twice() -> None:
    """After k objects and their copies behind them: recall k / 2n, precision at the object k / (2k - 1).

    With n = 3 objects: precision 1, 2/3, 3/5 at recalls 1/6, 2/6, 3/6. The order of the objects does not matter.
    """
    found = by_protocol(listed([2, 2, 2]))
    area = (1 + 2 / 3 + 3 / 5) / 6
    assert found["ore"]["known_ap50"] == pytest.approx(area)
    assert found["owdetr"]["known_ap50"] == pytest.approx((2 * 1 + 2 * 2 / 3 + 2 * 3 / 5) / 11)  # at 0, .1 | .2, .3 | …
    assert found["randbox"]["known_ap50"] == pytest.approx(1 / 2)  # no copies of detections, objects count twice
    assert found["orthogonaldet"]["known_ap50"] == pytest.approx(area * 2)  # copies of detections, objects count once
    assert found["unique"]["known_ap50"] == 1.0
    equal = {name: entry["equal_scores"]["known_ap50"] for name, entry in found.items()}
    assert equal["ore"] == equal["randbox"] == pytest.approx(1 / 2)
    assert equal["orthogonaldet"] == equal["unique"] == 1.0


def test_unknown_recall_and_its_factor() -> None:
    """Three images with two unknown objects each, listed once, twice, three times: 12 are counted, 6 can be found."""
    found = by_protocol(listed([1, 2, 3], per_image=2, label=1))
    for name in ("ore", "owdetr", "randbox"):
        assert found[name]["unknown_objects"] == 12 and found[name]["findable_unknown_objects"] == 6
        assert found[name]["unknown_recall50"] == 0.5 and found[name]["unknown_recall_factor"] == 2.0
    for name in ("unique", "orthogonaldet"):
        assert found[name]["unknown_recall50"] == 1.0 and found[name]["unknown_recall_factor"] == 1.0
    assert found["ore"]["known_ap50"] is None


def test_ids_that_collide_cannot_be_found_in_the_wrong_image() -> None:
    """Images 07 and 7 have one unknown object each, 8 has one: only the detections on 7 and 8 are scored."""
    ground_truth = GroundTruth.from_arrays(
        ["07", "7", "8"], [0, 1, 2], [[0, 0, 9, 9], [50, 0, 90, 40], [0, 0, 9, 9]], [1, 1, 1], 1
    )
    found = by_protocol(ground_truth)
    assert found["ore"]["unknown_recall50"] == 1.0
    last = found["randbox"]  # the objects of 07 stay
    assert (last["unknown_objects"], last["findable_unknown_objects"]) == (3, 2)
    assert last["unknown_recall50"] == pytest.approx(2 / 3)
    first = found["orthogonaldet"]  # what is found on 7 is looked for among the objects of 07
    assert (first["unknown_objects"], first["findable_unknown_objects"]) == (2, 1)
    assert first["unknown_recall50"] == 0.5


def test_ignored_objects_are_neither_counted_nor_in_the_way() -> None:
    objects = ((0, 0), (0, 1), (0, 1), (0, 1))
    ground_truth = truth(
        ("a", "a"), *objects, ignore=[False, False, True, True], crowd=[False, False, False, True]
    )  # the second listing has no objects: copies are what the list says
    neutral, voc = (ceiling(ground_truth, 0, 1, protocol) for protocol in (UNIQUE, ORE))
    assert neutral["unknown_objects"] == 1 and neutral["known_ap50"] == neutral["unknown_recall50"] == 1.0
    assert voc["findable_unknown_objects"] == 2  # a crowd is an ordinary object there
    every = ceiling(ground_truth, 0, 1, with_rules(ORE, {"ignore": "counted"}))
    assert every["findable_unknown_objects"] == every["unknown_objects"] == 3


def test_a_crowd_does_not_take_the_place_of_an_object() -> None:
    boxes = [[0, 0, 40, 40], [0, 0, 40, 42]]
    ground_truth = GroundTruth.from_arrays(["a"], [0, 0], boxes, [0, 0], 1, crowd=[False, True])
    assert ceiling(ground_truth, 0, 1, UNIQUE)["known_ap50"] == 1.0


def test_more_objects_than_detections_are_scored() -> None:
    three = with_rules(UNIQUE, {"detections_per_image": 3})
    assert ceiling(listed([1], per_image=4, label=1), 0, 1, three)["unknown_recall50"] == 0.75
    ignored = truth(("a",), *[(0, 1)] * 6, ignore=[True, False] * 3)
    assert ceiling(ignored, 0, 1, three)["unknown_recall50"] == 1.0


def test_nothing_annotated() -> None:
    for entry in by_protocol(truth(("1",))).values():
        assert entry["known_ap50"] is entry["unknown_recall50"] is entry["unknown_recall_factor"] is None
        assert entry["unknown_objects"] == 0
    assert ceiling(truth(()), 0, 1, RANDBOX)["unknown_objects"] == 0


def test_perfect_detections_are_the_objects_of_distinct_images() -> None:
    ground_truth = listed([2, 1], per_image=2)
    for lowest in (None, 0.15):
        found = perfect_detections(ground_truth, lowest)
        assert sorted(found.image_index.tolist()) == [0, 0, 1, 1]
        assert {tuple(box) for box in found.boxes.tolist()} == {(0, 0, 40, 40), (50, 0, 90, 40)}
    assert found.scores[0] == 1.0 and found.scores[-1] == 0.15 and (np.diff(found.scores) < 0).all()


# -- classes ----------------------------------------------------------------------------------------------------------


def test_class_presence() -> None:
    tasks = [["cat"], ["dog", "cow"]]
    spaces = [LabelSpace.of(tasks, task) for task in (1, 2)]
    labels = [0, 0, 1, 9, 1]  # rows at the last task: two cats, a dog, something else, and a difficult dog
    truths = [
        truth(
            ("a", "b", "a"),
            *((0, label) for label in labels),
            (2, 0),
            (2, 1),
            known=space.num_known,
            ignore=[0, 0, 0, 0, 1, 0, 1],
        )
        for space in spaces
    ]
    found = class_presence(truths, spaces, {"cat": 2, "dog": 1, "cow": 0, "bird": 1, "fish": 0})
    assert found["tasks"] == [
        {"task": 1, "known": 2, "previous": 0, "current": 2, "unknown": 2, "ignored": 1},
        {"task": 2, "known": 3, "previous": 2, "current": 1, "unknown": 1, "ignored": 1},
    ]
    assert found["absent"] == [{"class": "cow", "task": 2}]
    assert found["unnamed"] == {"bird": 1}
    with pytest.raises(DataError, match="1 ground truths and 2 label spaces"):
        class_presence(truths[:1], spaces, {})
