"""Exemplars: every strategy by hand and against a slow loop, the same in any order; lists as people write them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.data.exemplars import (
    ImageId,
    Instances,
    exemplar_record,
    listed_record,
    select_balanced,
    select_by_score,
    select_greedy,
    select_herding,
    select_random,
)
from openworld.data.options import ExemplarOptions
from openworld.errors import DataError, NumericsError
from openworld.labels import LabelSpace

ROWS = st.lists(st.integers(0, 4), max_size=6)
SPACE = LabelSpace.of([["cat"], ["dog"]], task=2)


def int_rows(*rows: int) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def instances(seed: int, count: int, dim: int = 3) -> tuple[list[ImageId], np.ndarray, np.ndarray, np.ndarray]:
    """Random ids (numbers and names, about two boxes an image), rows 0 to 3, features and scores."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, max(1, count // 2), count)
    ids: list[ImageId] = [int(number) if number % 2 else f"image {number}" for number in numbers]
    features = rng.normal(size=(count, dim)).astype(np.float32)
    return ids, rng.integers(0, 4, count), features, rng.random(count, dtype=np.float32)


# -- balanced ---------------------------------------------------------------------------------------------------------


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


def test_an_image_given_twice_is_named() -> None:
    with pytest.raises(DataError, match="'a' comes twice"):
        select_balanced([("a", [0]), ("a", [0])], 1, per_class=1, seed=0)


# -- greedy -----------------------------------------------------------------------------------------------------------


def test_greedy_by_hand() -> None:
    images = [(10, [0, 0, 0]), (11, [0, 1]), (12, [0, 1, 5]), (13, [1])]
    assert np.random.default_rng(0).permutation(4).tolist() == [2, 0, 1, 3]  # walk: 12, 10, 11, 13
    # two a class: 12 -> {0: 12, 1: 12}; 10 -> {0: 10 10, 1: 12}, 12 forgotten in class 0; 11 -> {0: 10 11, 1: 12 11}.
    # Both are full, so the walk ends before 13.
    assert select_greedy(images, 2, per_class=2, seed=0) == [10, 11, 12]
    # three classes, the third without any instance: the walk goes to the end; 0: 10 11, 1: 11 13
    assert select_greedy(images, 3, per_class=2, seed=0) == [10, 11, 13]
    # one a class: full after the first image
    assert select_greedy(images, 2, per_class=1, seed=0) == [12]
    assert select_greedy([], 2, per_class=1, seed=0) == []


def greedy_oracle(images: list[tuple[ImageId, list[int]]], known: int, per_class: int, seed: int) -> set[ImageId]:
    """All pushes of the walk, then the last ones of each class."""
    ordered = sorted(images, key=lambda image: (isinstance(image[0], str), image[0]))
    pushes: list[list[ImageId]] = [[] for _ in range(known)]
    for position in np.random.default_rng(seed).permutation(len(ordered)).tolist():
        for row in range(known):
            pushes[row] += [ordered[position][0]] * ordered[position][1].count(row)
        if min(len(of_row) for of_row in pushes) >= per_class:
            break
    return {image_id for of_row in pushes for image_id in of_row[-per_class:]}


