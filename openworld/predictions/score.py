"""Score a predictions file against annotations, and show the results of all tasks as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from openworld.errors import DataError
from openworld.metrics.coco import coco_average_precision
from openworld.metrics.forgetting import forgetting
from openworld.metrics.ground_truth import AnnotatedImages, GroundTruth, ScoredBoxes
from openworld.metrics.owod import WI_RECALL, evaluate
from openworld.metrics.protocols import UNIQUE, Protocol
from openworld.predictions.file import Predictions
from openworld.runtime.console import narrow_table

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
USES_UNKNOWN_LABELS = "Uses labels of unknown objects: the energy was fitted on annotated ones"


def evaluate_predictions(
    predictions: Predictions, dataset: AnnotatedImages, protocol: Protocol = UNIQUE, **policy: bool
) -> dict[str, Any]:
    """The content of metrics.json: :func:`evaluate_protocols` with one protocol."""
    return evaluate_protocols(predictions, dataset, [protocol], **policy)[0]


def evaluate_protocols(
    predictions: Predictions,
    dataset: AnnotatedImages,
    protocols: Sequence[Protocol],
    *,
    missing_images: bool = False,
    extra_images: bool = False,
    coco: bool = True,
) -> list[dict[str, Any]]:
    """Score one task's predictions under one or several protocols.

    The label space is the one of the predictions: a class of the data set that their task does not know is unknown.

    Args:
        predictions: detections of one task's model.
        dataset: records with ``image_id``, ``boxes`` (N, 4) xyxy, ``categories`` and ``ignore``, and the class names.
        protocols: the rules of scoring.
        missing_images: score images of the data set that were not predicted as images without detections, and count
            them, instead of refusing.
        extra_images: leave out the predictions on images that the data set lacks, and count them, instead of refusing.
        coco: add COCO's AP of the known classes by pycocotools. A million detections take about a minute.

    Returns:
        for each protocol as :func:`openworld.metrics.owod.evaluate`, with ``task``, the names of the
        ``previous_classes``, ``uses_unknown_labels`` of the predictions, with ``counts`` of ``images_not_predicted``
        and ``predicted_images_not_annotated``, and with ``coco`` as
        :func:`openworld.metrics.coco.coco_average_precision` gives it, or None if it is not asked for.

    Raises:
        DataError: an image of the data set was not predicted, one was predicted that it does not have, or an object or
            a detection is malformed.
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
    foreign = [name for name in predictions.image_ids if name not in position_of]
    if foreign and not extra_images:
        raise DataError(
            f"{len(foreign)} of {len(predicted)} predicted images are not annotated, for instance {foreign[0]!r}",
            remedy="score with the annotations of the images that were predicted, check that both files write image "
            "ids alike (7 is not '7'), or leave the others out on purpose",
        )
    positions = np.array([position_of.get(name, -1) for name in predictions.image_ids], dtype=np.int64)
    image_index = positions[predictions.image_index] if len(predictions) else predictions.image_index
    scored = ScoredBoxes(image_index, predictions.boxes, predictions.labels, predictions.scores)[image_index >= 0]
    closed_set = coco_average_precision(truth, scored, space.num_known) if coco else None
    results = []
    for protocol in protocols:
        result = evaluate(truth, scored, len(space.previous), space.num_known, protocol, space.known)
        result["counts"]["images_not_predicted"] = len(missing)
        result["counts"]["predicted_images_not_annotated"] = len(foreign)
        task = {
            "task": space.task,
            "previous_classes": list(space.previous),
            "uses_unknown_labels": predictions.uses_unknown_labels,
        }
        results.append({**task, **result, "coco": closed_set})
    return results


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


