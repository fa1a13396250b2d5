"""Open-world metrics of one task: mAP of known classes, recall and precision of unknowns, WI, A-OSE.

Definitions (ORE, Joseph et al., CVPR 2021, section 5, as its reference code computes them unless the protocol says
otherwise):

- *mAP50* is the mean AP over the known classes that have ground truth; ``both`` is the papers' name for the mAP of all
  known classes once there are previous ones.
- *unknown recall* is the share of unknown objects that a detection labelled unknown finds.
- *A-OSE* counts detections with a known label that overlap an unknown object enough, whatever else they overlap. It
  grows with the number of detections per image; one-to-one it counts each unknown object so mistaken once.
- *WI* is the wilderness impact: at the point of each known class's curve whose recall is nearest to 0.8, the sum of
  such open-set errors so far over the sum of true and false positives so far. Classes that never reach the recall
  enter with their last detection; the result names them.

Absent ground truth gives None, never 0 or NaN: a class without objects has no AP, recall or precision. Without unknown
objects, all ``unknown_*`` values, ``wi`` and ``a_ose`` are None, because nothing could be mistaken. Absent detections
give 0: nothing was found, and no error was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.errors import DataError
from openworld.metrics.average_precision import mean_present, nearest_recall, sampled_envelope
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.protocols import UNIQUE, Protocol, rules_of
from openworld.metrics.scoring import Scoring, score_detections

Reals = NDArray[np.float64]

RECALL_LEVELS = tuple(step / 10 for step in range(1, 10))
WI_RECALL = 0.8
DETECTION_BUDGETS = (10, 30, 100)
CURVE_RECALLS = np.linspace(0.0, 1.0, 101)
CURVE_DECIMALS = 6


def wilderness_impact(curves: Sequence[tuple[Reals, Reals, Reals]], level: float) -> float | None:
    """Compute the WI at a recall level.

    Args:
        curves: per known class: recall, number of true and false positives so far, number of open-set errors so far,
            each (N,). Classes without detections add nothing. A recall of NaN marks a class without ground truth,
            which enters with its first detection.
        level: the recall.

    Returns:
        the ratio of the sums; 0 without detections, None without classes.
    """
    if not curves:
        return None
    errors = counted = 0.0
    for recall, positives, open_errors in curves:
        if recall.size:
            index = nearest_recall(recall, level)
            errors += float(open_errors[index])
            counted += float(positives[index])
    return errors / counted if counted else 0.0


def evaluate(
    ground_truth: GroundTruth,
    detections: ScoredBoxes,
    num_previous: int,
    num_known: int,
    protocol: Protocol = UNIQUE,
    class_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score the detections of one task.

    Args:
        ground_truth, detections, num_known, protocol: as for :func:`openworld.metrics.scoring.score_detections`.
        num_previous: known classes of earlier tasks; they are the first rows.
        class_names: names of the known rows for ``classes``; without them the row number is the name.

    Returns:
        fractions, counts and None, ready for JSON:

        - ``protocol``, and all its ``rules``;
        - mean AP, recall and precision of the known, previous and current classes, and ``both_ap50``;
        - ``unknown_{ap50,recall50,precision50,f1_50}``; ``unknown_recall50_at``, the unknown recall at the 10, 30, 100
          best detections per image, of any label; ``unknown_precision50_at_recall``;
        - ``wi``, ``wi_at_recall``, and ``wi_classes_below_recall``: classes with objects that never reach the level;
        - ``a_ose``, ``a_ose_at`` the 10, 30, 100 best detections per image, ``a_ose_one_to_one``;
        - ``classes`` by name; ``unknown_hits``: what the detections labelled unknown overlap most, if they overlap it
          enough (ignored objects are in ``counts``); ``counts``;
        - ``curves``, rounded to six decimals: the precision envelope at 101 recalls for every class and for unknown,
          and ``unknown_recall50_by_detections``, the unknown recall at the 1, 2 … 100 best detections per image.

    Raises:
        DataError: detections do not fit the ground truth, or ``class_names`` are not ``num_known``.
    """
    names = [str(row) for row in range(num_known)] if class_names is None else list(class_names)
    if len(names) != num_known or not 0 <= num_previous <= num_known:
        raise DataError(
            f"{len(names)} class names and {num_previous} previous of {num_known} known classes",
            remedy="name each known class; previous classes are a part of the known ones",
        )
    scoring = score_detections(ground_truth, detections, num_known, protocol)
    summaries = [curve.summary(protocol) for curve in scoring.curves]

    result: dict[str, Any] = {"protocol": protocol.name}
    spans = {
        "known": slice(0, num_known),
        "previous": slice(0, num_previous),
        "current": slice(num_previous, num_known),
    }
    for group, span in spans.items():
        for quantity in ("ap50", "recall50", "precision50"):
            values = [summary[quantity] for summary in summaries[span]]
            if quantity == "ap50" and protocol.absent_class_ap == "zero" and any(value is not None for value in values):
                values = [value or 0.0 for value in values]
            result[f"{group}_{quantity}"] = mean_present(values)
    apart = result["previous_ap50"] is not None and result["current_ap50"] is not None
    result["both_ap50"] = result["known_ap50"] if apart else None
    result |= _unknown_metrics(scoring, summaries[num_known])
    result |= _open_set_errors(scoring, protocol, names)
    result["classes"] = dict(zip(names, summaries))
    result["unknown_hits"] = {what: scoring.hits[what] for what in ("unknown", "known", "background")}
    result["counts"] = {**scoring.counts, "unknown_detections_on_ignored_objects": scoring.hits["ignored"]}
    result["rules"] = rules_of(protocol)
    result["curves"] = _curves(scoring, names)
    return result


