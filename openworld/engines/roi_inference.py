"""From the box head's output to detections (Fast R-CNN, section 3.1), as functions of the tensors of one image.

R regions, N candidates, K head rows, C sets of boxes: 1 (class-agnostic) or one a row before background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops

from openworld.engines.base import Decide
from openworld.engines.options import RoiOptions
from openworld.engines.roi_losses import masked_logits
from openworld.labels import LabelSpace
from openworld.structures import Detections


def candidates(
    boxes: Tensor, scores: Tensor, rows: Sequence[int], *, score_threshold: float, min_side_px: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Each region under each row whose score passes the threshold, in the order of regions, then of rows.

    Args:
        boxes: (R, C, 4) x1 y1 x2 y2 in pixels, clipped to the image.
        scores: (R, K) in [0, 1].
        rows: head rows that may be detected.
        score_threshold: a candidate's score is above it.
        min_side_px: a candidate's box is at least as wide and as high.

    Returns:
        region (N,) int64, row (N,) int64, and the candidates' boxes (N, 4). What is not finite is no candidate.
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
    """Positions of the detections that remain, by falling score.

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in pixels.
        scores: (N,).
        labels: (N,) int64 head rows; suppression is within a label.
        unknown: row of unknown.
        nms_iou: overlap above which the weaker of two detections of one label goes.
        cross_nms_iou: the same between a known and an unknown detection; 1 keeps both.
        most: detections of an image.

    Returns:
        (M,) int64.
    """
    kept: Tensor = box_ops.batched_nms(boxes, scores, labels, nms_iou)
    if cross_nms_iou < 1:
        kept = kept[suppress_across(boxes[kept], (labels[kept] == unknown).long(), cross_nms_iou)]
    return kept[:most]


def suppress_across(boxes: Tensor, side: Tensor, iou: float) -> Tensor:
    """Positions kept when a detection gives way to a better one of the other side (known against unknown).

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in pixels, sorted by falling score.
        side: (N,) 0 known, 1 unknown.
        iou: overlap above which the weaker one goes.

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
    boxes: Tensor, logits: Tensor, labels: LabelSpace, roi: RoiOptions, decide: Decide, *, nms_after_decision: bool
) -> tuple[Detections, Tensor]:
    """Threshold, decision, suppression and cap for one image. A class that no task has taught is never detected.

    Args:
        boxes: (R, 4·C) clipped to the image, in pixels.
        logits: (R, K) floating.
        labels: of the task.
        roi: the thresholds, and ``mask_future``.
        decide: known or unknown.
        nms_after_decision: suppression comes after the decision, or before it.

    Returns:
        the detections by falling score, and the region (N,) int64 of each.
    """
    masked = labels.future_rows if roi.mask_future == "always" else ()
    scores_RK = masked_logits(logits, masked).softmax(dim=1)
    region, candidate, found_boxes = candidates(
        boxes.reshape(len(boxes), boxes.shape[1] // 4, 4),
        scores_RK,
        labels.detected_rows,
        score_threshold=roi.score_threshold,
        min_side_px=roi.min_side_px,
    )

    def suppressed(boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor) -> Tensor:
        return suppress(
            boxes_N4,
            scores_N,
            labels_N,
            unknown=labels.unknown,
            nms_iou=roi.nms_iou,
            cross_nms_iou=roi.cross_nms_iou,
            most=roi.detections_per_image,
        )

    scores = scores_RK[region, candidate]
    if not nms_after_decision:
        kept = suppressed(found_boxes, scores, candidate)
        region, candidate, found_boxes, scores = region[kept], candidate[kept], found_boxes[kept], scores[kept]
    decision = decide(logits[region], candidate, scores)
    found = Detections(found_boxes, decision.scores, decision.labels, decision.energies, decision.known_labels)
    found, region = found[decision.kept], region[decision.kept]
    if nms_after_decision:
        order = suppressed(found.boxes, found.scores, found.labels)
    else:
        order = found.scores.argsort(descending=True, stable=True)  # the decision may change scores
    return found[order], region[order]
