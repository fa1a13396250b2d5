"""Which anchors and regions the losses see: proposals matched to annotated boxes, and a random share of them.

Both engines share it. What is drawn does not depend on the number of processes. B images, A anchors of one image, R
regions over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops

from openworld.engines.base import LabelUnknowns
from openworld.engines.options import RoiOptions
from openworld.labels import LabelSpace
from openworld.runtime import distributed
from openworld.structures import Regions, Target


@torch.no_grad()
def training_regions(
    proposals: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: Sequence[Target],
    image_sizes: Tensor,
    labels: LabelSpace,
    roi: RoiOptions,
    label_unknowns: LabelUnknowns,
    among: Literal["all_proposals", "sampled"],
) -> tuple[Regions, Tensor]:
    """Proposals matched, unknowns labelled and a share of them drawn, as ``Engine.training_step`` says.

    Args:
        proposals, objectness, targets, labels: as :func:`match_regions`.
        image_sizes: (B, 2) height and width in pixels.
        roi: of the box head.
        label_unknowns, among: see :class:`openworld.engines.base.Engine`.

    Returns:
        the regions of the losses, and the annotated box of each, (R, 4); zeros where an image has none.
    """
    regions, goals = match_regions(
        proposals, objectness, targets, labels, foreground_iou=roi.foreground_iou, add_annotated=roi.append_annotated
    )
    if among == "all_proposals":
        regions = replace(regions, labels=label_unknowns(regions, image_sizes))
    sampled = sample_regions(regions, len(proposals), labels, roi)
    regions, goals = regions[sampled], goals[sampled]
    if among == "sampled":
        regions = replace(regions, labels=label_unknowns(regions, image_sizes))
    return regions, goals


def match_regions(
    proposals: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: Sequence[Target],
    labels: LabelSpace,
    *,
    foreground_iou: float,
    add_annotated: bool,
) -> tuple[Regions, Tensor]:
    """Give every proposal the label of the annotated box that it overlaps most, or background (Fast R-CNN, 2.3).

    Args:
        proposals: for each image (P, 4) float32 x1 y1 x2 y2 in pixels.
        objectness: for each image (P,) float32 logits.
        targets: for each image its annotated boxes.
        labels: of the task.
        foreground_iou: a region belongs to a box from this IoU.
        add_annotated: the annotated boxes are regions too, with an objectness of infinity, behind the proposals.

    Returns:
        the regions of all images, image after image, and the annotated box of each, (R, 4) float32; zeros where an
        image has none.
    """
    parts: list[Regions] = []
    goals: list[Tensor] = []
    for index, (boxes, scores, target) in enumerate(zip(proposals, objectness, targets, strict=True)):
        if add_annotated:
            boxes = torch.cat([boxes, target.boxes])
            scores = torch.cat([scores, scores.new_full((len(target),), torch.inf)])
        rows = torch.full((len(boxes),), labels.background, device=boxes.device)
        iou, goal = boxes.new_zeros(len(boxes)), torch.zeros_like(boxes)
        if len(target) and len(boxes):
            iou, best = box_ops.box_iou(boxes, target.boxes).max(dim=1)
            goal = target.boxes[best]
            rows = torch.where(iou >= foreground_iou, target.labels[best], rows)
        parts.append(Regions(boxes, torch.full_like(rows, index), scores, iou, rows))
        goals.append(goal)
    return _join(parts), torch.cat(goals)


def sample_anchors(labels: Tensor, per_image: int, positive_fraction: float = 0.5) -> tuple[Tensor, Tensor]:
    """Anchors in the losses of the proposals: positive ones up to their share, negative ones for the rest.

    It draws as torchvision's BalancedPositiveNegativeSampler does (models/detection/_utils.py).

    Args:
        labels: (B, A) floating, 1 positive, 0 negative, -1 in between.
        per_image: anchors of an image.
        positive_fraction: most of them that are positive.

    Returns:
        (B, A) bool each, the positive and the negative ones.
    """
    pools = [torch.where(labels_A == value)[0] for labels_A in labels for value in (1, 0)]
    orders = iter(distributed.permutations([len(pool) for pool in pools], labels.device))
    positive, negative = torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool)
    for image in range(len(labels)):
        few, many = pools[2 * image], pools[2 * image + 1]
        chosen = few[next(orders)[: int(per_image * positive_fraction)]]
        positive[image, chosen] = True
        negative[image, many[next(orders)[: per_image - len(chosen)]]] = True
    return positive, negative


def sample_regions(regions: Regions, images: int, labels: LabelSpace, roi: RoiOptions) -> Tensor:
    """Positions (S,) int64 of the regions in the loss: foreground up to its share or shares, background for the rest.

    Args:
        regions: of all images, image after image.
        images: B; an image may have no region.
        labels: of the task.
        roi: ``sampled_regions``, ``positive_fraction`` and ``unknown_share``.
    """
    pools: list[tuple[Tensor, int]] = []
    total = roi.sampled_regions
    most = int(total * roi.positive_fraction)
    known, unknown = labels.is_known(regions.labels), regions.labels == labels.unknown
    shares = [known, unknown] if roi.unknown_share == "separate" else [known | unknown]
    for image in range(images):
        here = regions.image_index == image
        foreground = [torch.where(here & share)[0] for share in shares]
        room = max(total - sum(min(len(pool), most) for pool in foreground), 0)
        background = torch.where(here & (regions.labels == labels.background))[0]
        pools += [*((pool, most) for pool in foreground), (background, room)]
    chosen = _draw(pools, regions.labels.device)
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=regions.labels.device)


def boxes_by_image(regions: Regions, images: int) -> list[Tensor]:
    """Boxes (r, 4) of each of the images; the regions are stored image after image."""
    return list(regions.boxes.split(torch.bincount(regions.image_index, minlength=images).tolist()))


def _draw(pools: Sequence[tuple[Tensor, int]], device: torch.device) -> list[Tensor]:
    """Of each pool at most so many entries, at random where it has more."""
    orders = iter(distributed.permutations([len(pool) for pool, most in pools if len(pool) > most], device))
    return [pool[next(orders)[:most]] if len(pool) > most else pool for pool, most in pools]


def _join(parts: Sequence[Regions]) -> Regions:
    names = ("boxes", "image_index", "objectness", "iou", "labels")
    return Regions(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
