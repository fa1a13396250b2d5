"""Match all detections of a task to all objects under a protocol: every open-world metric is read from the result.

I listed images, M objects, D detections, K known classes. Labels are rows: known classes from 0, then unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openworld.errors import DataError
from openworld.metrics.average_precision import average_precision, precision_recall
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.matching import Matching, MatchRule, best_overlaps, in_crowd, match, ranked
from openworld.metrics.protocols import UNIQUE, Protocol

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassCurve:
    """What one class's ranked detections achieve.

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
        """AP, and recall and precision after the last detection; None without objects."""
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
        """Whether some detection brings the recall to the level."""
        return bool(self.recall.size) and float(self.recall[-1]) >= level - 1e-12


@dataclass(frozen=True)
class Scoring:
    """What the metrics of one task are read from. D detections that the protocol scores, K known classes.

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


@dataclass(frozen=True)
class ImageList:
    """A list of images as a protocol reads it; every field has one entry per listed position, (I,).

    Args:
        first: position where the same id is listed first.
        copies: number of listings of the image; images whose ids the protocol takes for one are one image.
        target: position of the image whose objects its detections are compared with.
        has_objects: its objects count.
        has_detections: its detections are scored.
    """

    first: Whole
    copies: Whole
    target: Whole
    has_objects: Flags
    has_detections: Flags


def as_number(image_id: int | str) -> int | None:
    """An image id as the whole number that ``int`` reads; None if it is not one."""
    try:
        return int(image_id)
    except ValueError:
        return None


def read_list(image_ids: Sequence[int | str], protocol: Protocol) -> ImageList:
    """Tell which listed images are one, and whose objects and detections count."""
    positions: dict[int | str, int] = {}
    first = np.array([positions.setdefault(name, at) for at, name in enumerate(image_ids)], dtype=np.int64)
    every = np.ones(len(first), dtype=bool)
    if protocol.image_ids == "exact":
        copies = np.bincount(first, minlength=len(first))[first]
        return ImageList(first, copies, np.arange(len(first)), every, every)
    heads: dict[int | str, int] = {}
    last_of: dict[int, int] = {}
    head = np.empty(len(first), dtype=np.int64)
    for at, name in enumerate(image_ids):
        number = as_number(name)
        head[at] = heads.setdefault(name if number is None else number, at)
        last_of[int(head[at])] = int(first[at])
    copies = np.bincount(head, minlength=len(first))[head]
    last = np.array([last_of[at] for at in head.tolist()], dtype=np.int64)
    if protocol.image_ids == "number_first":
        return ImageList(first, copies, head, first == head, first == last)
    return ImageList(first, copies, np.arange(len(first)), every, first == last)


def rank_within(groups: Whole, scores: Reals) -> Whole:
    """(D,) int64, number of detections of the same group that score higher; equal scores rank by position."""
    order = ranked(groups, scores)
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(len(scores)) - np.repeat(starts, np.diff(starts, append=len(scores)))
    return rank


def _rounded(values: Reals, decimals: int) -> Reals:
    """Round to decimals, half to even, as formatting a float32 does."""
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


def _chosen(detections: ScoredBoxes, images: ImageList, protocol: Protocol) -> tuple[ScoredBoxes, Whole]:
    """Detections that the protocol scores, and the rank of each within its image."""
    if not images.has_detections.all():
        detections = detections[images.has_detections[detections.image_index]]
    if protocol.score_threshold is not None:
        detections = detections[detections.scores >= protocol.score_threshold]
    if protocol.detections_per_class is not None:
        stride = int(detections.labels.max(initial=0)) + 1
        rank = rank_within(detections.image_index * stride + detections.labels, detections.scores)
        detections = detections[rank < protocol.detections_per_class]
    rank = rank_within(detections.image_index, detections.scores)
    if protocol.detections_per_image is not None and rank.max(initial=-1) >= protocol.detections_per_image:
        kept = rank < protocol.detections_per_image
        detections, rank = detections[kept], rank[kept]
    return detections, rank


def _repeated(detections: ScoredBoxes, rank: Whole, copies: Whole) -> tuple[ScoredBoxes, Whole]:
    """Repeat each detection for every copy of its image, second copies after all first ones."""
    times = copies[detections.image_index]
    rows = np.concatenate([np.flatnonzero(times > copy) for copy in range(int(times.max(initial=1)))])
    return detections[rows], rank[rows]


@dataclass(frozen=True)
class _Detections:
    """The D detections that a protocol scores, as it reads them.

    Args:
        boxes: (D, 4) float64 in the protocol's pixels.
        image_index: (D,) int64, the listed image whose objects they are compared with.
        labels, scores, rank: (D,).
    """

    boxes: Reals
    image_index: Whole
    labels: Whole
    scores: Reals
    rank: Whole


@dataclass(frozen=True)
class _Objects:
    """The M objects that detections can find or meet, as a protocol reads them.

    Args:
        boxes: (M, 4) float64 in the protocol's pixels.
        image_index, labels: (M,) int64.
        ignore, crowd: (M,) bool.
        per_row: (K + 1,) int64, number of objects that count for each known class and for unknown. An object of a later
            listing can count here, but it cannot be found.
    """

    boxes: Reals
    image_index: Whole
    labels: Whole
    ignore: Flags
    crowd: Flags
    per_row: Whole


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
    scored = _read_detections(detections, images, protocol)
    objects = _read_objects(ground_truth, images, num_known, protocol)
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

    is_first = images.first == np.arange(len(images.first))
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
            "images": int(_images_that_count(images, protocol).sum()),
            "duplicated_listings": int((~is_first).sum()),
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
    """Refuse detections on a later listing of an image."""
    late = images.first[detections.image_index] != detections.image_index
    if late.any():
        name = ground_truth.image_ids[int(detections.image_index[late][0])]
        raise DataError(
            f"image {name!r} is listed more than once and has detections on a later listing",
            remedy="give the detections of an image once, on its first listing",
        )


def _read_detections(detections: ScoredBoxes, images: ImageList, protocol: Protocol) -> _Detections:
    """Choose, repeat and round detections as the protocol does, in this order."""
    taken, rank = _chosen(detections, images, protocol)
    if protocol.duplicate_detections == "repeated" and (images.copies > 1).any():
        taken, rank = _repeated(taken, rank, images.copies)
    return _Detections(
        boxes=_as_scored(taken.boxes, protocol, detections=True),
        image_index=images.target[taken.image_index] if len(taken) else taken.image_index,
        labels=taken.labels,
        scores=taken.scores if protocol.score_decimals is None else _rounded(taken.scores, protocol.score_decimals),
        rank=rank,
    )


def _read_objects(ground_truth: GroundTruth, images: ImageList, num_known: int, protocol: Protocol) -> _Objects:
    """Objects on the first listing of each image, and how many count, with the protocol's flags."""
    crowd = ground_truth.crowd if protocol.ignore == "neutral" else np.zeros_like(ground_truth.crowd)
    ignore = {
        "neutral": ground_truth.ignore,
        "voc": ground_truth.ignore & ~ground_truth.crowd,
        "counted": np.zeros_like(ground_truth.ignore),
    }[protocol.ignore]
    counted = ~ignore & _images_that_count(images, protocol)[ground_truth.image_index]
    is_first = images.first == np.arange(len(images.first))
    findable = (images.has_objects & is_first)[ground_truth.image_index]
    return _Objects(
        boxes=_as_scored(ground_truth.boxes[findable], protocol, detections=False),
        image_index=ground_truth.image_index[findable],
        labels=ground_truth.labels[findable],
        ignore=ignore[findable],
        crowd=crowd[findable],
        per_row=np.bincount(ground_truth.labels[counted], minlength=num_known + 1),
    )


def _images_that_count(images: ImageList, protocol: Protocol) -> Flags:
    """(I,) bool, the listings whose objects add to the number of objects."""
    is_first = images.first == np.arange(len(images.first))
    counts: Flags = images.has_objects & (is_first | (protocol.duplicate_objects == "counted"))
    return counts


def _most_overlapped(scored: _Detections, chosen: Flags, objects: _Objects, among: Flags, rule: MatchRule) -> Whole:
    """(C,) for each chosen detection, the object out of ``among`` that it overlaps most; -1 if that is not enough."""
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
    """The curve of each known class and of unknown."""
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
    scored: _Detections, says_unknown: Flags, objects: _Objects, unknown: int, rule: MatchRule
) -> dict[str, int]:
    """Number of detections labelled unknown by what they overlap most."""
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
