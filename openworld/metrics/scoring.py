"""Match all detections of a task to all objects under a protocol: every open-world metric is read from the result.

I listed images, M objects, D detections, K known classes. Labels are rows: known classes from 0, then unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openworld.errors import DataError
from openworld.metrics.average_precision import average_precision, precision_recall
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.matching import Matching, MatchRule, best_overlaps, in_crowd, match
from openworld.metrics.protocol_inputs import (
    ImageList,
    ReadDetections,
    ReadObjects,
    images_that_count,
    read_detections,
    read_list,
    read_objects,
)
from openworld.metrics.protocols import UNIQUE, Protocol

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassCurve:
    """Precision and recall of one class's ranked detections.

    Args:
        num_objects: number of objects that count.
        recall, precision: (N,) float64 after each detection, by falling score; empty without objects.
        counted, open_errors: (N,) float64, number of detections so far that are true or false, and of open-set errors.
    """

    num_objects: int
    recall: Reals
    precision: Reals
    counted: Reals
    open_errors: Reals

    def summary(self, protocol: Protocol) -> dict[str, float | int | None]:
        """Return AP, and recall and precision after the last detection; None without objects."""
        if not self.num_objects:
            return {"ap50": None, "recall50": None, "precision50": None, "ground_truth": 0}
        last = (float(self.recall[-1]), float(self.precision[-1])) if self.recall.size else (0.0, 0.0)
        return {
            "ap50": average_precision(self.recall, self.precision, protocol.ap_style),
            "recall50": last[0],
            "precision50": last[1],
            "ground_truth": self.num_objects,
        }

    def reaches(self, level: float) -> bool:
        """Return whether the recall reaches the level."""
        return bool(self.recall.size) and float(self.recall[-1]) >= level - 1e-12


@dataclass(frozen=True)
class Scoring:
    """Matched detections of one task, from which its metrics are computed. D scored detections, K known classes.

    Args:
        curves: K + 1, known classes and unknown.
        labels: (D,) int64.
        rank: (D,) int64, within the image.
        true: (D,) bool, found an object.
        open_error: (D,) bool, has a known label and overlaps an unknown object enough.
        mistaken: number of unknown objects that such detections overlap most, each counted once.
        mistakable: number of unknown objects that a detection with a known label can be mistaken about.
        hits: what the detections labelled unknown overlap most: ``unknown``, ``known``, ``background``, or ``ignored``.
        counts: sizes of what was scored.
    """

    curves: tuple[ClassCurve, ...]
    labels: Whole
    rank: Whole
    true: Flags
    open_error: Flags
    mistaken: int
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
        DataError: detections do not fit the ground truth.
    """
    detections.check(ground_truth, num_known)
    unknown = num_known
    images = read_list(ground_truth.image_ids, protocol)
    _check_listing(ground_truth, detections, images)

    # What is compared: detections and objects as the protocol reads them.
    scored = read_detections(detections, images, protocol)
    objects = read_objects(ground_truth, images, num_known, protocol)
    rule = MatchRule(
        iou_threshold=protocol.iou_threshold,
        iou_strict=protocol.iou_strict,
        assignment=protocol.assignment,
        box_offset=protocol.box_offset,
    )

    # Within each class: which detections are true, which false, and which neutral.
    matching = match(
        scored.boxes,
        scored.image_index,
        scored.labels,
        scored.scores,
        objects.boxes,
        objects.image_index,
        objects.labels,
        objects.ignore,
        rule,
        objects.crowd,
    )

    # Across classes: known labels on unknown objects. VOC's rules count difficult objects here, and nowhere else.
    says_unknown = scored.labels == unknown
    mistakable = (objects.labels == unknown) & (~objects.ignore | (protocol.ignore == "voc"))
    mistaken = _most_overlapped(scored, ~says_unknown, objects, mistakable, rule)
    open_error = np.zeros(len(scored.labels), dtype=bool)
    open_error[~says_unknown] = mistaken >= 0

    return Scoring(
        curves=_curves(matching, scored.labels, open_error, objects.per_row),
        labels=scored.labels,
        rank=scored.rank,
        true=matching.true,
        open_error=open_error,
        mistaken=len(np.unique(mistaken[mistaken >= 0])),
        mistakable=int(mistakable.sum()),
        hits=_unknown_hits(scored, says_unknown, objects, unknown, rule),
        counts={
            "images": int(images_that_count(images, protocol).sum()),
            "duplicated_listings": int((~images.is_first).sum()),
            "known_objects": int(objects.per_row[:num_known].sum()),
            "unknown_objects": int(objects.per_row[unknown]),
            "ignored_objects": int(objects.ignore.sum()),
            "detections": len(detections),
            "scored_detections": len(scored.labels),
            "known_detections": int((~says_unknown).sum()),
            "unknown_detections": int(says_unknown.sum()),
        },
    )


