"""Faster R-CNN composed of torchvision's parts, in one forward of our own that hides nothing.

The stock RPN drops the objectness of its proposals and the stock RoI heads hide features and logits; open-world
detection needs all three.

B images, R regions over the batch, D feature dimension, K head rows (see :mod:`openworld.labels`), C sets of box
deltas: 1, or one a row before background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops

from openworld.engines.backbone import build_features
from openworld.engines.base import Decide, LabelUnknowns
from openworld.engines.options import ModelOptions
from openworld.engines.roi_inference import candidates, suppress
from openworld.engines.roi_losses import BOX_WEIGHTS, box_loss, classification_loss, masked_logits
from openworld.engines.rpn import ProposalNetwork
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.structures import Detections, Regions, Target
from ssl_backbones.nets import ResNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class OpenWorldRCNN(nn.Module):
    """The default engine. Its box regression is class-agnostic, so that an unknown object gets a refined box too.

    Args:
        labels: label space whose rows the head has.
        body: the ResNet; its weights are loaded by :func:`openworld.engines.weights.load_backbone`.
        options: see :class:`ModelOptions`.

    Raises:
        ConfigError: the label space has another layout than ``options.head``.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, labels: LabelSpace, body: ResNet, options: ModelOptions) -> None:
        super().__init__()
        if labels.layout != options.head:
            raise ConfigError(
                f"model.head is {options.head!r} and the label space has the {labels.layout} layout",
                remedy="give the label space the layout of model.head",
            )
        self.labels = labels
        self.options = options
        self.features = build_features(body, options)
        self.feature_dim = self.features.feature_dim
        self.rpn = ProposalNetwork(
            self.features.channels, self.features.anchor_sizes, self.features.strides_px, options.rpn
        )
        self.coder = BoxCoder(weights=BOX_WEIGHTS)
        self.classify = nn.Linear(self.feature_dim, labels.num_rows)
        self.refine = nn.Linear(self.feature_dim, 4 * (labels.background if self.per_class else 1))
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)
        nn.init.normal_(self.refine.weight, std=0.001)
        nn.init.zeros_(self.refine.bias)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    # -- the parts ----------------------------------------------------------------------------------------------------

    @property
    def backbone(self) -> ResNet:
        """See :class:`openworld.engines.base.Engine`."""
        return self.features.body

    @property
    def per_class(self) -> bool:
        """Each row before background has box deltas of its own."""
        return self.options.roi.box_regression == "per_class"

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
        multiple = self.features.padding_px
        height = -(-max(size[0] for size in sizes) // multiple) * multiple
        width = -(-max(size[1] for size in sizes) // multiple) * multiple
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
        """Features (R, D), logits (R, K) and box deltas (R, 4·C) of the boxes of all images, float32."""
        with self.autocast():
            features_RD = self.features.region_features(levels, boxes)
        features_RD = features_RD.float()
        return features_RD, self.classify(features_RD), self.refine(features_RD)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        label_unknowns: LabelUnknowns,
        among: Literal["all_proposals", "sampled"] = "all_proposals",
    ) -> tuple[dict[str, Tensor], Regions]:
        """See :class:`openworld.engines.base.Engine`."""
        targets = [target.to(self.pixel_mean.device) for target in targets]
        batch = self.normalise(images)
        with self.autocast():
            levels = self.features(batch.tensors)
        levels = {name: level.float() for name, level in levels.items()}
        proposals, objectness, losses = self.rpn(batch, list(levels.values()), targets)
        with torch.no_grad():
            roi = self.options.roi
            regions, matched_boxes = self._match(proposals, objectness, targets, add_annotated=roi.append_annotated)
            if among == "all_proposals":
                regions = replace(regions, labels=label_unknowns(regions, self._sizes(batch)))
            sampled = self._sample(regions)
            regions, matched_boxes = regions[sampled], matched_boxes[sampled]
            if among == "sampled":
                regions = replace(regions, labels=label_unknowns(regions, self._sizes(batch)))
        boxes = _by_image(regions.boxes, regions.image_index, len(images))
        features_RD, logits_RK, deltas_RC = self.head(levels, boxes)
        masked = self.labels.future_rows if roi.mask_future != "never" else ()
        losses["classification"] = classification_loss(logits_RK, regions.labels, masked)
        regressed = self.labels.is_known(regions.labels)
        if roi.unknown_box_loss == "included":
            regressed = regressed | (regions.labels == self.labels.unknown)
        losses["box"] = box_loss(
            deltas_RC, regions.boxes, matched_boxes, regions.labels, regressed, beta=roi.smooth_l1_beta
        )
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
        """Indices of the regions in the loss: foreground up to its share or shares, background for the rest."""
        chosen: list[Tensor] = []
        total = self.options.roi.sampled_regions
        most = int(total * self.options.roi.positive_fraction)
        known, unknown = self.labels.is_known(regions.labels), regions.labels == self.labels.unknown
        shares = [known, unknown] if self.options.roi.unknown_share == "separate" else [known | unknown]
        for image in range(int(regions.image_index.max()) + 1 if len(regions) else 0):
            here = regions.image_index == image
            foreground = [_draw(torch.where(here & share)[0], most) for share in shares]
            room = max(total - sum(len(part) for part in foreground), 0)
            background = _draw(torch.where(here & (regions.labels == self.labels.background))[0], room)
            chosen += [*foreground, background]
        return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.int64, device=regions.labels.device)

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
    def detect(self, images: Sequence[Tensor], decide: Decide, *, nms_after_decision: bool = True) -> list[Detections]:
        """See :class:`openworld.engines.base.Engine`.

        A region gives one candidate for every known class and for unknown whose softmax score passes the threshold.
        The decision is made on each candidate; suppression and the cap come after it, so that no object is called
        unknown twice, or before it, as in the reference code.
        """
        levels, proposals, _, batch = self._propose(images)
        counts = [len(boxes) for boxes in proposals]
        if not sum(counts):
            return [Detections.empty() for _ in images]
        _, logits_RK, deltas_RC = self.head(levels, proposals)
        boxes_RC = self.coder.decode_single(deltas_RC, torch.cat(proposals))
        return [
            self._select(box_ops.clip_boxes_to_image(boxes, size), logits, decide, nms_after_decision)
            for boxes, logits, size in zip(
                boxes_RC.split(counts), logits_RK.split(counts), batch.image_sizes, strict=True
            )
        ]

    def _select(self, boxes_RC: Tensor, logits_RK: Tensor, decide: Decide, nms_after_decision: bool) -> Detections:
        """Threshold, decision, suppression and cap for one image; its boxes are (R, 4·C), clipped.

        A class that no task has taught is never detected.
        """
        roi = self.options.roi
        masked = self.labels.future_rows if roi.mask_future == "always" else ()
        scores_RK = masked_logits(logits_RK, masked).softmax(dim=1)
        region, candidate, boxes = candidates(
            boxes_RC.reshape(len(boxes_RC), -1, 4),
            scores_RK,
            self.labels.detected_rows,
            score_threshold=roi.score_threshold,
            min_side_px=roi.min_side_px,
        )
        scores = scores_RK[region, candidate]
        if not nms_after_decision:
            kept = self._suppress(boxes, scores, candidate)
            region, candidate, boxes, scores = region[kept], candidate[kept], boxes[kept], scores[kept]
        decision = decide(logits_RK[region], candidate, scores)
        found = Detections(boxes, decision.scores, decision.labels, decision.energies, decision.known_labels)
        found = found[decision.kept]
        if nms_after_decision:
            return found[self._suppress(found.boxes, found.scores, found.labels)]
        return found[found.scores.argsort(descending=True, stable=True)]  # the decision may change scores

    def _suppress(self, boxes_N4: Tensor, scores_N: Tensor, labels_N: Tensor) -> Tensor:
        """Positions of the detections of one image that suppression and the cap leave, by falling score."""
        roi = self.options.roi
        return suppress(
            boxes_N4,
            scores_N,
            labels_N,
            unknown=self.labels.unknown,
            nms_iou=roi.nms_iou,
            cross_nms_iou=roi.cross_nms_iou,
            most=roi.detections_per_image,
        )

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, labels: LabelSpace) -> None:
        """See :class:`openworld.engines.base.Engine`.

        In the growing layout new rows start from *unknown*'s: what a new class looked like. In the fixed layout every
        row is there already, and nothing moves.
        """
        kept = labels.kept_rows(self.labels)
        if labels.num_rows == self.labels.num_rows:
            self.labels = labels
            return
        old = self.classify
        new = nn.Linear(self.feature_dim, labels.num_rows, device=old.weight.device)
        with torch.no_grad():
            new.weight.copy_(old.weight[self.labels.unknown] + torch.randn_like(new.weight) * 0.01)
            new.bias.copy_(old.bias[self.labels.unknown].expand_as(new.bias))
            for row, target in kept:
                new.weight[target] = old.weight[row]
                new.bias[target] = old.bias[row]
        if self.per_class:
            self.refine = self._grown_refine(labels)
        self.classify, self.labels = new, labels

    @torch.no_grad()
    def _grown_refine(self, labels: LabelSpace) -> nn.Linear:
        """Box deltas with the rows of a later task; those of a new class start from *unknown*'s."""
        old = self.refine
        source = [self.labels.unknown] * labels.background
        for row, target in labels.kept_rows(self.labels):
            if target < labels.background:
                source[target] = row
        new = nn.Linear(self.feature_dim, 4 * labels.background, device=old.weight.device)
        new.weight.copy_(old.weight.reshape(-1, 4, self.feature_dim)[source].flatten(0, 1))
        new.bias.copy_(old.bias.reshape(-1, 4)[source].flatten())
        return new


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
