"""Vectorised matching against a slow loop, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openworld.metrics import matching
from openworld.metrics.matching import Matching, MatchRule, best_overlaps, match, pairwise_iou


def iou_by_hand(a: Any, b: Any, offset: float) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    area = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    union = area[0] + area[1] - width * height
    return width * height / union if union > 0 else 0.0


def slow_match(columns: dict[str, np.ndarray], rule: MatchRule) -> tuple[list[str], list[int]]:
    """VOC and COCO matching as they are told: one class, one detection, one object at a time."""
    detections = list(zip(*(columns[name].tolist() for name in ("boxes", "images", "labels", "scores"))))
    objects = list(zip(*(columns[name].tolist() for name in ("gt_boxes", "gt_images", "gt_labels", "gt_ignore"))))
    outcome, met, taken = ["F"] * len(detections), [-1] * len(detections), set()
    for index in sorted(range(len(detections)), key=lambda i: (-detections[i][3], i)):
        box, image, label, _ = detections[index]
        rivals = [
            (iou_by_hand(box, other, rule.box_offset), number, ignore)
            for number, (other, there, kind, ignore) in enumerate(objects)
            if (there, kind) == (image, label)
        ]
        if rule.assignment == "best_free":
            rivals = [rival for rival in rivals if rival[2] or rival[1] not in taken]
            over = [r for r in rivals if (r[0] > rule.iou_threshold if rule.iou_strict else r[0] >= rule.iou_threshold)]
            rivals = [rival for rival in over if not rival[2]] or over
        if not rivals:
            continue
        overlap, number, ignore = max(
            rivals, key=lambda rival: (rival[0], rival[1] if rule.assignment == "best_free" else -rival[1])
        )
        if not (overlap > rule.iou_threshold if rule.iou_strict else overlap >= rule.iou_threshold):
            continue
        met[index] = number
        if ignore:
            outcome[index] = "n"
        elif number not in taken:
            outcome[index] = "T"
            taken.add(number)
    return outcome, met


def random_columns(seed: int, detections: int = 60, objects: int = 25) -> dict[str, np.ndarray]:
    """Crowded little images: whole-number boxes and one-decimal scores, so that equal overlaps and ties occur."""
    generator = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = generator.integers(0, 8, (count, 2))
        return np.hstack([corner, corner + generator.integers(2, 8, (count, 2))]).astype(np.float64)

    return {
        "boxes": boxes(detections),
        "images": generator.integers(0, 3, detections),
        "labels": generator.integers(0, 3, detections),
        "scores": np.round(generator.random(detections), 1),
        "gt_boxes": boxes(objects),
        "gt_images": generator.integers(0, 3, objects),
        "gt_labels": generator.integers(0, 3, objects),
        "gt_ignore": generator.random(objects) < 0.25,
    }


def letters(result: Matching) -> list[str]:
    return ["T" if true else "F" if false else "n" for true, false in zip(result.true, result.false)]


@pytest.mark.parametrize("assignment", ["best_overlap", "best_free"])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_against_slow_loop(
    assignment: Any, strict: bool, offset: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = random_columns(seed)
    rule = MatchRule(iou_strict=strict, assignment=assignment, box_offset=offset)
    expected, met = slow_match(columns, rule)
    for at_once in (7, 250_000):
        monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
        result = match(*columns.values(), rule)
        assert letters(result) == expected
        if assignment == "best_overlap":
            assert result.object_index.tolist() == met


@pytest.mark.parametrize(("detections", "objects"), [(0, 0), (0, 5), (5, 0)])
@pytest.mark.parametrize("assignment", ["best_overlap", "best_free"])
def test_empty(detections: int, objects: int, assignment: Any) -> None:
    result = match(*random_columns(0, detections, objects).values(), MatchRule(assignment=assignment))
    assert letters(result) == ["F"] * detections
    assert sorted(result.order.tolist()) == list(range(detections))


def test_voc_looks_only_at_the_best_object_and_coco_at_the_best_free_one() -> None:
    objects = np.array([[0, 0, 10, 10], [0, 0, 10, 12]], dtype=np.float64)
    zeros, ignore = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=bool)
    detections = np.array([[0, 0, 10, 10], [0, 0, 10, 10.5]], dtype=np.float64)
    columns = (detections, zeros, zeros, np.array([0.9, 0.8]), objects, zeros, zeros, ignore)
    assert letters(match(*columns, MatchRule())) == ["T", "F"]
    assert letters(match(*columns, MatchRule(assignment="best_free"))) == ["T", "T"]


def test_threshold_is_strict_or_not() -> None:
    box, half = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 5]])
    zero, columns = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool)
    for strict, expected in ((False, ["T"]), (True, ["F"])):
        rule = MatchRule(iou_strict=strict)
        assert letters(match(half, zero, zero, np.ones(1), box, zero, zero, columns, rule)) == expected


def test_ignored_object_takes_any_number_of_detections() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    three, zeros = np.repeat(box, 3, axis=0), np.zeros(3, dtype=np.int64)
    result = match(three, zeros, zeros, np.ones(3), box, zeros[:1], zeros[:1], np.ones(1, dtype=bool), MatchRule())
    assert letters(result) == ["n"] * 3


def test_order_is_stable_among_equal_scores() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    zeros = np.zeros(40, dtype=np.int64)
    result = match(
        np.repeat(box, 40, axis=0),
        zeros,
        zeros,
        np.full(40, 0.5),
        box,
        zeros[:1],
        zeros[:1],
        np.zeros(1, bool),
        MatchRule(),
    )
    assert result.order.tolist() == list(range(40))
    assert letters(result) == ["T"] + ["F"] * 39


def test_iou_by_hand_and_without_area() -> None:
    first = np.array([[0.0, 0, 10, 10], [5, 5, 5, 5], [0, 0, 1, 1]])
    second = np.array([[0.0, 0, 5, 10], [5, 5, 5, 5], [2, 2, 3, 3]])
    np.testing.assert_array_equal(pairwise_iou(first, second), [0.5, 0.0, 0.0])
    np.testing.assert_allclose(pairwise_iou(first, second, box_offset=1.0), [66 / 121, 1.0, 0.0])


def test_best_overlaps_takes_the_lowest_object_of_equals() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    iou, best = best_overlaps(
        np.repeat(box, 2, axis=0), np.array([4, 9]), np.repeat(box, 3, axis=0), np.array([7, 4, 4])
    )
    assert iou.tolist() == [1.0, 0.0]
    assert best.tolist() == [1, -1]
