"""Faster R-CNN composed of torchvision's parts, in one forward of our own that hides nothing.

The stock RPN drops the objectness of its proposals and the stock RoI heads hide features and logits; open-world
detection needs all three.

B images, R regions over the batch, D feature dimension, K head rows (known…, unknown, background).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops

from openworld.engines.backbone import STRIDE_PX, build_features
from openworld.engines.base import Decide, LabelUnknowns
from openworld.engines.options import ModelOptions
from openworld.engines.rpn import MIN_SIDE_PX, ProposalNetwork
from openworld.labels import LabelSpace
from openworld.structures import Detections, Regions, Target
from ssl_backbones.nets import ResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class OpenWorldRCNN(nn.Module):
    """The default engine. Box regression is class-agnostic, so that an unknown object gets a refined box too.

    Args:
        labels: label space whose rows the head has.
        body: the ResNet; its weights are loaded by :func:`openworld.engines.weights.load_backbone`.
        options: see :class:`ModelOptions`.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, labels: LabelSpace, body: ResNet, options: ModelOptions) -> None:
        super().__init__()
        self.labels = labels
        self.options = options
        self.features = build_features(body, options)
        self.feature_dim = self.features.feature_dim
        self.rpn = ProposalNetwork(self.features.channels, self.features.anchor_sizes, options.rpn)
        self.coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        self.classify = nn.Linear(self.feature_dim, labels.num_rows)
        self.refine = nn.Linear(self.feature_dim, 4)
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)
        nn.init.normal_(self.refine.weight, std=0.001)
        nn.init.zeros_(self.refine.bias)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    # -- the parts ----------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> OpenWorldRCNN:
        """As usual, but the BatchNorm of frozen stages keeps its statistics."""
        super().train(mode)
        for module in self.features.body.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def normalise(self, images: Sequence[Tensor]) -> ImageList:
        """Images (3, h, w) float32 in [0, 1], RGB → one padded batch with the backbone's own pixel statistics."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height = -(-max(size[0] for size in sizes) // STRIDE_PX) * STRIDE_PX
        width = -(-max(size[1] for size in sizes) // STRIDE_PX) * STRIDE_PX
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[-2], : image.shape[-1]] = (
                image.to(self.pixel_mean.device) - self.pixel_mean
            ) / self.pixel_std
        return ImageList(batch.contiguous(memory_format=torch.channels_last), sizes)

    def _sizes(self, batch: ImageList) -> Tensor:
        """(B, 2) height and width in pixels."""
        return torch.tensor(batch.image_sizes, device=self.pixel_mean.device)

    def autocast(self) -> torch.autocast:
        """bf16 for convolutions and linear layers where the options ask for it."""
        return torch.autocast(
            self.pixel_mean.device.type, dtype=torch.bfloat16, enabled=self.options.precision == "bf16"
        )

    def head(self, levels: dict[str, Tensor], boxes: list[Tensor]) -> tuple[Tensor, ...]:
        """Features (R, D), logits (R, K) and box deltas (R, 4) of the boxes of all images, float32."""
        with self.autocast():
            features_RD = self.features.region_features(levels, boxes)
        features_RD = features_RD.float()
        return features_RD, self.classify(features_RD), self.refine(features_RD)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(
        self, images: Sequence[Tensor], targets: Sequence[Target], label_unknowns: LabelUnknowns
    ) -> tuple[dict[str, Tensor], Regions]:
        """See :class:`openworld.engines.base.Engine`."""
        targets = [target.to(self.pixel_mean.device) for target in targets]
        batch = self.normalise(images)
        with self.autocast():
            levels = self.features(batch.tensors)
        levels = {name: level.float() for name, level in levels.items()}
        proposals, objectness, losses = self.rpn(batch, list(levels.values()), targets)
        with torch.no_grad():
            regions, matched_boxes = self._match(proposals, objectness, targets, add_annotated=True)
            regions = replace(regions, labels=label_unknowns(regions, self._sizes(batch)))
            sampled = self._sample(regions)
            regions, matched_boxes = regions[sampled], matched_boxes[sampled]
        boxes = _by_image(regions.boxes, regions.image_index, len(images))
        features_RD, logits_RK, deltas_R4 = self.head(levels, boxes)
        losses["classification"] = (
            functional.cross_entropy(logits_RK, regions.labels) if len(regions) else logits_RK.sum() * 0.0
        )
        losses["box"] = self._box_loss(regions, deltas_R4, matched_boxes)
        return losses, replace(regions, features=features_RD, logits=logits_RK)

    def _match(
        self,
        proposals: list[Tensor],
        objectness: list[Tensor],
        targets: Sequence[Target],
        *,
        add_annotated: bool,
    ) -> tuple[Regions, Tensor]:
        """Give every proposal the label of the annotated box that it overlaps most, or background.

        Returns:
            the regions of all images, and the annotated box of each, (R, 4); zeros where an image has none.
        """
        parts: list[Regions] = []
        goals: list[Tensor] = []
        for index, (boxes, scores, target) in enumerate(zip(proposals, objectness, targets, strict=True)):
            if add_annotated:
                boxes = torch.cat([boxes, target.boxes])
                scores = torch.cat([scores, scores.new_full((len(target),), torch.inf)])
            labels = torch.full((len(boxes),), self.labels.background, device=boxes.device)
            iou, goal = boxes.new_zeros(len(boxes)), torch.zeros_like(boxes)
            if len(target) and len(boxes):
                iou, best = box_ops.box_iou(boxes, target.boxes).max(dim=1)
                goal = target.boxes[best]
                labels = torch.where(iou >= self.options.roi.foreground_iou, target.labels[best], labels)
            parts.append(Regions(boxes, torch.full_like(labels, index), scores, iou, labels))
            goals.append(goal)
        return _join(parts), torch.cat(goals)

    def _sample(self, regions: Regions) -> Tensor:
        """Indices of the regions in the loss: known and unknown ones up to a share each, background for the rest."""
        chosen: list[Tensor] = []
        total = self.options.roi.sampled_regions
        known_most = int(total * self.options.roi.positive_fraction)
        for image in range(int(regions.image_index.max()) + 1 if len(regions) else 0):
            here = regions.image_index == image
            known = _draw(torch.where(here & (regions.labels < self.labels.unknown))[0], known_most)
            unknown = _draw(torch.where(here & (regions.labels == self.labels.unknown))[0], known_most)
            room = max(total - len(known) - len(unknown), 0)
            background = _draw(torch.where(here & (regions.labels == self.labels.background))[0], room)
            chosen += [known, unknown, background]
        return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=regions.labels.device)

    def _box_loss(self, regions: Regions, deltas_R4: Tensor, matched_boxes: Tensor) -> Tensor:
        """Smooth L1 of known regions, divided by all sampled regions. Auto-labelled unknowns have no true box."""
        known = regions.labels < self.labels.unknown
        if not bool(known.any()):
            return deltas_R4.sum() * 0.0
        goals = self.coder.encode_single(matched_boxes[known], regions.boxes[known])
        return functional.smooth_l1_loss(deltas_R4[known], goals, beta=1 / 9, reduction="sum") / len(regions)

    # -- test ---------------------------------------------------------------------------------------------------------

    def _propose(self, images: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], ImageList]:
        batch = self.normalise(images)
        with self.autocast():
            levels = self.features(batch.tensors)
        levels = {name: level.float() for name, level in levels.items()}
        proposals, objectness, _ = self.rpn(batch, list(levels.values()), None)
        return levels, proposals, objectness, batch

    @torch.no_grad()
    def labelled_regions(
        self, images: Sequence[Tensor], targets: Sequence[Target], label_unknowns: LabelUnknowns
    ) -> Regions:
        """See :class:`openworld.engines.base.Engine`."""
        targets = [target.to(self.pixel_mean.device) for target in targets]
        levels, proposals, objectness, batch = self._propose(images)
        regions, _ = self._match(proposals, objectness, targets, add_annotated=False)
        features_RD, logits_RK, _ = self.head(levels, proposals)
        regions = replace(regions, features=features_RD, logits=logits_RK)
        return replace(regions, labels=label_unknowns(regions, self._sizes(batch)))

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], decide: Decide) -> list[Detections]:
        """See :class:`openworld.engines.base.Engine`.

        A region gives one candidate for every known class and for unknown whose softmax score passes the threshold.
        The decision is made on each candidate, which keeps its score; suppression comes after it, so that no object is
        called unknown twice.
        """
        levels, proposals, _, batch = self._propose(images)
        counts = [len(boxes) for boxes in proposals]
        if not sum(counts):
            return [Detections.empty() for _ in images]
        _, logits_RK, deltas_R4 = self.head(levels, proposals)
        boxes_R4 = self.coder.decode_single(deltas_R4, torch.cat(proposals))
        return [
            self._select(box_ops.clip_boxes_to_image(boxes, size), logits, decide)
            for boxes, logits, size in zip(
                boxes_R4.split(counts), logits_RK.split(counts), batch.image_sizes, strict=True
            )
        ]

    def _select(self, boxes_R4: Tensor, logits_RK: Tensor, decide: Decide) -> Detections:
        """Threshold, decision, suppression and cap for one image."""
        roi = self.options.roi
        usable_R = ((boxes_R4[:, 2:] - boxes_R4[:, :2]) >= MIN_SIDE_PX).all(dim=1)
        scores_RK = logits_RK.softmax(dim=1)[:, : self.labels.background] * usable_R[:, None]
        region, candidate = torch.where(scores_RK > roi.score_threshold)
        boxes, scores = boxes_R4[region], scores_RK[region, candidate]
        labels, energies, known_labels = decide(logits_RK[region], candidate)
        kept = box_ops.batched_nms(boxes, scores, labels, roi.nms_iou)
        if roi.cross_nms_iou < 1:
            side = (labels[kept] == self.labels.unknown).long()
            kept = kept[_suppress_across(boxes[kept], side, roi.cross_nms_iou)]
        return Detections(boxes, scores, labels, energies, known_labels)[kept[: roi.detections_per_image]]

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, labels: LabelSpace) -> None:
        """See :class:`openworld.engines.base.Engine`. New rows start from *unknown*'s: what a new class looked like."""
        old = self.classify
        new = nn.Linear(self.feature_dim, labels.num_rows, device=old.weight.device)
        with torch.no_grad():
            new.weight.copy_(old.weight[self.labels.unknown] + torch.randn_like(new.weight) * 0.01)
            new.bias.copy_(old.bias[self.labels.unknown].expand_as(new.bias))
            for row, target in labels.kept_rows(self.labels):
                new.weight[target] = old.weight[row]
                new.bias[target] = old.bias[row]
        self.classify, self.labels = new, labels