def _unknown_metrics(scoring: Scoring, summary: dict[str, float | int | None]) -> dict[str, Any]:
    """Compute the ``unknown_*`` entries of the result."""
    curve = scoring.curves[-1]
    recall, precision = summary["recall50"], summary["precision50"]
    if recall is None or precision is None:
        return {
            "unknown_ap50": None,
            "unknown_recall50": None,
            "unknown_precision50": None,
            "unknown_f1_50": None,
            "unknown_recall50_at": {str(budget): None for budget in DETECTION_BUDGETS},
            "unknown_precision50_at_recall": {f"{level:.1f}": None for level in RECALL_LEVELS},
        }
    by_detections = _unknown_recall_by_detections(scoring)
    return {
        "unknown_ap50": summary["ap50"],
        "unknown_recall50": recall,
        "unknown_precision50": precision,
        "unknown_f1_50": 2 * recall * precision / (recall + precision) if recall + precision else 0.0,
        "unknown_recall50_at": {str(budget): float(by_detections[budget - 1]) for budget in DETECTION_BUDGETS},
        "unknown_precision50_at_recall": {
            f"{level:.1f}": float(curve.precision[nearest_recall(curve.recall, level)]) if curve.recall.size else 0.0
            for level in RECALL_LEVELS
        },
    }


def _unknown_recall_by_detections(scoring: Scoring) -> Reals:
    """Compute the (100,) unknown recall at the 1, 2 … 100 best detections per image."""
    most = DETECTION_BUDGETS[-1]
    rank_of_found = scoring.rank[scoring.true & (scoring.labels == len(scoring.curves) - 1)]
    found = np.cumsum(np.bincount(rank_of_found[rank_of_found < most], minlength=most))
    share: Reals = found / scoring.curves[-1].num_objects
    return share


def _open_set_errors(scoring: Scoring, protocol: Protocol, names: Sequence[str]) -> dict[str, Any]:
    """Compute the ``wi*`` and ``a_ose*`` entries of the result."""
    known = scoring.curves[:-1]
    below = {
        f"{level:.1f}": [
            name for name, curve in zip(names, known, strict=True) if curve.num_objects and not curve.reaches(level)
        ]
        for level in RECALL_LEVELS
    }
    if not scoring.mistakable:
        return {
            "wi": None,
            "wi_at_recall": {f"{level:.1f}": None for level in RECALL_LEVELS},
            "wi_classes_below_recall": below,
            "a_ose": None,
            "a_ose_at": {str(budget): None for budget in DETECTION_BUDGETS},
            "a_ose_one_to_one": None,
        }
    taking_part = [
        (curve.recall if curve.num_objects else np.full(len(curve.counted), np.nan), curve.counted, curve.open_errors)
        for curve in known
        if curve.num_objects or (protocol.wi_absent_classes and curve.counted.size)
    ]
    impact = {level: wilderness_impact(taking_part, level) for level in RECALL_LEVELS}
    return {
        "wi": impact[WI_RECALL],
        "wi_at_recall": {f"{level:.1f}": value for level, value in impact.items()},
        "wi_classes_below_recall": below,
        "a_ose": int(scoring.open_error.sum()),
        "a_ose_at": {
            str(budget): int((scoring.open_error & (scoring.rank < budget)).sum()) for budget in DETECTION_BUDGETS
        },
        "a_ose_one_to_one": scoring.mistaken,
    }


def _curves(scoring: Scoring, names: Sequence[str]) -> dict[str, Any]:
    """Compute the ``curves`` entry of the result."""
    envelopes = [
        np.round(sampled_envelope(curve.recall, curve.precision, CURVE_RECALLS), CURVE_DECIMALS).tolist()
        if curve.num_objects
        else None
        for curve in scoring.curves
    ]
    recalls = _unknown_recall_by_detections(scoring) if scoring.curves[-1].num_objects else None
    return {
        "recall": np.round(CURVE_RECALLS, 2).tolist(),
        "precision": dict(zip(names, envelopes[:-1], strict=True)),
        "unknown_precision": envelopes[-1],
        "unknown_recall50_by_detections": None if recalls is None else np.round(recalls, CURVE_DECIMALS).tolist(),
    }
