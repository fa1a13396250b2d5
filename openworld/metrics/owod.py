"""Open-world metrics of one task: mAP of known classes, recall and precision of unknowns, WI, A-OSE.

Definitions (ORE, Joseph et al., CVPR 2021, section 5, as its reference code computes them unless the protocol says
otherwise):

- *mAP50* is the mean AP over the known classes that have ground truth.
- *unknown recall* is the share of unknown objects that a detection labelled unknown finds.
- *A-OSE* counts detections with a known label that overlap an unknown object enough, whatever else they overlap.
- *WI* is the wilderness impact: at the point of each known class's curve whose recall is nearest to 0.8, the sum of
  such open-set errors so far over the sum of true and false positives so far.

Absent ground truth gives None, never 0 or NaN: a class without objects has no AP, recall or precision. Without unknown
objects, all ``unknown_*`` values, ``wi`` and ``a_ose`` are None, because nothing was there to be mistaken. Absent
detections give 0: nothing was found, and no error was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.errors import DataError
from openworld.metrics.average_precision import average_precision, nearest_recall, precision_recall
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.matching import MatchRule, best_overlaps, in_crowd, match
from openworld.metrics.protocols import UNIQUE, Protocol

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]

RECALL_LEVELS = tuple(step / 10 for step in range(1, 10))
WI_RECALL = 0.8
DETECTION_BUDGETS = (10, 30, 100)


@dataclass(frozen=True)
class ClassCurve:
    """What one class's ranked detections achieve.

    Args:
        objects: number of objects that count.
        recall, precision: (N,) float64 after each detection, by falling score; empty without objects.
        counted, open_errors: (N,) float64, how many detections so far are true or false, and how many open-set errors.
    """

    objects: int
    recall: Reals
    precision: Reals
    counted: Reals
    open_errors: Reals

    def summary(self, protocol: Protocol) -> dict[str, float | int | None]:
        """AP, and recall and precision after the last detection; None without objects."""
        if not self.objects:
            return {"ap50": None, "recall50": None, "precision50": None, "ground_truth": 0}
        last = (float(self.recall[-1]), float(self.precision[-1])) if self.recall.size else (0.0, 0.0)
        return {
            "ap50": average_precision(self.recall, self.precision, protocol.ap_style),
            "recall50": last[0],
            "precision50": last[1],
            "ground_truth": self.objects,
        }


def wilderness_impact(curves: Sequence[tuple[Reals, Reals, Reals]], level: float) -> float | None:
    """WI at a recall level.

    Args:
        curves: for each known class that takes part: recall, true and false positives so far, open-set errors so far,
            each (N,). A class without detections adds nothing. A recall of NaN stands for a class without ground truth,
            which takes part with its first detection.
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


def rank_within_image(image_index: Whole, scores: Reals) -> Whole:
    """(D,) int64, how many detections of the same image score higher; equal scores rank by position."""
    order = np.lexsort((-scores, image_index))
    images = image_index[order]
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(len(scores)) - np.searchsorted(images, images, side="left")
    return rank


def _rounded(values: Reals, decimals: int) -> Reals:
    """Decimal rounding, half to even: what formatting a float32 with so many decimals prints."""
    scale = float(10**decimals)
    rounded: Reals = np.rint(values * scale) / scale
    return rounded


def _as_scored(boxes: Reals, protocol: Protocol, *, detections: bool) -> Reals:
    """Boxes in the protocol's pixels. Detections that will be rounded are shifted in float32, as they were printed."""
    shift: Reals = np.array([protocol.box_offset, protocol.box_offset, 0.0, 0.0])
    if detections and protocol.box_decimals is not None:
        shifted = boxes.astype(np.float32) + shift.astype(np.float32)
        return _rounded(shifted.astype(np.float64), protocol.box_decimals)
    moved: Reals = boxes + shift
    return moved


def _first_listing(ground_truth: GroundTruth) -> tuple[Whole, Whole]:
    """For each listed image, the position where its id is listed first (I,) and how often it is listed (I,)."""
    positions: dict[int | str, int] = {}
    first = np.array(
        [positions.setdefault(name, index) for index, name in enumerate(ground_truth.image_ids)], dtype=np.int64
    )
    return first, np.bincount(first, minlength=len(first))[first]


def _chosen(detections: ScoredBoxes, protocol: Protocol) -> tuple[ScoredBoxes, Whole]:
    """Detections that the protocol scores, and the rank of each within its image."""
    if protocol.score_threshold is not None:
        detections = detections[detections.scores >= protocol.score_threshold]
    rank = rank_within_image(detections.image_index, detections.scores)
    if protocol.detections_per_image is not None:
        kept = rank < protocol.detections_per_image
        detections, rank = detections[kept], rank[kept]
    return detections, rank


