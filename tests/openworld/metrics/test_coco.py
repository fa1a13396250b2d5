"""COCO AP through pycocotools, and our own matching where the definitions coincide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from openworld.metrics.coco import coco_average_precision
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate, score_detections
from openworld.metrics.protocols import UNIQUE


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


@pytest.mark.parametrize("seed", range(5))
def test_true_positives_agree_with_pycocotools(seed: int) -> None:
    """Both find the same recall per class at IoU 0.5 when a detection may take the best free object."""
    truth, detections = scene(seed)
    ours = evaluate(truth, detections, 0, 3, dataclasses.replace(UNIQUE, assignment="best_free"))
    coco = coco_average_precision(truth, detections, 3)
    # COCO samples the envelope at 101 recalls; the area differs from that by less than one step on either side.
    assert ours["known_ap50"] == pytest.approx(coco["ap50"], abs=0.011)
    assert 0 < coco["ap"] < coco["ap50"] < 1


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_matches_are_those_of_pycocotools(seed: int, crowds: bool) -> None:
    """The sampled envelope of our curve is pycocotools' number, to float precision."""
    truth, detections = scene(seed, crowds=crowds)
    scoring = score_detections(truth, detections, 3, dataclasses.replace(UNIQUE, assignment="best_free"))
    levels = np.linspace(0, 1, 101)
    sampled = []
    for curve in scoring.curves[:3]:
        envelope = np.append(np.maximum.accumulate(curve.precision[::-1])[::-1], 0.0)
        sampled.append(envelope[np.searchsorted(curve.recall, levels, side="left")].mean())
    assert np.mean(sampled) == pytest.approx(coco_average_precision(truth, detections, 3)["ap50"], abs=1e-12)


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
