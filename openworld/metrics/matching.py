"""Greedy matching of detections to objects, for all classes and images at once.

D detections, M objects (ground truth). Boxes are float64 x1 y1 x2 y2. A *group* is an integer; only boxes of the same
group are compared, for instance of the same image, or of the same image and class. Memory grows with the detections,
and with the pairs of one chunk, never with classes times images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]

PAIRS_AT_ONCE = 250_000


@dataclass(frozen=True, kw_only=True)
class MatchRule:
    """When a detection hits an object; the fields have the same meaning as in ``Protocol``."""

    iou_threshold: float = 0.5
    iou_strict: bool = False
    assignment: Literal["best_overlap", "best_free"] = "best_overlap"
    box_offset: float = 0.0
    """Added to widths and heights; 1 for inclusive pixels."""

    def hits(self, iou: Reals) -> Flags:
        """Return (P,) bool: the overlap is large enough."""
        return iou > self.iou_threshold if self.iou_strict else iou >= self.iou_threshold


@dataclass(frozen=True)
class Matching:
    """The result of each detection.

    Args:
        order: (D,) int64, detections by label, falling score, and position among equal scores.
        true: (D,) bool, found an object that no better detection had found.
        false: (D,) bool, found nothing, or an object that a better detection had found. A detection that is neither
            true nor false met an ignored object or lies in a crowd.
        object_index: (D,) int64, the object that the detection found or met, -1 for none.
    """

    order: Whole
    true: Flags
    false: Flags
    object_index: Whole


def pairwise_iou(first: Reals, second: Reals, *, box_offset: float = 0.0) -> Reals:
    """Compute the intersection over union, row by row.

    Args:
        first, second: (P, 4).
        box_offset: added to widths and heights.

    Returns:
        (P,) float64; 0 where both boxes have zero area.
    """
    shared = _intersection(first, second, box_offset)
    return _ratio(shared, _area(first, box_offset) + _area(second, box_offset) - shared)


def pairwise_coverage(first: Reals, second: Reals, *, box_offset: float = 0.0) -> Reals:
    """Compute the share of the first box inside the second, row by row; otherwise as :func:`pairwise_iou`."""
    return _ratio(_intersection(first, second, box_offset), _area(first, box_offset))


def _area(boxes: Reals, box_offset: float) -> Reals:
    area: Reals = (boxes[:, 2] - boxes[:, 0] + box_offset) * (boxes[:, 3] - boxes[:, 1] + box_offset)
    return area


def _intersection(first: Reals, second: Reals, box_offset: float) -> Reals:
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    sides = np.maximum(high - low + box_offset, 0.0)
    shared: Reals = sides[:, 0] * sides[:, 1]
    return shared


def _ratio(part: Reals, whole: Reals) -> Reals:
    ratio: Reals = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return ratio


def ranked(groups: Whole, scores: Reals) -> Whole:
    """Return (D,) int64: the detections by group, falling score, and position among equal scores."""
    order = np.argsort(-scores, kind="stable")
    members = groups[order]
    if members.size and members.min() >= 0 and members.max() < 2**16:
        members = members.astype(np.uint16)  # numpy sorts these by radix, many times faster
    return order[np.argsort(members, kind="stable")].astype(np.int64)


def _pairs(groups: Whole, object_groups: Whole) -> Iterator[tuple[Whole, Whole, Whole]]:
    """Yield chunks of all (detection, object) pairs of equal group: detections, objects, start of each detection.

    The pairs of each detection are in one chunk, its objects in rising order; detections without pairs are left out.
    """
    by_group = np.argsort(object_groups, kind="stable")
    sorted_groups = object_groups[by_group]
    start = np.searchsorted(sorted_groups, groups, side="left")
    count = np.searchsorted(sorted_groups, groups, side="right") - start
    busy = np.flatnonzero(count)
    chunk = np.cumsum(count[busy]) // PAIRS_AT_ONCE
    for members in np.split(busy, np.flatnonzero(np.diff(chunk)) + 1):
        if not members.size:
            continue
        sizes = count[members]
        heads = np.cumsum(sizes) - sizes
        within = np.arange(int(sizes.sum())) - np.repeat(heads, sizes)
        yield np.repeat(members, sizes), by_group[np.repeat(start[members], sizes) + within], heads


def best_overlaps(
    boxes: Reals, groups: Whole, object_boxes: Reals, object_groups: Whole, *, box_offset: float = 0.0
) -> tuple[Reals, Whole]:
    """Find the object of the same group that each detection overlaps most.

    Args:
        boxes: (D, 4). groups: (D,).
        object_boxes: (M, 4). object_groups: (M,).
        box_offset: added to widths and heights.

    Returns:
        iou (D,) float64 and object (D,) int64, the lowest index among equals; 0 and -1 where the group has no object.
    """
    iou = np.zeros(len(boxes))
    best = np.full(len(boxes), -1, dtype=np.int64)
    for detection, target, heads in _pairs(groups, object_groups):
        overlap = pairwise_iou(boxes[detection], object_boxes[target], box_offset=box_offset)
        top = np.maximum.reduceat(overlap, heads)
        members = detection[heads]
        winners = np.flatnonzero(overlap == np.repeat(top, np.diff(heads, append=len(overlap))))
        iou[members] = top
        best[members] = target[winners[np.searchsorted(winners, heads)]]
    return iou, best


def in_crowd(boxes: Reals, groups: Whole, crowd_boxes: Reals, crowd_groups: Whole, rule: MatchRule) -> Flags:
    """Return (D,) bool: enough of the detection is inside one crowd of its group (COCO: share of the detection)."""
    inside = np.zeros(len(boxes), dtype=bool)
    for detection, crowd, _ in _pairs(groups, crowd_groups):
        covered = pairwise_coverage(boxes[detection], crowd_boxes[crowd], box_offset=rule.box_offset)
        inside[detection[rule.hits(covered)]] = True
    return inside


def match(
    boxes: Reals,
    image_index: Whole,
    labels: Whole,
    scores: Reals,
    object_boxes: Reals,
    object_image_index: Whole,
    object_labels: Whole,
    object_ignore: Flags,
    rule: MatchRule,
    object_crowd: Flags | None = None,
) -> Matching:
    """Match detections to objects of their image and class, the best-scoring detection first.

    With ``best_overlap`` (VOC devkit) a detection whose best object is taken is false, even where it overlaps a free
    one; of equal overlaps the first object is the best. With ``best_free`` (COCO) it takes the free object that it
    overlaps most, the last of equal ones, and an ignored one only after those.
    An ignored object makes any number of detections neutral. A crowd is not matched; false detections that lie in it
    become neutral.

    Args:
        boxes (D, 4), image_index (D,), labels (D,), scores (D,): detections.
        object_boxes (M, 4), object_image_index (M,), object_labels (M,), object_ignore (M,) bool: objects.
        rule: when a detection hits an object.
        object_crowd: (M,) bool, the box outlines a group; None means that no box does.
    """
    order = ranked(labels, scores)
    stride = int(max(labels.max(initial=0), object_labels.max(initial=0))) + 1
    groups, object_groups = image_index * stride + labels, object_image_index * stride + object_labels
    assign = _match_best_free if rule.assignment == "best_free" else _match_best_overlap
    if object_crowd is None or not object_crowd.any():
        return assign(boxes, groups, order, object_boxes, object_groups, object_ignore, rule)

    single = np.flatnonzero(~object_crowd)
    result = assign(boxes, groups, order, object_boxes[single], object_groups[single], object_ignore[single], rule)
    inside = in_crowd(boxes, groups, object_boxes[object_crowd], object_groups[object_crowd], rule)
    found = result.object_index.copy()
    found[found >= 0] = single[found[found >= 0]]
    return Matching(order, result.true, result.false & ~inside, found)


def _match_best_overlap(
    boxes: Reals,
    groups: Whole,
    order: Whole,
    object_boxes: Reals,
    object_groups: Whole,
    object_ignore: Flags,
    rule: MatchRule,
) -> Matching:
    """Let every detection claim its best object; the first claim in ``order`` is true."""
    iou, best = best_overlaps(boxes, groups, object_boxes, object_groups, box_offset=rule.box_offset)
    hit = (best >= 0) & rule.hits(iou)
    best[~hit] = -1
    neutral = hit.copy()
    neutral[hit] = object_ignore[best[hit]]
    claims = order[(hit & ~neutral)[order]]
    _, first = np.unique(best[claims], return_index=True)
    true = np.zeros(len(boxes), dtype=bool)
    true[claims[first]] = True
    return Matching(order, true, ~(true | neutral), best)


def _match_best_free(
    boxes: Reals,
    groups: Whole,
    order: Whole,
    object_boxes: Reals,
    object_groups: Whole,
    object_ignore: Flags,
    rule: MatchRule,
) -> Matching:
    """Assign detections greedily to free objects. Only pairs with enough overlap are visited one by one."""
    rank = np.empty(len(boxes), dtype=np.int64)
    rank[order] = np.arange(len(boxes))
    kept: list[tuple[Whole, Whole, Reals]] = []
    for detection, target, _ in _pairs(groups, object_groups):
        overlap = pairwise_iou(boxes[detection], object_boxes[target], box_offset=rule.box_offset)
        near = rule.hits(overlap)
        kept.append((detection[near], target[near], overlap[near]))
    true = np.zeros(len(boxes), dtype=bool)
    found = np.full(len(boxes), -1, dtype=np.int64)
    if kept:
        detections, targets, overlaps = (np.concatenate(parts) for parts in zip(*kept))
        visit = np.lexsort((-targets, -overlaps, object_ignore[targets], rank[detections]))
        taken: set[int] = set()
        decided = -1
        for detection_id, target_id in zip(detections[visit].tolist(), targets[visit].tolist()):
            if detection_id == decided or target_id in taken:
                continue
            decided = detection_id
            found[detection_id] = target_id
            if not object_ignore[target_id]:
                true[detection_id] = True
                taken.add(target_id)
    return Matching(order, true, found < 0, found)
