"""From the box head's output to detections (Fast R-CNN, section 3.1), as functions of the tensors of one image.

R regions, N candidates, K head rows, C sets of boxes: 1 (class-agnostic), or one per row before background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops

from openworld.engines.options import RoiOptions
from openworld.engines.roi_losses import masked_logits
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.structures import Candidates, Detections, Regions, RegionScores


def candidates_of_regions(
    boxes: Tensor, scores: Tensor, rows: Sequence[int], *, score_threshold: float, min_side_px: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each region under each row whose score passes the threshold, in the order of regions, then of rows.

    Args:
        boxes: (R, C, 4) x1 y1 x2 y2 in pixels, clipped to the image.
        scores: (R, K) in [0, 1].
        rows: head rows that may be detected.
        score_threshold: a candidate's score is above it.
        min_side_px: a candidate's box is at least as wide and as high.

    Returns:
        region (N,) int64, row (N,) int64, and the candidates' boxes (N, 4). Non-finite values are left out.
    """
    usable_RC = torch.isfinite(boxes).all(dim=2) & (boxes[..., 2:] - boxes[..., :2] >= min_side_px).all(dim=2)
    detected_K = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
    detected_K[list(rows)] = True
    region, row = torch.where((scores > score_threshold) & detected_K)
    column = row if boxes.shape[1] > 1 else torch.zeros_like(row)
    usable_N = usable_RC[region, column]
    region, row, column = region[usable_N], row[usable_N], column[usable_N]
    return region, row, boxes[region, column]


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    unknown: int,
    nms_iou: float,
    cross_nms_iou: float,
    most: int,
) -> Tensor:
    """Suppress overlapping detections; return the positions of the remaining ones, by falling score.

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in pixels.
        scores: (N,).
        labels: (N,) int64 head rows; suppression is within a label.
        unknown: row of unknown.
        nms_iou: overlap above which the weaker of two detections of one label is dropped.
        cross_nms_iou: the same between a known and an unknown detection; 1 keeps both.
        most: largest number of detections per image.

    Returns:
        (M,) int64.
    """
    kept: Tensor = box_ops.batched_nms(boxes, scores, labels, nms_iou)
    if cross_nms_iou < 1:
        kept = kept[suppress_across(boxes[kept], (labels[kept] == unknown).long(), cross_nms_iou)]
    return kept[:most]


def suppress_across(boxes: Tensor, side: Tensor, iou: float) -> Tensor:
    """Drop detections that overlap a better one of the other side (known against unknown); return the positions kept.

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in pixels, sorted by falling score.
        side: (N,) 0 known, 1 unknown.
        iou: overlap above which the weaker one is dropped.

    Returns:
        (M,) int64, rising.
    """
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    rival_NN = (box_ops.box_iou(boxes, boxes) > iou) & (side[:, None] != side[None, :])
    kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for index in range(1, len(boxes)):
        kept[index] = not bool((rival_NN[index, :index] & kept[:index]).any())
    return torch.where(kept)[0]


def detections_of_image(
    regions: Regions,
    boxes_RC4: Tensor,
    scores: RegionScores,
    method: OpenWorldMethod,
    space: LabelSpace,
    roi: RoiOptions,
) -> tuple[Detections, Tensor]:
    """Apply threshold, decision, suppression and cap to one image. Classes that no task has taught are never detected.

    Args:
        regions: of the image, with features and logits.
        boxes_RC4: (R, C, 4) refined boxes in pixels, clipped to the image.
        scores: of the regions.
        method: makes the decision, before or after the suppression.
        space: label space of the task.
        roi: the thresholds.

    Returns:
        the detections by falling score, and the region (N,) int64 of each.
    """
    assert regions.features is not None and regions.logits is not None
    region, row, found_boxes = candidates_of_regions(
        boxes_RC4,
        scores.scores,
        space.detected_rows,
        score_threshold=roi.score_threshold,
        min_side_px=roi.min_side_px,
    )
    logits_NK = regions.logits[region]
    candidates = Candidates(
        boxes=found_boxes,
        rows=row,
        scores=scores.scores[region, row],
        known_labels=logits_NK[:, : space.num_known].argmax(1),
        logits=logits_NK,
        features=regions.features[region],
        objectness=regions.objectness[region],
        extras={name: column[region] for name, column in scores.extras.items()},
    )
    suppression = partial(
        suppress,
        unknown=space.unknown,
        nms_iou=roi.nms_iou,
        cross_nms_iou=roi.cross_nms_iou,
        most=roi.detections_per_image,
    )
    if not method.nms_after_decision:
        kept = suppression(candidates.boxes, candidates.scores, candidates.rows)
        region, candidates = region[kept], candidates[kept]
    decision = method.decide(candidates)
    extras = {**candidates.extras, **decision.extras}
    found = Detections(candidates.boxes, decision.scores, decision.labels, candidates.known_labels, extras)
    found, region = found[decision.kept], region[decision.kept]
    if method.nms_after_decision:
        order = suppression(found.boxes, found.scores, found.labels)
    else:
        order = found.scores.argsort(descending=True, stable=True)  # the decision may change scores
    return found[order], region[order]


def detections_of_batch(
    regions: Regions,
    boxes_RC4: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    method: OpenWorldMethod,
    space: LabelSpace,
    roi: RoiOptions,
) -> list[tuple[Detections, Tensor]]:
    """Score the regions of a batch, and decide on those of each image.

    Args:
        regions: image after image, with features and logits.
        boxes_RC4: (R, C, 4) refined boxes in pixels.
        image_sizes: height and width of each image.
        method, space, roi: as in :func:`detections_of_image`; ``roi.mask_future`` too.

    Returns:
        for each image the detections, and the region (N,) int64 of each among those of the image.
    """
    assert regions.logits is not None
    masked = (*(space.future_rows if roi.mask_future == "always" else ()), *method.unused_rows)
    regions = replace(regions, logits=masked_logits(regions.logits, masked))
    scores = method.score(regions)
    found, first = [], 0
    for size, count in zip(
        image_sizes, torch.bincount(regions.image_index, minlength=len(image_sizes)).tolist(), strict=True
    ):
        here = slice(first, first + count)
        own = RegionScores(scores.scores[here], {name: column[here] for name, column in scores.extras.items()})
        clipped = box_ops.clip_boxes_to_image(boxes_RC4[here], size)
        found.append(detections_of_image(regions[here], clipped, own, method, space, roi))
        first += count
    return found