def protocols_of(results: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the protocols that results were scored under, in the order of the results."""
    return list(dict.fromkeys(str(metrics["protocol"]) for metrics in results))


def result_table(results: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and rows of text. Results of several protocols name theirs in a second column."""
    rows = result_rows(results)
    if len(protocols_of(results)) < 2:
        return COLUMNS, rows
    names = [str(metrics["protocol"]) for metrics in results]
    named = [(task, name, *numbers) for (task, *numbers), name in zip(rows, names, strict=True)]
    return (COLUMNS[0], "Protocol", *COLUMNS[1:]), named


def print_table(metrics_by_task: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the results of the tasks, titled with their protocol, or each with its own where there are several.

    The title says so where the energy was fitted with labels of unknown objects.
    """
    protocols = protocols_of(metrics_by_task)
    shared = _shared_rules(protocols)
    titles = [f"Protocol: {protocols[0]}"] if len(protocols) == 1 else [f"All with{shared}"] if shared else []
    if any(metrics.get("uses_unknown_labels") for metrics in metrics_by_task):
        titles.append(USES_UNKNOWN_LABELS)
    heads, rows = result_table(metrics_by_task)
    rows = [tuple(cell.removesuffix(shared) for cell in row) for row in rows]
    console.print(
        narrow_table(
            [head.replace(" ", "\n", 1) for head in heads], rows, "\n".join(titles) or None, words=["Protocol"]
        )
    )


DETAIL_COLUMNS = (
    "U-Recall\n@10 / 30 / 100",
    "U-F1",
    "A-OSE\n1:1",
    "U hits unknown\n/known/nothing",
    "COCO\nAP",
    "Forgot",
)


def print_details(results: Sequence[dict[str, Any]], console: Console) -> None:
    """Print what the first table leaves out, and say where a number rests on a degenerate case.

    Args:
        results: of :func:`evaluate_protocols`, several tasks and protocols in any order.
    """
    several = len(protocols_of(results)) > 1
    shared = _shared_rules(protocols_of(results))
    lost = {}
    for protocol in protocols_of(results):
        under = sorted((each for each in results if each["protocol"] == protocol), key=lambda each: int(each["task"]))
        lost.update({(protocol, entry["task"]): entry["forgetting"] for entry in forgetting(under)})
    rows = []
    for result in results:
        at, hits, coco, one_to_one = (
            result[name] for name in ("unknown_recall50_at", "unknown_hits", "coco", "a_ose_one_to_one")
        )
        rows.append(
            (
                str(result["task"]),
                *([str(result["protocol"]).removesuffix(shared)] if several else []),
                " / ".join(_percent(at[budget]) for budget in ("10", "30", "100")),
                _percent(result["unknown_f1_50"]),
                ABSENT if one_to_one is None else str(one_to_one),
                "/".join(str(hits[what]) for what in ("unknown", "known", "background")),
                _percent(coco["ap"] if coco else None),
                _percent(lost[result["protocol"], result["task"]]),
            )
        )
    console.print(
        narrow_table((*(("Task", "Protocol") if several else ("Task",)), *DETAIL_COLUMNS), rows, words=["Protocol"])
    )

    degenerate: dict[tuple[Any, int, int], list[str]] = {}
    for result in results:
        below = len(result["wi_classes_below_recall"][f"{WI_RECALL:.1f}"])
        with_objects = sum(1 for summary in result["classes"].values() if summary["ground_truth"])
        if result["wi"] is not None and below:
            degenerate.setdefault((result["task"], below, with_objects), []).append(
                str(result["protocol"]).removesuffix(shared)
            )
    for (task, below, with_objects), names in degenerate.items():
        under_which = f" ({', '.join(names)})" if several else ""
        console.print(
            f"Task {task}{under_which}: {below} of {with_objects} classes never reach recall {WI_RECALL}; each enters "
            "WI with its last detection."
        )


def _shared_rules(protocols: Sequence[str]) -> str:
    """The bracket with rules of one's own that the names of several protocols end with; empty if they differ."""
    ends = {name[name.find(" (") :] if " (" in name else "" for name in protocols}
    return ends.pop() if len(protocols) > 1 and len(ends) == 1 else ""
