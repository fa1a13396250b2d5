"""Score a predictions file against annotations, under one or several protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openworld.columns import ImageId
from openworld.errors import DataError
from openworld.metrics.coco import coco_average_precision
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.protocols import UNIQUE, Protocol
from openworld.predictions.arrays import Predictions
from openworld.predictions.pictures import check_orientation
from openworld.records import Dataset


def evaluate_predictions(
    predictions: Predictions, dataset: Dataset, protocol: Protocol = UNIQUE, **policy: bool
) -> dict[str, Any]:
    """The content of metrics.json: :func:`evaluate_protocols` with one protocol."""
    return evaluate_protocols(predictions, dataset, [protocol], **policy)[0]


def evaluate_protocols(
    predictions: Predictions,
    dataset: Dataset,
    protocols: Sequence[Protocol],
    *,
    missing_images: bool = False,
    extra_images: bool = False,
    coco: bool = True,
) -> list[dict[str, Any]]:
    """Score one task's predictions under one or several protocols.

    The label space is that of the predictions: a class of the data set that their task does not know is unknown.

    Args:
        predictions: detections of one task's model.
        dataset: records with ``image_id``, ``boxes`` (N, 4) xyxy, ``categories`` and ``ignore``, and the class names.
        protocols: the rules of scoring.
        missing_images: score annotated images that were not predicted as images without detections, and count them,
            instead of refusing.
        extra_images: leave out predictions on images that are not annotated, and count them, instead of refusing.
        coco: add COCO's AP of the known classes by pycocotools. It takes about a minute per million detections.

    Returns:
        one result per protocol, as :func:`openworld.metrics.owod.evaluate` gives it, with ``task``, the names of the
        ``previous_classes``, ``uses_unknown_labels`` of the predictions, ``counts`` of ``images_not_predicted`` and
        ``predicted_images_not_annotated``, and ``coco`` as :func:`openworld.metrics.coco.coco_average_precision` gives
        it (None if it was not asked for).

    Raises:
        DataError: an annotated image was not predicted, a predicted one is not annotated, the two are of pictures in
            different orientation, or an object or a detection is malformed.
    """
    space = predictions.label_space
    truth = GroundTruth.from_dataset(dataset, space)
    missing, extra = _unmatched_images(predictions.image_ids, truth.image_ids)
    if missing and not missing_images:
        raise DataError(
            f"{len(missing)} of {len(set(truth.image_ids))} annotated images were not predicted, for instance "
            f"{missing[0]!r}",
            remedy="predict every annotated image (list one without detections with none), check that both files "
            "write image ids alike (7 is not '7'), or score the missing ones as empty on purpose",
        )
    if extra and not extra_images:
        raise DataError(
            f"{len(extra)} of {len(predictions.image_ids)} predicted images are not annotated, for instance "
            f"{extra[0]!r}",
            remedy="score with the annotations of the images that were predicted, check that both files write image "
            "ids alike (7 is not '7'), or leave the others out on purpose",
        )
    check_orientation(predictions, dataset)
    scored = _on_annotated_images(predictions, truth.image_ids)
    closed_set = coco_average_precision(truth, scored, space.num_known) if coco else None
    results = []
    for protocol in protocols:
        result = evaluate(truth, scored, len(space.previous), space.num_known, protocol, space.known)
        result["counts"]["images_not_predicted"] = len(missing)
        result["counts"]["predicted_images_not_annotated"] = len(extra)
        task = {
            "task": space.task,
            "previous_classes": list(space.previous),
            "uses_unknown_labels": predictions.uses_unknown_labels,
        }
        results.append({**task, **result, "coco": closed_set})
    return results


def _unmatched_images(
    predicted: Sequence[ImageId], annotated: Sequence[ImageId]
) -> tuple[list[ImageId], list[ImageId]]:
    """Ids that are annotated and not predicted, and ids that are predicted and not annotated; each once."""
    first, second = dict.fromkeys(annotated), dict.fromkeys(predicted)
    return [name for name in first if name not in second], [name for name in second if name not in first]


def _on_annotated_images(predictions: Predictions, annotated: Sequence[ImageId]) -> ScoredBoxes:
    """The detections on annotated images, on the first listing of each."""
    position_of: dict[ImageId, int] = {}
    for position, name in enumerate(annotated):
        position_of.setdefault(name, position)
    positions = np.array([position_of.get(name, -1) for name in predictions.image_ids], dtype=np.int64)
    image_index = positions[predictions.image_index]
    return ScoredBoxes(image_index, predictions.boxes, predictions.labels, predictions.scores)[image_index >= 0]
