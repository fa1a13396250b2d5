"""Auto-labelling of unknown objects (ORE, section 4.2): the most object-like background regions become *unknown*.

R regions per batch, B images. The caller chooses which regions compete: all proposals of the images (paper), or those
that were sampled for the box head (reference code).
"""

from __future__ import annotations

import torch
from torch import Tensor

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.options import UnknownLabelOptions
from openworld.structures import Regions


def top_per_image(scores: Tensor, candidates: Tensor, image_index: Tensor, per_image: int) -> Tensor:
    """Choose the ``per_image`` best candidates of each image; of equal scores the first region wins.

    Args:
        scores: (R,) floating, no NaN among the candidates.
        candidates: (R,) bool.
        image_index: (R,) int64.
        per_image: 0 or more.

    Returns:
        (R,) bool. In an image with fewer candidates all are chosen.
    """
    chosen = torch.zeros_like(candidates)
    rows = candidates.nonzero()[:, 0]
    if per_image == 0 or len(rows) == 0:
        return chosen
    rows = rows[torch.argsort(scores[rows], descending=True, stable=True)]
    rows = rows[torch.argsort(image_index[rows], stable=True)]
    images = image_index[rows]
    first_of_image = torch.searchsorted(images, images)
    rank = torch.arange(len(rows), device=rows.device) - first_of_image
    chosen[rows[rank < per_image]] = True
    return chosen


def spread_per_image(
    scores: Tensor, candidates: Tensor, boxes: Tensor, image_index: Tensor, per_image: int, iou: float
) -> Tensor:
    """Choose the ``per_image`` best places of each image: a best candidate with all candidates that overlap it.

    Args:
        scores, candidates, image_index, per_image: as in :func:`top_per_image`.
        boxes: (R, 4) x1 y1 x2 y2 in pixels.
        iou: overlap from which on a candidate belongs to a chosen one.

    Returns:
        (R,) bool.
    """
    chosen = torch.zeros_like(candidates)
    free = candidates.clone()
    for _ in range(per_image):
        best = top_per_image(scores, free, image_index, 1)
        rows = best.nonzero()[:, 0]
        if len(rows) == 0:
            break
        overlaps = _iou(boxes, boxes[rows]) * (image_index[:, None] == image_index[rows][None])
        around = free & (overlaps.amax(dim=1) >= iou)
        chosen |= around | best
        free &= ~(around | best)
    return chosen


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Compute the (R, M) intersection over union of (R, 4) and (M, 4) boxes."""
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] + (others[:, 2:] - others[:, :2]).prod(1)[None]
    return shared / (areas - shared).clamp(min=1e-9)


def unknown_candidates(
    regions: Regions, background: int, options: UnknownLabelOptions, image_sizes: Tensor | None = None
) -> Tensor:
    """Find the background regions that may be taken for unknown objects.

    Args:
        regions: matched to annotated boxes. A region whose objectness is not finite, such as an annotated box, is not
            a candidate.
        background: row of background.
        options: the filters.
        image_sizes: (B, 2) height and width in pixels; needed for ``max_area_fraction`` only.

    Returns:
        (R,) bool.

    Raises:
        ConfigError: ``max_area_fraction`` is set and the image sizes are not given.
    """
    candidates = (regions.labels == background) & (regions.iou < options.max_iou) & torch.isfinite(regions.objectness)
    boxes = regions.boxes
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    if options.min_objectness is not None:
        candidates &= regions.objectness >= options.min_objectness
    if options.min_side_px is not None:
        candidates &= torch.minimum(width, height) >= options.min_side_px
    if options.max_area_fraction is not None:
        if image_sizes is None:
            raise ConfigError(
                f"method.unknown_labels.max_area_fraction is {options.max_area_fraction}, and no image sizes are given",
                remedy="leave it out, or pass the image sizes",
            )
        image_area = image_sizes.to(boxes.dtype).prod(1)[regions.image_index]
        candidates &= width * height <= options.max_area_fraction * image_area
    return candidates


def label_unknowns(
    regions: Regions, space: LabelSpace, options: UnknownLabelOptions, image_sizes: Tensor | None = None
) -> Tensor:
    """Label the best candidates of each image *unknown*; arguments as in :func:`unknown_candidates`.

    With ``options.foreground = "logit_minus_one"`` every region competes, those that are not background with a score
    of -1; a foreground region is then relabelled where the background is scarcer than ``per_image`` or has lower
    scores (reference code). The default never touches a foreground region (paper).

    Returns:
        (R,) int64, a new tensor.
    """
    labels, boxes, image_index = regions.labels, regions.boxes, regions.image_index
    scores = regions.objectness.sigmoid() if options.score == "probability" else regions.objectness
    if options.foreground == "logit_minus_one":
        scores = scores.masked_fill(labels != space.background, -1.0)
        candidates = torch.ones_like(labels, dtype=torch.bool)
    else:
        candidates = unknown_candidates(regions, space.background, options, image_sizes)
    if options.spread_iou is not None and options.foreground == "excluded":
        chosen = spread_per_image(scores, candidates, boxes, image_index, options.per_image, options.spread_iou)
    else:
        chosen = top_per_image(scores, candidates, image_index, options.per_image)
    return labels.masked_fill(chosen, space.unknown)