@settings(max_examples=60, deadline=None)
@given(images=st.lists(ROWS, max_size=30), per_class=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_greedy_equals_a_slow_loop_in_any_order(images: list[list[int]], per_class: int, seed: int) -> None:
    listed: list[tuple[ImageId, list[int]]] = [(n if n % 2 else f"{n}", rows) for n, rows in enumerate(images)]
    listed += listed[: len(listed) // 3]  # images of two tasks
    chosen = select_greedy(listed, 3, per_class=per_class, seed=seed)
    assert set(chosen) == greedy_oracle(listed, 3, per_class, seed) and len(chosen) == len(set(chosen))
    random.Random(0).shuffle(listed)
    assert select_greedy(listed, 3, per_class=per_class, seed=seed) == chosen


# -- random -----------------------------------------------------------------------------------------------------------


def test_random_draws_the_number_asked_for_from_every_class() -> None:
    ids = list(range(100))
    rows = np.array([0] * 60 + [1] * 37 + [2] * 3)
    chosen = select_random(ids, rows, 2, per_class=20, seed=4)
    assert [sum(number < 60 for number in chosen), sum(60 <= number < 97 for number in chosen)] == [20, 20]
    assert len(chosen) == 40  # class 2 is not known
    assert {97, 98, 99} <= set(select_random(ids, rows, 3, per_class=20, seed=4))  # all that there are
    assert select_random([], int_rows(), 3, per_class=20, seed=4) == []


def test_random_gives_every_subset_the_same_chance() -> None:
    drawn = [tuple(select_random([1, 2, 3, 4], int_rows(0, 0, 0, 0), 1, per_class=2, seed=s)) for s in range(600)]
    times = [drawn.count((one, other)) for one in range(1, 5) for other in range(one + 1, 5)]
    assert sum(times) == 600 and min(times) > 60 and max(times) < 140  # 100 expected, standard deviation 9


# -- herding ----------------------------------------------------------------------------------------------------------


def test_herding_by_hand() -> None:
    # Scaled to length 1: a (1, 0), b (0, 1), c (0.6, 0.8), d (0.28, -0.96), with the mean (0.47, 0.21).
    features = np.array([[5, 0], [0, 0.1], [3, 4], [7, -24]], dtype=np.float32)
    ids, rows = ["a", "b", "c", "d"], int_rows(0, 0, 0, 0)
    # one: squared distances to the mean a 0.325, b 0.845, c 0.365, d 1.405
    assert select_herding(ids, rows, features, 1, per_class=1) == ["a"]
    # two: the means with a are b (0.5, 0.5), c (0.8, 0.4), d (0.64, -0.48): 0.085, 0.145, 0.505
    assert select_herding(ids, rows, features, 1, per_class=2) == ["a", "b"]
    # three: the means with a and b are c (0.53, 0.6), d (0.43, 0.01): 0.156, 0.041
    assert select_herding(ids, rows, features, 1, per_class=3) == ["a", "b", "d"]
    assert select_herding(ids, rows, features, 1, per_class=9) == ["a", "b", "c", "d"]
    assert select_herding([], int_rows(), features[:0], 1, per_class=9) == []


def test_herding_of_equals_and_of_zeros() -> None:
    same = np.ones((4, 3), dtype=np.float32)
    assert select_herding([4, 3, 2, 1], int_rows(0, 0, 0, 0), same, 1, per_class=2) == [1, 2]
    assert select_herding([4, 3], int_rows(0, 0), np.zeros((2, 3), dtype=np.float32), 1, per_class=1) == [3]
    with pytest.raises(NumericsError, match="image 3"):
        select_herding([4, 3], int_rows(0, 0), np.array([[1.0], [np.nan]], dtype=np.float32), 1, per_class=1)


def herding_oracle(ids: list[ImageId], rows: np.ndarray, features: np.ndarray, known: int, size: int) -> set[ImageId]:
    """Algorithm 4 of iCaRL word by word."""
    chosen: set[ImageId] = set()
    for row in range(known):
        left = [index for index in range(len(ids)) if rows[index] == row]
        unit = {index: features[index].astype(float) / np.linalg.norm(features[index].astype(float)) for index in left}
        mean = sum(unit.values()) / len(left) if left else None
        taken: list[int] = []
        while left and len(taken) < size:
            gaps = {
                index: np.linalg.norm(mean - sum(unit[other] for other in [*taken, index]) / (len(taken) + 1))
                for index in left
            }
            taken.append(min(left, key=gaps.__getitem__))
            left.remove(taken[-1])
        chosen |= {ids[index] for index in taken}
    return chosen


@pytest.mark.parametrize("seed", range(12))
def test_herding_equals_a_slow_loop_in_any_order(seed: int) -> None:
    ids, rows, features, _ = instances(seed, count=seed * 7)
    chosen = select_herding(ids, rows, features, 3, per_class=5)
    assert set(chosen) == herding_oracle(ids, rows, features, 3, 5)
    order = np.random.default_rng(1).permutation(len(ids))
    again = select_herding([ids[n] for n in order], rows[order], features[order], 3, per_class=5)
    assert again == chosen


# -- by score ---------------------------------------------------------------------------------------------------------


def test_by_score_by_hand() -> None:
    scores = np.array([0.5, 0.1, 0.7, 0.3, 0.0, 0.6, 0.2, 0.4], dtype=np.float32)
    ids, rows = [f"{10 * score:.0f}" for score in scores], int_rows(*[0] * 8)
    # four a class: up to s_2 = 0.2 and from s_6 = 0.6 on
    assert select_by_score(ids, rows, scores, 1, per_class=4, seed=0) == ["0", "1", "2", "6", "7"]
    # five: up to s_2 and from s_5 on; one: up to s_0 and from s_7 on
    assert select_by_score(ids, rows, scores, 1, per_class=5, seed=0) == ["0", "1", "2", "5", "6", "7"]
    assert select_by_score(ids, rows, scores, 1, per_class=1, seed=0) == ["0", "7"]
    # no more than there are: all
    assert len(select_by_score(ids, rows, scores, 1, per_class=8, seed=0)) == 8
    assert select_by_score([], int_rows(), scores[:0], 1, per_class=8, seed=0) == []


def test_by_score_of_equals_stops_three_past_the_number() -> None:
    ids, rows, scores = list(range(10)), int_rows(*[0] * 10), np.full(10, 0.5, dtype=np.float32)
    walk = np.random.default_rng(3).permutation(10)[:7]
    assert select_by_score(ids, rows, scores, 1, per_class=4, seed=3) == sorted(walk.tolist())
    with pytest.raises(NumericsError, match="image 1"):
        select_by_score([2, 1], int_rows(0, 0), np.array([0.1, np.nan], dtype=np.float32), 1, per_class=1, seed=0)


def by_score_oracle(
    ids: list[ImageId], rows: np.ndarray, scores: np.ndarray, known: int, number: int, seed: int
) -> set[ImageId]:
    """Image by image with a counter for each class, the bounds by counting."""
    bounds = {}
    for row in range(known):
        of_row = sorted(float(scores[index]) for index in range(len(ids)) if rows[index] == row)
        if len(of_row) > number:
            bounds[row] = (of_row[number // 2], of_row[len(of_row) - (number + 1) // 2])
        else:
            bounds[row] = (float("inf"), float("-inf"))
    ordered = sorted(set(ids), key=lambda image_id: (isinstance(image_id, str), image_id))
    counts, chosen = dict.fromkeys(range(known), 0), set()
    for position in np.random.default_rng(seed).permutation(len(ordered)).tolist():
        for index in range(len(ids)):
            row = int(rows[index])
            if ids[index] != ordered[position] or row >= known or counts[row] > number + 2:
                continue
            if scores[index] <= bounds[row][0] or scores[index] >= bounds[row][1]:
                counts[row] += 1
                chosen.add(ids[index])
    return chosen


@pytest.mark.parametrize("seed", range(12))
def test_by_score_and_random_equal_slow_loops_in_any_order(seed: int) -> None:
    ids, rows, _, scores = instances(seed, count=seed * 9)
    scores = np.round(scores, 1 if seed % 2 else 7)  # with ties and without
    chosen = select_by_score(ids, rows, scores, 3, per_class=1 + seed // 2, seed=seed)
    assert set(chosen) == by_score_oracle(ids, rows, scores, 3, 1 + seed // 2, seed)
    drawn = select_random(ids, rows, 3, per_class=4, seed=seed)
    expected: set[ImageId] = set()
    for row in range(3):
        named = [image_id for image_id, other in zip(ids, rows, strict=True) if other == row]
        named.sort(key=lambda image_id: (isinstance(image_id, str), image_id))
        expected |= {named[place] for place in np.random.default_rng([seed, row]).permutation(len(named))[:4]}
    assert set(drawn) == expected
    order = np.random.default_rng(1).permutation(len(ids))
    mixed = [ids[n] for n in order]
    assert select_by_score(mixed, rows[order], scores[order], 3, per_class=1 + seed // 2, seed=seed) == chosen
    assert select_random(mixed, rows[order], 3, per_class=4, seed=seed) == drawn


# -- the record -------------------------------------------------------------------------------------------------------


def test_record_and_empty_data() -> None:
    record = exemplar_record([(7, [1, 1, 2]), (5, [])], SPACE, ExemplarOptions(), seed=3)
    assert record == {
        "task": 2,
        "per_class": 50,
        "strategy": "balanced",
        "covers": "current",
        "seed": 3,
        "images": [7],
        "instances": {"cat": 0, "dog": 2},
    }
    assert exemplar_record([], SPACE, ExemplarOptions(), seed=3)["images"] == []


def test_record_of_each_strategy() -> None:
    images = [(1, [1, 1]), (2, [1]), (3, [1])]
    features = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.2]], dtype=np.float32)
    scores = np.array([0.9, 0.8, 0.0, 0.5], dtype=np.float32)
    found = np.array([True, True, False, True])
    seen = Instances((1, 1, 2, 3), int_rows(1, 1, 1, 1), features, scores, found)

    def record(strategy: str, per_class: int) -> dict:  # type: ignore[type-arg]
        options = ExemplarOptions(strategy=strategy, per_class=per_class)  # type: ignore[arg-type]
        return exemplar_record(images, SPACE, options, seed=3, instances=seen)

    assert record("herding", 9)["images"] == [1, 3]  # what no proposal overlaps has no feature
    assert record("herding", 9)["instances"] == {"cat": 0, "dog": 3}
    assert record("by_score", 1)["images"] == [1, 2]
    assert len(record("random", 1)["images"]) == 1
    greedy = exemplar_record([*images, images[0]], SPACE, ExemplarOptions(strategy="greedy", per_class=9), seed=3)
    assert greedy["covers"] == "known" and greedy["images"] == [1, 2, 3] and greedy["instances"] == {"cat": 0, "dog": 4}
    for strategy in ("balanced", "random"):
        options = ExemplarOptions(strategy=strategy)  # type: ignore[arg-type]
        assert exemplar_record([], SPACE, options, seed=3)["instances"] == {"cat": 0, "dog": 0}


# -- lists ------------------------------------------------------------------------------------------------------------

NAMES: dict[str, ImageId] = {"2008_000001": "2008_000001", "139": 139, "000000000285": 7, "7": 7}
IMAGES: list[tuple[ImageId, list[int]]] = [("2008_000001", [0, 1]), (139, [1]), (7, [0])]


def test_a_text_list_as_published(tmp_path: Path) -> None:
    path = tmp_path / "t2_ft.txt"
    path.write_text("2008_000001\n000000000139\n\n 000000000285 \r\n000000000139\n000000000999\n")
    record = listed_record(path, IMAGES, SPACE, NAMES, {"999"})
    assert record == {
        "task": 2,
        "per_class": None,
        "strategy": "list",
        "covers": "known",
        "seed": None,
        "images": [7, 139, "2008_000001"],
        "instances": {"cat": 2, "dog": 2},
        "list": str(path),
        "repeats": 1,
        "held_out": ["000000000999"],
    }


def test_our_own_record_is_a_list(tmp_path: Path) -> None:
    record = exemplar_record([(139, [1]), ("2008_000001", [1])], SPACE, ExemplarOptions(per_class=2), seed=5)
    path = tmp_path / "exemplars.json"
    path.write_text(json.dumps(record))
    read = listed_record(path, IMAGES, SPACE, NAMES, set())
    assert {key: read[key] for key in ("images", "covers", "per_class", "seed")} == {
        "images": [139, "2008_000001"],
        "covers": "current",
        "per_class": 2,
        "seed": 5,
    }
    path.write_text(json.dumps({"images": [139]}))  # as written before the field was there
    assert listed_record(path, IMAGES, SPACE, NAMES, set())["covers"] == "current"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "139\n\n2008000001\n", r"a\.txt, line 3: image id '2008000001' is not in the training data"),
        ("a.txt", "2008_00001\n", r"line 1: image id '2008_00001'"),
        ("a.json", '{"images": [139, 140]}', r"a\.json, image 2: image id 140 is not"),
        ("a.json", '{"images": [139, true]}', r"image 2: image id True is neither"),
        ("a.json", '{"images": 3}', "has no list `images`"),
        ("a.json", "[1]", "has no list `images`"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"images": [], "covers": "all"}', "covers is 'all'"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        listed_record(tmp_path / name, IMAGES, SPACE, NAMES, {"5"})


def test_a_list_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt: the exemplar list cannot be read"):
        listed_record(tmp_path / "absent.txt", IMAGES, SPACE, NAMES, set())
    (tmp_path / "a.txt").write_bytes(b"\x81\xff")
    with pytest.raises(DataError, match="cannot be read"):
        listed_record(tmp_path / "a.txt", IMAGES, SPACE, NAMES, set())
