"""COCO AP through pycocotools, and our own matching held to it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from openworld.metrics.coco import coco_average_precision
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.protocols import Protocol, with_rules


def scene(seed: int, *, crowds: bool = False) -> tuple[GroundTruth, ScoredBoxes]:
    """Three known classes and unknown objects; detections are jittered objects and noise, scores all different."""
    generator = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = generator.uniform(0, 100, (count, 2))
        return np.hstack([corner, corner + generator.uniform(10, 60, (count, 2))])

    objects, images = boxes(60), generator.integers(0, 10, 60)
    labels = generator.integers(0, 5, 60)
    near = np.repeat(objects, 2, axis=0) + generator.normal(0, 4, (120, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    detections = ScoredBoxes.from_arrays(
        np.concatenate([np.repeat(images, 2), generator.integers(0, 10, 40)]),
        np.vstack([near, boxes(40)]),
        np.concatenate([np.minimum(np.repeat(labels, 2), 3), generator.integers(0, 4, 40)]),
        generator.permutation(160) / 160,
    )
    flags = generator.random(60) < 0.2 if crowds else np.zeros(60, dtype=bool)
    return GroundTruth.from_arrays(range(10), images, objects, labels, 3, crowd=flags), detections


COCO = Protocol(name="coco", ap_style="101point", assignment="best_free", detections_per_class=100)


def own_coco(truth: GroundTruth, detections: ScoredBoxes, num_known: int) -> dict[str, float | None]:
    """COCO's definitions (IoU grid, area all, 100 detections an image and class) through this package's matching."""
    grid = np.linspace(0.5, 0.95, 10)
    aps = [
        evaluate(truth, detections, 0, num_known, with_rules(COCO, {"iou_threshold": float(t)}))["known_ap50"]
        for t in grid
    ]
    return {"ap": None if aps[0] is None else float(np.mean(aps)), "ap50": aps[0], "ap75": aps[5]}


def random_case(seed: int) -> tuple[GroundTruth, ScoredBoxes]:
    """Small, empty, crowded, tied and overfull cases. Detections come image by image, as COCO sorts equal scores."""
    generator = np.random.default_rng(seed)
    images, classes = int(generator.integers(1, 5)), 3
    count = int(generator.choice([0, 1, 6, 20]))
    whole = generator.random() < 0.5

    def boxes(number: int) -> np.ndarray:
        corner = generator.uniform(0, 40, (number, 2))
        table = np.hstack([corner, corner + generator.uniform(2, 30, (number, 2))])
        return np.rint(table) + np.array([0, 0, 1, 1]) if whole else table

    objects, object_image = boxes(count), generator.integers(0, images, count)
    labels, crowd = generator.integers(0, classes + 1, count), generator.random(count) < generator.choice([0, 0.3])
    near = np.repeat(objects, 3, axis=0) + (
        generator.integers(-2, 3, (3 * count, 4)) if whole else generator.normal(0, 2)
    )
    near = np.hstack([near[:, :2], np.maximum(near[:, 2:], near[:, :2] + 1)])
    noise = int(generator.choice([0, 5, 150]))
    image = np.concatenate([np.repeat(object_image, 3), generator.integers(0, images, noise)])
    label = np.concatenate([np.repeat(labels, 3), generator.integers(0, classes + 1, noise)])
    scores = generator.random(len(image))
    scores = np.round(scores, 1) if generator.random() < 0.5 else scores
    order = np.argsort(image, kind="stable")
    table = np.vstack([near, boxes(noise)])
    return (
        GroundTruth.from_arrays(range(images), object_image, objects, labels, classes, crowd=crowd),
        ScoredBoxes.from_arrays(image[order], table[order], label[order], scores[order]),
    )


@pytest.mark.parametrize("block", range(10))
def test_our_matching_gives_the_numbers_of_pycocotools(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        truth, detections = random_case(seed)
        theirs, ours = coco_average_precision(truth, detections, 3), own_coco(truth, detections, 3)
        for name, value in ours.items():
            assert theirs[name] == (None if value is None else pytest.approx(value, abs=1e-9)), (seed, name)


def test_random_cases_reach_every_corner() -> None:
    cases = [random_case(seed) for seed in range(200)]
    assert sum(len(truth) == 0 for truth, _ in cases) > 10
    assert sum(len(detections) == 0 for _, detections in cases) > 3
    assert sum(bool(truth.crowd.any()) for truth, _ in cases) > 20
    full = [np.bincount(detections.image_index * 4 + detections.labels).max(initial=0) for _, detections in cases]
    assert max(full) > 40
    values = [coco_average_precision(truth, detections, 3)["ap"] for truth, detections in cases[:40]]
    assert len({value for value in values if value}) > 10


def test_more_than_a_hundred_detections_of_a_class() -> None:
    """The cap is on an image and class: 120 detections of one class, the last of which is the right one."""
    generator = np.random.default_rng(0)
    corner = generator.uniform(100, 200, (119, 2))
    boxes = np.vstack([np.hstack([corner, corner + 10]), [[0, 0, 20, 20]]])
    truth = GroundTruth.from_arrays([1], [0], [[0, 0, 20, 20]], [0], 1)
    for at, expected in ((119, 0.0), (99, 1 / 100)):
        scores = np.linspace(1, 0.1, 120)
        rows = np.arange(120)
        rows[[at, 119]] = rows[[119, at]]
        found = ScoredBoxes.from_arrays(np.zeros(120, int), boxes[rows], np.zeros(120, int), scores)
        assert own_coco(truth, found, 1)["ap50"] == pytest.approx(expected, abs=1e-12)
        assert coco_average_precision(truth, found, 1)["ap50"] == pytest.approx(expected, abs=1e-9)


def test_perfect_detector_scores_one_with_the_first_annotation_found() -> None:
    """An annotation with id 0 would read as "not matched" and cost the first object."""
    truth, _ = scene(0)
    perfect = ScoredBoxes(truth.image_index, truth.boxes, truth.labels, np.linspace(1, 0.5, len(truth)))
    result = coco_average_precision(truth, perfect, 3)
    assert result["ap"] == result["ap50"] == pytest.approx(1.0)
    single = GroundTruth.from_arrays(["x"], [0], [[0, 0, 40, 40]], [0], 3)
    assert coco_average_precision(single, ScoredBoxes.from_arrays([0], [[0, 0, 40, 40]], [0], [0.9]), 3)[
        "ap"
    ] == pytest.approx(1.0)


def test_ignored_objects_neither_count_nor_cost() -> None:
    truth, detections = scene(3, crowds=True)
    kept = dataclasses.replace(
        truth,
        image_index=truth.image_index[~truth.ignore],
        boxes=truth.boxes[~truth.ignore],
        labels=truth.labels[~truth.ignore],
        ignore=truth.ignore[~truth.ignore],
        crowd=truth.crowd[~truth.ignore],
    )
    assert coco_average_precision(truth, detections, 3)["ap50"] >= coco_average_precision(kept, detections, 3)["ap50"]


def test_absent() -> None:
    truth, detections = scene(0)
    nothing = GroundTruth.from_arrays(range(10), [], np.zeros((0, 4)), [], 3)
    assert set(coco_average_precision(nothing, detections, 3).values()) == {None}
    none_found = ScoredBoxes.from_arrays([], np.zeros((0, 4)), [], [])
    result = coco_average_precision(truth, none_found, 3)
    assert result["ap"] == result["ap50"] == 0.0 and result["ap_large"] is None
    only_unknown = ScoredBoxes(truth.image_index, truth.boxes, np.full(len(truth), 3), np.ones(len(truth)))
    assert coco_average_precision(truth, only_unknown, 3)["ap"] == 0.0


def test_an_image_listed_twice_counts_once() -> None:
    twice = GroundTruth.from_arrays(["a", "a"], [0, 1], [[0, 0, 40, 40]] * 2, [0, 0], 1)
    found = ScoredBoxes.from_arrays([0], [[0, 0, 40, 40]], [0], [0.9])
    assert coco_average_precision(twice, found, 1)["ap50"] == pytest.approx(1.0)
