"""Losses of the box head (Fast R-CNN, section 2.3), as functions of tensors.

R regions over the batch, K head rows, C sets of box deltas: 1 (class-agnostic), or one per row before background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder

from openworld.engines.options import RoiOptions
from openworld.labels import LabelSpace
from openworld.runtime import distributed
from openworld.structures import Regions

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of dx, dy, dw, dh, which bring the deltas to about unit size (Fast R-CNN, section 2.3)."""


def masked_logits(logits: Tensor, masked_rows: Sequence[int]) -> Tensor:
    """Mask rows of the logits: their softmax is exactly 0, and no gradient reaches them.

    The reference code writes -1e11, which float16 cannot hold; minus infinity gives the same softmax in every dtype.

    Args:
        logits: (R, K) floating.
        masked_rows: head rows; with none the logits are returned as they are.

    Returns:
        (R, K), same dtype.
    """
    if not masked_rows:
        return logits
    masked_K = torch.zeros(logits.shape[1], dtype=torch.bool)
    masked_K[list(masked_rows)] = True
    return logits.masked_fill(masked_K.to(logits.device, non_blocking=True), -torch.inf)


def classification_loss(logits: Tensor, labels: Tensor, masked_rows: Sequence[int] = ()) -> Tensor:
    """Compute the mean softmax cross-entropy over the regions, as if the head had no masked rows.

    Source of the masking: ``FastRCNNOutputs.softmax_cross_entropy_loss`` of the reference code
    (detectron2/modeling/roi_heads/fast_rcnn.py).

    Args:
        logits: (R, K) floating; float16 and bfloat16 are computed in float32.
        labels: (R,) int64 head rows, none of them masked (the loss would be infinite).
        masked_rows: rows of classes that no task has taught yet.

    Returns:
        Scalar float32 (float64 for float64 logits); exactly 0, with a gradient path, if there are no regions.
    """
    if len(labels) == 0:
        return logits.sum() * 0.0
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(masked_logits(logits, masked_rows), labels)


def box_loss(
    deltas: Tensor,
    boxes: Tensor,
    goals: Tensor,
    labels: Tensor,
    takes_part: Tensor,
    *,
    beta: float = 1 / 9,
    weights: tuple[float, float, float, float] = BOX_WEIGHTS,
) -> Tensor:
    """Compute smooth L1 between predicted and target deltas of some regions, divided by the number of all regions.

    A region whose goal has zero width or height takes no part: its image has no annotated boxes, so there is no box
    to move to. It still counts in the number of all regions. (The reference code takes the logarithm of the zero
    size if it labelled such a region unknown, and its loss is infinite.)

    Args:
        deltas: (R, 4·C) floating; C is 1, or the deltas of row k are in the columns 4k … 4k+3.
        boxes: (R, 4) the regions, x1 y1 x2 y2 in pixels.
        goals: (R, 4) the annotated box that each region overlaps most; zeros where its image has none.
        labels: (R,) int64 head rows.
        takes_part: (R,) bool; if C is not 1, only for labels below C.
        beta: where the quadratic part of the loss ends, in deltas; 0 is plain L1 (reference code).
        weights: of dx, dy, dw, dh.

    Returns:
        Scalar, dtype of the deltas; exactly 0, with a gradient path, where no region takes part.
    """
    takes_part = takes_part & (goals[:, 2:] > goals[:, :2]).all(dim=1)
    if not bool(takes_part.any()):
        return deltas.sum() * 0.0
    wanted_P4 = BoxCoder(weights=weights).encode_single(goals[takes_part], boxes[takes_part])
    given_P4 = deltas[takes_part]
    if deltas.shape[1] != 4:
        own_P = labels[takes_part]
        given_P4 = given_P4.reshape(len(own_P), -1, 4)[torch.arange(len(own_P), device=own_P.device), own_P]
    return functional.smooth_l1_loss(given_P4, wanted_P4, beta=beta, reduction="sum") / len(labels)


def box_head_losses(
    regions: Regions, space: LabelSpace, roi: RoiOptions, unused_rows: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Compute classification and box loss of the sampled regions, as the options say.

    Args:
        regions: sampled, with labels, goals, logits and deltas.
        space: label space of the task.
        roi: ``mask_future``, ``unknown_box_loss`` and ``smooth_l1_beta``.
        unused_rows: rows that the method leaves out of the softmax.

    Returns:
        ``classification`` and ``box``, scalars; see :func:`classification_loss` and :func:`box_loss`. With several
        processes, their means over the processes equal the losses of one process with all the regions.
    """
    assert regions.logits is not None and regions.deltas is not None and regions.goals is not None
    masked = (*(space.future_rows if roi.mask_future != "never" else ()), *unused_rows)
    regressed = space.is_known(regions.labels)
    if roi.unknown_box_loss == "included":
        regressed = regressed | (regions.labels == space.unknown)
    weight = distributed.mean_weight(torch.full((), len(regions), device=regions.boxes.device))
    box = box_loss(regions.deltas, regions.boxes, regions.goals, regions.labels, regressed, beta=roi.smooth_l1_beta)
    return {
        "classification": weight * classification_loss(regions.logits, regions.labels, masked),
        "box": weight * box,
    }
