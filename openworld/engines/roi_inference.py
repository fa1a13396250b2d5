"""From the box head's output to detections (Fast R-CNN, section 3.1), as functions of the tensors of one image.

R regions, N candidates, K head rows, C sets of boxes: 1 (class-agnostic) or one a row before background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops


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
