"""The RPN head on sampled anchors only, without a backward pass over all cells.

The plain path is torchvision's ``RPNHead`` over whole levels, of whose outputs the losses pick the sampled anchors
(openworld/engines/rpn.py). An output of a head with one 3x3 convolution depends on nine cells. The losses see a few
hundred anchors, so the head computes these outputs again from the nine cells of each: the same values and gradients up
to rounding.

S sampled anchors, C channels, A anchors per cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.rpn import RPNHead


def is_shallow(head: RPNHead) -> bool:
    """Whether :func:`sampled_rpn_head` can compute this head: one 3x3 convolution with ReLU, then 1x1 convolutions."""
    if len(head.conv) != 1 or [type(layer) for layer in head.conv[0]] != [nn.Conv2d, nn.ReLU]:
        return False
    first, last = head.conv[0][0], (head.cls_logits, head.bbox_pred)
    plain = all(layer.stride == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1 for layer in (first, *last))
    same_size = first.kernel_size == (3, 3) and first.padding == (1, 1) and first.padding_mode == "zeros"
    return plain and same_size and all(layer.kernel_size == (1, 1) and layer.padding == (0, 0) for layer in last)


def sampled_rpn_head(
    head: RPNHead, levels: Sequence[Tensor], image_S: Tensor, anchor_S: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the outputs of a shallow head for some anchors.

    Args:
        head: for which :func:`is_shallow` holds.
        levels: feature maps (B, C, h, w) floating, of one dtype.
        image_S: (S,) int64 position in the batch.
        anchor_S: (S,) int64 position among the anchors of one image, in the order of torchvision's anchor generator:
            level by level, row by row, cell by cell.

    Returns:
        Objectness (S,) and box deltas (S, 4), as the head over whole levels has them at these anchors.
    """
    channels, anchors = levels[0].shape[1], head.cls_logits.out_channels
    # All cells as rows of one table: level by level, then image by image.
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])
    shapes = torch.tensor([level.shape[-2:] for level in levels])
    cells = shapes.prod(1)
    first = cells.cumsum(0) - cells  # first cell of each level among those of one image
    facts = torch.cat([shapes, cells[:, None], first[:, None]], dim=1).to(image_S.device, non_blocking=True)
    # Level, row and column of each anchor's cell.
    cell_S, slot_S = anchor_S // anchors, anchor_S % anchors
    level_S = (cell_S[:, None] >= facts[1:, 3]).sum(1)
    height_S, width_S, cells_S, first_S = facts[level_S].unbind(1)
    row_S, column_S = (cell_S - first_S) // width_S, (cell_S - first_S) % width_S
    # The nine cells around it; those outside of the level count as zero.
    step = torch.arange(-1, 2, device=image_S.device)
    rows_S33 = row_S[:, None, None] + step[:, None]
    columns_S33 = column_S[:, None, None] + step
    inside_S33 = (rows_S33 >= 0) & (rows_S33 < height_S[:, None, None])
    inside_S33 = inside_S33 & (columns_S33 >= 0) & (columns_S33 < width_S[:, None, None])
    start_S = len(levels[0]) * first_S + image_S * cells_S
    index_S33 = start_S[:, None, None] + rows_S33 * width_S[:, None, None] + columns_S33
    index_S33 = index_S33.where(inside_S33, 0)
    # An embedding, because the gradient of an index adds up in no fixed order on several threads.
    seen_S33C = functional.embedding(index_S33, table) * inside_S33[..., None]
    # The convolutions as matrix products.
    convolution = head.conv[0][0]
    seen_weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    hidden_SC = functional.linear(seen_S33C.flatten(1), seen_weight, convolution.bias).relu()
    last = head.cls_logits, head.bbox_pred
    weight, bias = torch.cat([layer.weight for layer in last]), torch.cat([layer.bias for layer in last])
    found = functional.linear(hidden_SC, weight.flatten(1), bias)
    position = torch.arange(len(found), device=found.device)
    return found[position, slot_S], found[:, anchors:].reshape(-1, anchors, 4)[position, slot_S]
