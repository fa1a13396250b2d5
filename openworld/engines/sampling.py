"""Matching of proposals to annotated boxes, and random sampling of the anchors and regions of the losses.

Shared by both engines. The samples do not depend on the number of processes. B images, A anchors per image, R regions
over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import boxes as box_ops

from openworld.engines.base import Proposals
from openworld.engines.options import RoiOptions
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.runtime import distributed
from openworld.structures import Regions, Target


@torch.no_grad()
def training_regions(
    found: Proposals, targets: Sequence[Target], method: OpenWorldMethod, space: LabelSpace, roi: RoiOptions
) -> Regions:
    """Match proposals to the annotated boxes, let the method relabel them, and sample the regions of the losses.

    A method relabels before the sampling, among all proposals (ORE, section 4.2), or after it, among the sampled
    regions (reference code of ORE).

    Args:
        found: of the batch.
        targets: annotated boxes of each image, on the device of the proposals.
        method: see :attr:`OpenWorldMethod.labels_among`.
        space: label space of the task.
        roi: of the box head.

    Returns:
        the regions, image after image, with their goals.
    """
    iou, add = roi.foreground_iou, roi.append_annotated
    regions = match_regions(found, targets, space, foreground_iou=iou, add_annotated=add)
    if method.labels_among == "all_proposals":
        regions = method.relabel(regions, found.sizes)
    regions = regions[sample_regions(regions, len(targets), space, roi)]
    if method.labels_among == "sampled":
        regions = method.relabel(regions, found.sizes)
    return regions


def match_regions(
    found: Proposals, targets: Sequence[Target], space: LabelSpace, *, foreground_iou: float, add_annotated: bool
) -> Regions:
    """Give every proposal the label of the annotated box that it overlaps most, or background (Fast R-CNN, 2.3).

    Args:
        found: of the batch.
        targets: annotated boxes of each image.
        space: label space of the task.
        foreground_iou: a region belongs to a box from this IoU on.
        add_annotated: the annotated boxes are regions too, with an objectness of infinity, behind the proposals.

    Returns:
        the regions of all images, image after image, with their goals.
    """
    parts: list[Regions] = []
    for index, (boxes, scores, target) in enumerate(zip(found.boxes, found.objectness, targets, strict=True)):
        if add_annotated:
            boxes = torch.cat([boxes, target.boxes])
            scores = torch.cat([scores, scores.new_full((len(target),), torch.inf)])
        rows = torch.full((len(boxes),), space.background, device=boxes.device)
        iou, goals = boxes.new_zeros(len(boxes)), torch.zeros_like(boxes)
        if len(target) and len(boxes):
            iou, best = box_ops.box_iou(boxes, target.boxes).max(dim=1)
            goals = target.boxes[best]
            rows = torch.where(iou >= foreground_iou, target.labels[best], rows)
        parts.append(Regions(boxes, torch.full_like(rows, index), scores, iou, rows, goals))
    return _join(parts)


def unmatched_regions(found: Proposals, space: LabelSpace) -> Regions:
    """Return the proposals of all images as regions without annotations: background, with an IoU of 0."""
    rows = [torch.full((len(boxes),), space.background, device=boxes.device) for boxes in found.boxes]
    parts = zip(found.boxes, found.objectness, rows, strict=True)
    return _join(
        [
            Regions(
                boxes, torch.full_like(row, index), scores, boxes.new_zeros(len(boxes)), row, torch.zeros_like(boxes)
            )
            for index, (boxes, scores, row) in enumerate(parts)
        ]
    )


def sample_anchors(labels: Tensor, per_image: int, positive_fraction: float = 0.5) -> tuple[Tensor, Tensor]:
    """Sample the anchors of the proposals' losses: positive ones up to their share, negative ones for the rest.

    The draw is that of torchvision's BalancedPositiveNegativeSampler (models/detection/_utils.py).

    Args:
        labels: (B, A) floating, 1 positive, 0 negative, -1 in between.
        per_image: anchors sampled per image.
        positive_fraction: largest share of positive ones.

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


def sample_regions(regions: Regions, num_images: int, space: LabelSpace, roi: RoiOptions) -> Tensor:
    """Sample the regions of the loss, as positions (S,) int64: foreground up to its share, background for the rest.

    Args:
        regions: of all images, image after image.
        num_images: B; images without regions are allowed.
        space: label space of the task.
        roi: ``sampled_regions``, ``positive_fraction`` and ``unknown_share``.
    """
    pools: list[tuple[Tensor, int]] = []
    total = roi.sampled_regions
    most = int(total * roi.positive_fraction)
    known, unknown = space.is_known(regions.labels), regions.labels == space.unknown
    shares = [known, unknown] if roi.unknown_share == "separate" else [known | unknown]
    for image in range(num_images):
        here = regions.image_index == image
        foreground = [torch.where(here & share)[0] for share in shares]
        room = max(total - sum(min(len(pool), most) for pool in foreground), 0)
        background = torch.where(here & (regions.labels == space.background))[0]
        pools += [*((pool, most) for pool in foreground), (background, room)]
    chosen = _draw(pools, regions.labels.device)
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=regions.labels.device)


def boxes_by_image(regions: Regions, num_images: int) -> list[Tensor]:
    """Split the boxes by image, (r, 4) each; the regions are stored image after image."""
    return list(regions.boxes.split(torch.bincount(regions.image_index, minlength=num_images).tolist()))


def _draw(pools: Sequence[tuple[Tensor, int]], device: torch.device) -> list[Tensor]:
    """Draw at most ``most`` entries of each pool, at random where it has more."""
    orders = iter(distributed.permutations([len(pool) for pool, most in pools if len(pool) > most], device))
    return [pool[next(orders)[:most]] if len(pool) > most else pool for pool, most in pools]


def _join(parts: Sequence[Regions]) -> Regions:
    names = ("boxes", "image_index", "objectness", "iou", "labels", "goals")
    return Regions(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
