"""Faster R-CNN composed of torchvision's parts, in one forward of our own that hides nothing.

The stock RPN drops the objectness of its proposals and the stock RoI heads hide features and logits; open-world
detection needs all three.

B images, R regions over the batch, D feature dimension, K head rows (see :mod:`openworld.labels`), C sets of box
deltas: 1, or one a row before background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as box_ops

from openworld.data.transforms import as_float
from openworld.engines.backbone import FpnFeatures, anchor_form, build_features
from openworld.engines.base import Decide, LabelUnknowns
from openworld.engines.head_rows import grown_classifier, grown_deltas
from openworld.engines.options import ModelOptions
from openworld.engines.roi_inference import detections_of_image
from openworld.engines.roi_losses import BOX_WEIGHTS, box_head_losses
from openworld.engines.rpn import ProposalNetwork
from openworld.engines.sampling import boxes_by_image, match_regions, training_regions
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.runtime import distributed
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
        anchor_sizes, strides_px, _ = anchor_form(options.neck, options.rpn.anchor_sizes)
        self.rpn = ProposalNetwork(self.features.channels, anchor_sizes, strides_px, options.rpn)
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

    def load_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`openworld.engines.base.Engine`."""
        body = self.features.body
        body.load_state_dict({name: tensors[name] for name in body.state_dict() if name in tensors})

    def backbone_stages(self, image: Tensor) -> dict[str, Tensor]:
        """See :class:`openworld.engines.base.Engine`."""
        return self.features.body.forward_stages(self.normalise([image]).tensors)

    def parts(self) -> list[tuple[str, nn.Module]]:
        """See :class:`openworld.engines.base.Engine`."""
        features = self.features
        pyramid = [("FPN", features.fpn)] if isinstance(features, FpnFeatures) else []
        head = features.head if isinstance(features, FpnFeatures) else features.body.get_submodule("layer4")
        box_head = [features.roi_align, head, self.classify, self.refine]
        return [("trunk", features), *pyramid, ("RPN", self.rpn), *(("RoI head", module) for module in box_head)]

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
        """Images (3, h, w), RGB, uint8 or float32 in [0, 1] → one padded batch with the backbone's pixel statistics."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        multiple = self.features.padding_px
        largest = [max(size[0] for size in sizes), max(size[1] for size in sizes)]
        if self.training:  # the padding of the joined batch, which the anchors and the edges of the features see
            largest = distributed.max_over_ranks(largest)
        height, width = (math.ceil(side / multiple) * multiple for side in largest)
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images, strict=True):
            pixels = as_float(image.to(self.pixel_mean.device, non_blocking=True))
            row[:, : image.shape[-2], : image.shape[-1]] = (pixels - self.pixel_mean) / self.pixel_std
        return ImageList(batch.contiguous(memory_format=torch.channels_last), sizes)

    def _sizes(self, batch: ImageList) -> Tensor:
        """(B, 2) height and width in pixels."""
        return torch.tensor(batch.image_sizes).to(self.pixel_mean.device, non_blocking=True)

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
            proposals, objectness, losses = self.rpn(batch, list(levels.values()), targets)
        roi = self.options.roi
        regions, matched_boxes = training_regions(
            proposals, objectness, targets, self._sizes(batch), self.labels, roi, label_unknowns, among
        )
        features_RD, logits_RK, deltas_RC = self.head(levels, boxes_by_image(regions, len(images)))
        losses["classification"], losses["box"] = box_head_losses(
            logits_RK, deltas_RC, regions, matched_boxes, self.labels, roi
        )
        return losses, replace(regions, features=features_RD, logits=logits_RK)

    # -- test ---------------------------------------------------------------------------------------------------------

    def _propose(self, images: Sequence[Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], ImageList]:
        batch = self.normalise(images)
        with self.autocast():
            levels = self.features(batch.tensors)
            proposals, objectness, _ = self.rpn(batch, list(levels.values()), None)
        return levels, proposals, objectness, batch

    @torch.no_grad()
    def labelled_regions(
        self, images: Sequence[Tensor], targets: Sequence[Target], label_unknowns: LabelUnknowns
    ) -> Regions:
        """See :class:`openworld.engines.base.Engine`."""
        targets = [target.to(self.pixel_mean.device) for target in targets]
        levels, proposals, objectness, batch = self._propose(images)
        iou = self.options.roi.foreground_iou
        regions, _ = match_regions(proposals, objectness, targets, self.labels, foreground_iou=iou, add_annotated=False)
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
            detections_of_image(
                box_ops.clip_boxes_to_image(boxes, size),
                logits,
                self.labels,
                self.options.roi,
                decide,
                nms_after_decision=nms_after_decision,
            )[0]
            for boxes, logits, size in zip(
                boxes_RC.split(counts), logits_RK.split(counts), batch.image_sizes, strict=True
            )
        ]

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, labels: LabelSpace) -> None:
        """See :class:`openworld.engines.base.Engine`.

        In the growing layout new rows start from *unknown*'s: what a new class looked like. In the fixed layout every
        row is there already, and nothing moves.
        """
        labels.kept_rows(self.labels)  # raises where the spaces do not belong together
        if labels.num_rows != self.labels.num_rows:
            self.classify = grown_classifier(self.classify, self.labels, labels)
            if self.per_class:
                self.refine = grown_deltas(self.refine, self.labels, labels)
        self.labels = labels
