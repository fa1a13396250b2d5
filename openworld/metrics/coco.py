"""COCO average precision of the known classes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes

STATISTICS = {
    "ap": 0,
    "ap50": 1,
    "ap75": 2,
    "ap_small": 3,
    "ap_medium": 4,
    "ap_large": 5,
    "recall_at_100": 8,
}


def coco_average_precision(
    ground_truth: GroundTruth, detections: ScoredBoxes, num_known: int
) -> dict[str, float | None]:
    """Compute COCO's box metrics over the known classes, without unknown objects and unknown detections.

    An image that is listed more than once counts once, with the objects of its first listing. pycocotools gets ignored
    objects as crowds, which are neutral there and overlap by the share of the detection that they cover.

    Args:
        ground_truth: labels 0 … num_known-1 known.
        detections: the same labels.
        num_known: number of known classes.

    Returns:
        ``ap`` (IoU 0.50:0.95), ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, ``recall_at_100`` as
        fractions; None where no class has an object.
    """
    detections.check(ground_truth, num_known)
    if not ((ground_truth.labels < num_known) & ~ground_truth.ignore).any():
        return dict.fromkeys(STATISTICS)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    positions: dict[int | str, int] = {}
    first = np.array([positions.setdefault(name, index) for index, name in enumerate(ground_truth.image_ids)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _dataset(
            sorted(positions.values()),
            num_known,
            ground_truth.boxes,
            ground_truth.image_index,
            ground_truth.labels,
            (ground_truth.labels < num_known) & (first[ground_truth.image_index] == ground_truth.image_index),
            crowd=ground_truth.ignore,
        )
        truth.createIndex()
        found = COCO()
        found.dataset = _dataset(
            sorted(positions.values()),
            num_known,
            detections.boxes,
            detections.image_index,
            detections.labels,
            detections.labels < num_known,
            scores=detections.scores,
        )
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: float(evaluation.stats[position]) for name, position in STATISTICS.items()}
    return {name: None if value < 0 else value for name, value in values.items()}


def _dataset(
    images: list[int],
    num_known: int,
    boxes: np.ndarray[Any, Any],
    image_index: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    kept: np.ndarray[Any, Any],
    *,
    crowd: np.ndarray[Any, Any] | None = None,
    scores: np.ndarray[Any, Any] | None = None,
) -> dict[str, Any]:
    """Make a COCO annotation dictionary of the kept rows.

    Annotation ids start at 1: pycocotools marks a detection with the id of the object that it found, and 0 means none.
    """
    annotations = []
    for number, row in enumerate(np.flatnonzero(kept).tolist(), start=1):
        x1, y1, x2, y2 = boxes[row].tolist()
        annotation: dict[str, Any] = {
            "id": number,
            "image_id": int(image_index[row]),
            "category_id": int(labels[row]) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": int(crowd[row]) if crowd is not None else 0,
        }
        if scores is not None:
            annotation["score"] = float(scores[row])
        annotations.append(annotation)
    return {
        "images": [{"id": image} for image in images],
        "categories": [{"id": row + 1, "name": str(row)} for row in range(num_known)],
        "annotations": annotations,
    }