def _check_listing(ground_truth: GroundTruth, detections: ScoredBoxes, images: ImageList) -> None:
    """Raise an error for detections on a later listing of some image."""
    late = images.first[detections.image_index] != detections.image_index
    if late.any():
        name = ground_truth.image_ids[int(detections.image_index[late][0])]
        raise DataError(
            f"image {name!r} is listed more than once and has detections on a later listing",
            remedy="give the detections of an image once, on its first listing",
        )


def _most_overlapped(
    scored: ReadDetections, chosen: Flags, objects: ReadObjects, among: Flags, rule: MatchRule
) -> Whole:
    """Return (C,) the object of ``among`` that each chosen detection overlaps most; -1 if the overlap is too small."""
    iou, best = best_overlaps(
        scored.boxes[chosen],
        scored.image_index[chosen],
        objects.boxes[among],
        objects.image_index[among],
        box_offset=rule.box_offset,
    )
    hit = (best >= 0) & rule.hits(iou)
    best[hit] = np.flatnonzero(among)[best[hit]]
    best[~hit] = -1
    return best


def _curves(matching: Matching, labels: Whole, open_error: Flags, objects_per_row: Whole) -> tuple[ClassCurve, ...]:
    """Compute the curve of each known class and of unknown."""
    num_rows = len(objects_per_row)
    starts = np.searchsorted(labels[matching.order], np.arange(num_rows + 1))
    curves = []
    for row in range(num_rows):
        members = matching.order[starts[row] : starts[row + 1]]
        true, false, num_objects = matching.true[members], matching.false[members], int(objects_per_row[row])
        recall, precision = precision_recall(true, false, num_objects) if num_objects else (np.zeros(0), np.zeros(0))
        counted = np.cumsum(true | false, dtype=np.float64)
        open_errors = np.cumsum(open_error[members], dtype=np.float64)
        curves.append(ClassCurve(num_objects, recall, precision, counted, open_errors))
    return tuple(curves)


def _unknown_hits(
    scored: ReadDetections, says_unknown: Flags, objects: ReadObjects, unknown: int, rule: MatchRule
) -> dict[str, int]:
    """Count the detections labelled unknown by what they overlap most."""
    target = _most_overlapped(scored, says_unknown, objects, np.ones(len(objects.boxes), dtype=bool), rule)
    met = target[target >= 0]
    # A crowd is met by lying in it, not by overlap.
    within = in_crowd(
        scored.boxes[says_unknown],
        scored.image_index[says_unknown],
        objects.boxes[objects.crowd],
        objects.image_index[objects.crowd],
        rule,
    )
    on_ignored = int(objects.ignore[met].sum()) + int((within & (target < 0)).sum())
    on_unknown = int(((objects.labels[met] == unknown) & ~objects.ignore[met]).sum())
    on_known = int(((objects.labels[met] != unknown) & ~objects.ignore[met]).sum())
    return {
        "unknown": on_unknown,
        "known": on_known,
        "background": len(target) - on_unknown - on_known - on_ignored,
        "ignored": on_ignored,
    }