def _draw(index: Tensor, most: int) -> Tensor:
    """At most ``most`` entries, at random."""
    if len(index) <= most:
        return index
    return index[torch.randperm(len(index), device=index.device)[:most]]


def _join(parts: list[Regions]) -> Regions:
    names = ("boxes", "image_index", "objectness", "iou", "labels")
    return Regions(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _by_image(boxes: Tensor, image_index: Tensor, images: int) -> list[Tensor]:
    """Boxes of each image; regions are stored image after image."""
    return list(boxes.split(torch.bincount(image_index, minlength=images).tolist()))


def _suppress_across(boxes_N4: Tensor, side_N: Tensor, iou: float) -> Tensor:
    """Positions kept when a detection gives way to a better one of the other side (known against unknown).

    Args:
        boxes_N4: sorted by falling score.
        side_N: 0 known, 1 unknown.
    """
    if len(boxes_N4) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes_N4.device)
    rival_NN = (box_ops.box_iou(boxes_N4, boxes_N4) > iou) & (side_N[:, None] != side_N[None, :])
    kept = torch.ones(len(boxes_N4), dtype=torch.bool, device=boxes_N4.device)
    for index in range(1, len(boxes_N4)):
        kept[index] = not bool((rival_NN[index, :index] & kept[:index]).any())
    return torch.where(kept)[0]