def _repeated(detections: ScoredBoxes, rank: Whole, copies: Whole) -> tuple[ScoredBoxes, Whole]:
    """Each detection once for every copy of its image, second copies after all first ones."""
    times = copies[detections.image_index]
    rows = np.concatenate([np.flatnonzero(times > copy) for copy in range(int(times.max(initial=1)))])
    return detections[rows], rank[rows]


def _mean(values: Sequence[float | int | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


@dataclass(frozen=True)
class Scoring:
    """Everything that the metrics of one task are read from. D detections that the protocol scores, K known classes.

    Args:
        curves: K + 1, known classes and unknown.
        labels: (D,) int64.
        rank: (D,) int64, within the image.
        true: (D,) bool, found an object.
        open_error: (D,) bool, says known and overlaps an unknown object enough.
        mistakable: number of unknown objects that a detection with a known label can be mistaken about.
        hits: what the detections labelled unknown overlap most: ``unknown``, ``known``, ``background``, or ``ignored``.
        counts: sizes of what was scored.
    """

    curves: tuple[ClassCurve, ...]
    labels: Whole
    rank: Whole
    true: Flags
    open_error: Flags
    mistakable: int
    hits: dict[str, int]
    counts: dict[str, int]


def score_detections(
    ground_truth: GroundTruth, detections: ScoredBoxes, num_known: int, protocol: Protocol = UNIQUE
) -> Scoring:
    """Match all detections to all objects under a protocol, and rank them by class.

    Args:
        ground_truth: labels 0 … num_known-1 known, num_known unknown.
        detections: the same labels, each image's detections once, on the first listing of the image.
        num_known: number of known classes.
        protocol: the rules.

    Raises:
        DataError: detections that do not fit the ground truth.
    """
    detections.check(ground_truth, num_known)
    unknown = num_known
    first, copies = _first_listing(ground_truth)
    late = first[detections.image_index] != detections.image_index
    if late.any():
        name = ground_truth.image_ids[int(detections.image_index[late][0])]
        raise DataError(
            f"image {name!r} is listed more than once and has detections on a later listing",
            remedy="give the detections of an image once, on its first listing",
        )
    taken, rank = _chosen(detections, protocol)
    if protocol.duplicates == "counted":
        taken, rank = _repeated(taken, rank, copies)
    scores = taken.scores if protocol.score_decimals is None else _rounded(taken.scores, protocol.score_decimals)
    boxes = _as_scored(taken.boxes, protocol, detections=True)
    says_unknown = taken.labels == unknown

    # An object of a later listing can raise the number of objects, but it cannot be found.
    listed_first = first[ground_truth.image_index] == ground_truth.image_index
    crowd = ground_truth.crowd if protocol.ignore == "neutral" else np.zeros_like(ground_truth.crowd)
    ignore = {
        "neutral": ground_truth.ignore,
        "voc": ground_truth.ignore & ~ground_truth.crowd,
        "counted": np.zeros_like(ground_truth.ignore),
    }[protocol.ignore]
    counts_as_object = ~ignore & (listed_first | (protocol.duplicates == "counted"))
    objects_per_row = np.bincount(ground_truth.labels[counts_as_object], minlength=num_known + 1)
    object_image = ground_truth.image_index[listed_first]
    object_boxes = _as_scored(ground_truth.boxes[listed_first], protocol, detections=False)
    object_labels = ground_truth.labels[listed_first]
    object_ignore, object_crowd = ignore[listed_first], crowd[listed_first]

    rule = MatchRule(
        iou_threshold=protocol.iou_threshold,
        iou_strict=protocol.iou_strict,
        assignment=protocol.assignment,
        box_offset=protocol.box_offset,
    )
    matching = match(
        boxes,
        taken.image_index,
        taken.labels,
        scores,
        object_boxes,
        object_image,
        object_labels,
        object_ignore,
        rule,
        object_crowd,
    )

    def hits(chosen: Flags, among: Flags) -> Whole:
        """(C,) for each chosen detection, the one of some objects that it overlaps most, -1 if that is not enough."""
        iou, best = best_overlaps(
            boxes[chosen],
            taken.image_index[chosen],
            object_boxes[among],
            object_image[among],
            box_offset=rule.box_offset,
        )
        hit = (best >= 0) & rule.hits(iou)
        best[hit] = np.flatnonzero(among)[best[hit]]
        best[~hit] = -1
        return best

    mistakable = (object_labels == unknown) & (~object_ignore | (protocol.ignore == "voc"))
    open_error = np.zeros(len(taken), dtype=bool)
    open_error[~says_unknown] = hits(~says_unknown, mistakable) >= 0

    starts = np.searchsorted(taken.labels[matching.order], np.arange(num_known + 2))
    curves = []
    for row in range(num_known + 1):
        members = matching.order[starts[row] : starts[row + 1]]
        true, false, objects = matching.true[members], matching.false[members], int(objects_per_row[row])
        recall, precision = precision_recall(true, false, objects) if objects else (np.zeros(0), np.zeros(0))
        counted = np.cumsum(true | false, dtype=np.float64)
        open_errors = np.cumsum(open_error[members], dtype=np.float64)
        curves.append(ClassCurve(objects, recall, precision, counted, open_errors))

    target = hits(says_unknown, np.ones(len(object_boxes), dtype=bool))
    met = target[target >= 0]
    within = in_crowd(
        boxes[says_unknown],
        taken.image_index[says_unknown],
        object_boxes[object_crowd],
        object_image[object_crowd],
        rule,
    )
    on_ignored = int(object_ignore[met].sum()) + int((within & (target < 0)).sum())
    on_unknown = int(((object_labels[met] == unknown) & ~object_ignore[met]).sum())
    on_known = int(((object_labels[met] != unknown) & ~object_ignore[met]).sum())
    return Scoring(
        curves=tuple(curves),
        labels=taken.labels,
        rank=rank,
        true=matching.true,
        open_error=open_error,
        mistakable=int(mistakable.sum()),
        hits={
            "unknown": on_unknown,
            "known": on_known,
            "background": len(target) - on_unknown - on_known - on_ignored,
            "ignored": on_ignored,
        },
        counts={
            "images": len(first) if protocol.duplicates == "counted" else len(np.unique(first)),
            "duplicated_listings": int((first != np.arange(len(first))).sum()),
            "known_objects": int(objects_per_row[:num_known].sum()),
            "unknown_objects": int(objects_per_row[unknown]),
            "ignored_objects": int(object_ignore.sum()),
            "detections": len(detections),
            "scored_detections": len(taken),
            "known_detections": int((~says_unknown).sum()),
            "unknown_detections": int(says_unknown.sum()),
        },
    )


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
        ground_truth, detections, num_known, protocol: as for :func:`score_detections`.
        num_previous: known classes of earlier tasks; they are the first rows.
        class_names: names of the known rows for ``classes``; without them the row number is the name.

    Returns:
        fractions, counts and None, ready for JSON: ``protocol``; mean AP, recall and precision of the known, previous
        and current classes; ``unknown_{ap50,recall50,precision50,f1_50}``; ``unknown_recall50_at`` = unknown recall if
        only the 10, 30, 100 best detections of each image, of whatever label, are kept;
        ``unknown_precision50_at_recall``; ``wi``, ``wi_at_recall``; ``a_ose``; ``classes`` by name; ``unknown_hits``:
        what the detections labelled unknown overlap most, if they overlap it enough (ignored objects are in
        ``counts``); ``counts``.

    Raises:
        DataError: detections that do not fit the ground truth, or ``class_names`` of another number.
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
            result[f"{group}_{quantity}"] = _mean([summary[quantity] for summary in summaries[span]])
    result |= _unknown_metrics(scoring, summaries[num_known])

    in_impact = [
        (curve.recall if curve.objects else np.full(len(curve.counted), np.nan), curve.counted, curve.open_errors)
        for curve in scoring.curves[:num_known]
        if curve.objects or (protocol.wi_absent_classes and curve.counted.size)
    ]
    impact = {level: wilderness_impact(in_impact, level) if scoring.mistakable else None for level in RECALL_LEVELS}
    result["wi"] = impact[WI_RECALL]
    result["wi_at_recall"] = {f"{level:.1f}": value for level, value in impact.items()}
    result["a_ose"] = int(scoring.open_error.sum()) if scoring.mistakable else None
    result["classes"] = dict(zip(names, summaries))
    result["unknown_hits"] = {what: scoring.hits[what] for what in ("unknown", "known", "background")}
    result["counts"] = {**scoring.counts, "unknown_detections_on_ignored_objects": scoring.hits["ignored"]}
    return result


def _unknown_metrics(scoring: Scoring, summary: dict[str, float | int | None]) -> dict[str, Any]:
    """The ``unknown_*`` entries of the result."""
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
    rank_of_found = scoring.rank[scoring.true & (scoring.labels == len(scoring.curves) - 1)]
    return {
        "unknown_ap50": summary["ap50"],
        "unknown_recall50": recall,
        "unknown_precision50": precision,
        "unknown_f1_50": 2 * recall * precision / (recall + precision) if recall + precision else 0.0,
        "unknown_recall50_at": {
            str(budget): float((rank_of_found < budget).sum() / curve.objects) for budget in DETECTION_BUDGETS
        },
        "unknown_precision50_at_recall": {
            f"{level:.1f}": float(curve.precision[nearest_recall(curve.recall, level)]) if curve.recall.size else 0.0
            for level in RECALL_LEVELS
        },
    }
