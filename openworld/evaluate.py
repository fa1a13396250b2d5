"""Score a predictions file against annotations, and show the results of all tasks as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openworld.errors import DataError
from openworld.metrics.ground_truth import AnnotatedImages, GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.protocols import UNIQUE, Protocol
from openworld.predictions import Predictions

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "Task",
    "Known mAP@50",
    "Prev mAP@50",
    "Curr mAP@50",
    "U-Recall",
    "U-AP",
    "U-Prec",
    "WI",
    "A-OSE",
)
ABSENT = "–"


def evaluate_predictions(
    predictions: Predictions,
    dataset: AnnotatedImages,
    protocol: Protocol = UNIQUE,
    *,
    missing_images: bool = False,
) -> dict[str, Any]:
    """The content of metrics.json.

    The label space is the one of the predictions: a class of the data set that their task does not know is unknown.

    Args:
        predictions: detections of one task's model. Images that the data set lacks are left out and counted.
        dataset: records with ``image_id``, ``boxes`` (N, 4) xyxy, ``categories`` and ``ignore``, and the class names.
        protocol: the rules of scoring.
        missing_images: score images of the data set that were not predicted as images without detections, and count
            them, instead of refusing.

    Returns:
        as :func:`openworld.metrics.owod.evaluate`, with ``task``, and with ``counts`` of ``images_not_predicted`` and
        ``predicted_images_not_annotated``.

    Raises:
        DataError: an image of the data set was not predicted, or an object or a detection is malformed.
    """
    space = predictions.label_space
    truth = GroundTruth.from_records(dataset, space)
    position_of: dict[int | str, int] = {}
    for position, name in enumerate(truth.image_ids):
        position_of.setdefault(name, position)
    predicted = set(predictions.image_ids)
    missing = [name for name in position_of if name not in predicted]
    if missing and not missing_images:
        raise DataError(
            f"{len(missing)} of {len(position_of)} annotated images were not predicted, for instance {missing[0]!r}",
            remedy="predict every annotated image (one without detections is listed with none), check that both files "
            "write image ids alike (7 is not '7'), or score the missing ones as empty on purpose",
        )
    positions = np.array([position_of.get(name, -1) for name in predictions.image_ids], dtype=np.int64)
    image_index = positions[predictions.image_index] if len(predictions) else predictions.image_index
    scored = ScoredBoxes(image_index, predictions.boxes, predictions.labels, predictions.scores)[image_index >= 0]
    result = evaluate(truth, scored, len(space.previous), space.num_known, protocol, space.known)
    result["counts"]["images_not_predicted"] = len(missing)
    result["counts"]["predicted_images_not_annotated"] = int((positions < 0).sum())
    return {"task": space.task, **result}


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"


def result_rows(metrics_by_task: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row of text for each task under :data:`COLUMNS`: percentages, WI as a fraction, A-OSE as a count."""
    rows = []
    for metrics in metrics_by_task:
        fractions = ("known_ap50", "previous_ap50", "current_ap50", "unknown_recall50", "unknown_ap50")
        impact, errors = metrics["wi"], metrics["a_ose"]
        rows.append(
            (
                str(metrics.get("task", ABSENT)),
                *(_percent(metrics[name]) for name in (*fractions, "unknown_precision50")),
                ABSENT if impact is None else f"{impact:.4f}",
                ABSENT if errors is None else str(errors),
            )
        )
    return rows


def print_table(metrics_by_task: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the results of the tasks, titled with the protocol, or protocols, that they were scored under."""
    from rich.table import Table

    protocols = sorted({str(metrics["protocol"]) for metrics in metrics_by_task})
    table = Table(title=f"Protocol: {', '.join(protocols)}" if protocols else None)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in result_rows(metrics_by_task):
        table.add_row(*row)
    console.print(table)
