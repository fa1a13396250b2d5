"""RoIAlign (Mask R-CNN, section 3) over feature levels, with a fast path for CPUs.

The plain path is :func:`level_roi_align`: torchvision's ``roi_align`` on each level. On a CPU its backward pass runs on
one thread and was the largest single operation of a training step. Each output bin is a weighted sum of a few cells of
the feature maps, so :func:`table_roi_align` computes all bins as one product with a sparse matrix, and the gradient as
a product with the transposed matrix. Both products are parallel embedding bags. The two paths agree up to rounding.

R regions, C channels, S bins per side, T taps of a bin along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align

CANONICAL_LEVEL = 4
"""FPN, eq. 1: a region of the canonical size belongs to the level at stride 2**4."""


class RoIAlign(nn.Module):
    """Features of regions, each read from the level that fits its size.

    Args:
        strides: pixels per cell of each level, powers of two, finest first.
        output_size: S, bins per side.
        sampling_ratio: sampling points per side of each bin; 0 takes as many as the bin has cells.
        canonical_size_px: side of a region that is read from the level at stride 16 (FPN, eq. 1: 224).
        aligned: shift the boxes by half a cell, so that centres of pixels and cells meet (detectron2's ROIAlignV2).
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        output_size: int,
        sampling_ratio: int,
        canonical_size_px: float,
        aligned: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.canonical_size_px = canonical_size_px
        self.aligned = aligned

    def forward(self, levels: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Read the features of the boxes of all images, in their order.

        Args:
            levels: per stride (B, C, H/stride, W/stride) floating, of one dtype.
            boxes: per image (r, 4) x1 y1 x2 y2 in pixels of the padded batch.

        Returns:
            (R, C, S, S) in the dtype of the levels; on a CPU channels last in memory.
        """
        boxes_R4 = torch.cat(list(boxes))
        image_R = torch.cat([torch.full((len(part),), index, device=part.device) for index, part in enumerate(boxes)])
        fast = boxes_R4.device.type == "cpu" and self.sampling_ratio > 0
        align = table_roi_align if fast else level_roi_align
        return align(
            levels,
            self.strides,
            boxes_R4,
            image_R,
            self.level_of(boxes_R4),
            self.output_size,
            self.sampling_ratio,
            self.aligned,
        )

    def level_of(self, boxes_R4: Tensor) -> Tensor:
        """Choose the level of each box by its size (FPN, eq. 1): (R, 4) pixels → (R,) int64 position."""
        side_R = (boxes_R4[:, 2:] - boxes_R4[:, :2]).prod(dim=1).clamp(min=0).sqrt()
        wanted = torch.floor(CANONICAL_LEVEL + torch.log2(side_R / self.canonical_size_px) + 1e-6)
        strides = [stride.bit_length() - 1 for stride in self.strides]
        return (wanted.clamp(min=strides[0], max=strides[-1]) - strides[0]).long()


def level_roi_align(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes_R4: Tensor,
    image_R: Tensor,
    level_R: Tensor,
    bins: int,
    ratio: int,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign level by level, with torchvision's kernel.

    Args:
        levels: (B, C, H, W) each, floating, of one dtype; bfloat16 is summed in float32.
        strides: of the levels, in pixels.
        boxes_R4: x1 y1 x2 y2 in pixels.
        image_R: (R,) int64 position in the batch.
        level_R: (R,) int64 position in ``levels``.
        bins: S.
        ratio: sampling points per side of a bin; 0 takes as many as the bin has cells.
        aligned: shift the boxes by half a cell.

    Returns:
        (R, C, S, S) in the dtype of the levels.
    """
    result = levels[0].new_zeros(len(boxes_R4), levels[0].shape[1], bins, bins)
    rois_R5 = torch.cat([image_R[:, None].to(boxes_R4), boxes_R4], dim=1)
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        here = torch.where(level_R == number)[0]
        features = roi_align(level.to(rois_R5), rois_R5[here], bins, 1 / stride, ratio, aligned)
        result[here] = features.to(level)
    return result


def table_roi_align(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes_R4: Tensor,
    image_R: Tensor,
    level_R: Tensor,
    bins: int,
    ratio: int,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign as weighted sums over one table of all cells of all levels and images, on a CPU.

    Args and result as :func:`level_roi_align`; ``ratio`` must be 1 or more.
    """
    channels, count = levels[0].shape[1], len(boxes_R4)
    if count == 0:
        return torch.stack([level.sum() for level in levels]).sum() * 0 + levels[0].new_zeros(0, channels, bins, bins)
    # All cells as rows of one table; first_R is the row of the first cell of each region's level and image.
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])
    heights = torch.tensor([level.shape[2] for level in levels])[level_R]
    widths = torch.tensor([level.shape[3] for level in levels])[level_R]
    cells = torch.tensor([0, *(level.shape[0] * level.shape[2] * level.shape[3] for level in levels[:-1])]).cumsum(0)
    first_R = cells[level_R] + image_R * heights * widths
    # The cells and weights of each bin along both axes, in units of cells.
    scaled_R4 = boxes_R4 / torch.tensor(strides, dtype=boxes_R4.dtype)[level_R][:, None]
    shift, shortest = (0.5, 0.0) if aligned else (0.0, 1.0)
    scaled_R4 = scaled_R4 - shift
    rows_RST, row_weights_RST = _taps(scaled_R4[:, 1], scaled_R4[:, 3], bins, ratio, heights, shortest)
    columns_RST, column_weights_RST = _taps(scaled_R4[:, 0], scaled_R4[:, 2], bins, ratio, widths, shortest)
    first_RST = first_R[:, None, None] + rows_RST * widths[:, None, None]
    # Their products: (R, S, S, T, T), the taps of each bin row by row, of which those without weight are dropped.
    index = first_RST[:, :, None, :, None] + columns_RST[:, None, :, None, :]
    weights = row_weights_RST[:, :, None, :, None] * column_weights_RST[:, None, :, None, :] / ratio**2
    used = weights != 0
    taps_of_bin = used.flatten(3).sum(3).flatten()
    taps = torch.where(used.flatten())[0]
    chosen = index.flatten()[taps], weights.flatten()[taps].to(table.dtype)
    sums: Tensor = _WeightedSums.apply(table, *chosen, taps_of_bin)  # type: ignore[no-untyped-call]
    return sums.reshape(count, bins, bins, channels).permute(0, 3, 1, 2)


class _WeightedSums(torch.autograd.Function):
    """Product of a sparse matrix, given row by row, with a table.

    The backward pass is a second embedding bag, over the transposed matrix. It is twice as fast as the embedding bag's
    own backward pass, which visits the taps of each cell.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weights: Tensor, taps_of_bin: Tensor) -> Tensor:
        ctx.save_for_backward(index, weights, taps_of_bin)
        ctx.cells = len(table)
        return _bags(table, index, weights, taps_of_bin)

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, weights, taps_of_bin = ctx.saved_tensors
        order = index.argsort(stable=True)
        bin_of_tap = torch.arange(len(taps_of_bin)).repeat_interleave(taps_of_bin)
        taps_of_cell = torch.bincount(index, minlength=ctx.cells)
        return _bags(grad.contiguous(), bin_of_tap[order], weights[order], taps_of_cell), None, None, None


def _bags(table: Tensor, index: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    """Segmented weighted sum: output row i adds up the next ``sizes[i]`` rows ``table[index]``, times their weights."""
    starts = sizes.cumsum(0) - sizes
    return functional.embedding_bag(index, table, starts, per_sample_weights=weights, mode="sum")


def _taps(
    start_R: Tensor, end_R: Tensor, bins: int, ratio: int, limit_R: Tensor, shortest: float
) -> tuple[Tensor, Tensor]:
    """Find the cells that each bin reads along an axis, and their weights; T is twice the points per bin.

    A point is interpolated between two cells. A point less than one cell beyond the map takes the border's value; a
    point farther out has no weight. A box shorter than ``shortest`` cells is read as if it had this length. Where
    points of a bin read the same cell, the first tap has the sum of the weights and the others have 0.

    Args:
        start_R: first coordinate of each box, in cells.
        end_R: last coordinate of each box, in cells.
        bins: S.
        ratio: points per bin.
        limit_R: cells of each box's level along the axis.
        shortest: least length of a box, in cells.

    Returns:
        (R, S, T) int64 cells and (R, S, T) weights in the dtype of the boxes.
    """
    points = bins * ratio
    step_R = (end_R - start_R).clamp(min=shortest) / points
    place = start_R[:, None] + (torch.arange(points) + 0.5) * step_R[:, None]
    last = (limit_R - 1)[:, None]
    inside = (place >= -1) & (place <= limit_R[:, None])
    place = place.clamp(min=0)
    low = torch.minimum(place.floor().long(), last)
    high = torch.minimum(low + 1, last)
    share = torch.where(low < last, place - low, torch.zeros_like(place))
    weights = torch.stack([1 - share, share], dim=2) * inside[..., None]
    cells_RST = torch.stack([low, high], dim=2).reshape(-1, bins, 2 * ratio)
    weights_RST = weights.reshape(-1, bins, 2 * ratio)
    same_RSTT = cells_RST[..., :, None] == cells_RST[..., None, :]
    repeated_RST = same_RSTT.tril(-1).any(-1)
    merged_RST = (same_RSTT * weights_RST[..., None, :]).sum(-1).masked_fill(repeated_RST, 0)
    return cells_RST, merged_RST
