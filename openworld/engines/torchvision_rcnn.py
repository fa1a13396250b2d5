"""Faster R-CNN composed of torchvision's parts, whose own forward pass exposes every intermediate result.

The stock RPN drops the objectness of its proposals and the stock RoI heads hide features and logits; open-world
detection needs all three.

B images, R regions over the batch, D feature dimension, K head rows (see :mod:`openworld.labels`), C sets of box
deltas: 1, or one a row before background.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.image_list import ImageList

from openworld.data.transforms import as_float
from openworld.engines.backbone import FpnFeatures, anchor_sizes, build_features
from openworld.engines.base import Proposals
from openworld.engines.head_rows import grown_classifier, grown_deltas
from openworld.engines.options import ModelOptions
from openworld.engines.roi_losses import BOX_WEIGHTS
from openworld.engines.rpn import ProposalNetwork
from openworld.engines.sampling import boxes_by_image
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.runtime import distributed
from openworld.structures import Regions, Target
from ssl_backbones.backbones.base import Backbone

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class OpenWorldRCNN(nn.Module):
    """The default engine. Its box regression is class-agnostic, so that an unknown object gets a refined box too.

    Args:
        space: label space whose rows the head has.
        body: the backbone; its weights are loaded by :func:`openworld.engines.weights.load_backbone`.
        options: see :class:`ModelOptions`.

    Raises:
        ConfigError: the label space has another layout than ``options.layout``.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, space: LabelSpace, body: Backbone, options: ModelOptions) -> None:
        super().__init__()
        if space.layout != options.layout:
            raise ConfigError(
                f"model.layout is {options.layout!r} and the label space has the {space.layout} layout",
                remedy="give the label space the layout of model.layout",
            )
        self.space = space
        self.options = options
        self.features = build_features(body, options)
        self.feature_dim = self.features.feature_dim
        sizes = anchor_sizes(options.neck, options.rpn.anchor_sizes)
        self.rpn = ProposalNetwork(self.features.channels, sizes, self.features.grid.strides_px, options.rpn)
        self.coder = BoxCoder(weights=BOX_WEIGHTS)
        self.cls_score = nn.Linear(self.feature_dim, space.num_rows)
        self.bbox_pred = nn.Linear(self.feature_dim, 4 * (space.background if self.per_class else 1))
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.bbox_pred.bias)
        self.register_buffer("pixel_mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("pixel_std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    # -- the parts ----------------------------------------------------------------------------------------------------

    @property
    def backbone(self) -> Backbone:
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
        box_head = [features.roi_align, features.head, self.cls_score, self.bbox_pred]
        return [("trunk", features), *pyramid, ("RPN", self.rpn), *(("RoI head", module) for module in box_head)]

    @property
    def per_class(self) -> bool:
        """Whether each row before background has its own box deltas."""
        return self.options.roi.box_regression == "per_class"

    def train(self, mode: bool = True) -> OpenWorldRCNN:
        """Set the mode as usual, but the BatchNorm of frozen stages keeps its statistics."""
        super().train(mode)
        for module in self.features.body.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self

    def normalise(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise images (3, h, w), RGB, uint8 or float32 in [0, 1], by the pixel statistics; pad to one batch."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        multiple = self.features.grid.padding_px
        largest = [max(size[0] for size in sizes), max(size[1] for size in sizes)]
        if self.training:  # the padding of the joined batch, which the anchors and the edges of the features see
            largest = distributed.max_over_ranks(largest)
        height, width = (math.ceil(side / multiple) * multiple for side in largest)
        batch = self.pixel_mean.new_zeros(len(images), 3, height, width)
        for row, image in zip(batch, images, strict=True):
            pixels = as_float(image.to(self.pixel_mean.device, non_blocking=True))
            row[:, : image.shape[-2], : image.shape[-1]] = (pixels - self.pixel_mean) / self.pixel_std
        return ImageList(batch.contiguous(memory_format=torch.channels_last), sizes)

    def autocast(self) -> torch.autocast:
        """Return the autocast to bf16 for convolutions and linear layers; it acts where the options ask for it."""
        return torch.autocast(
            self.pixel_mean.device.type, dtype=torch.bfloat16, enabled=self.options.precision == "bf16"
        )

    # -- the two stages -----------------------------------------------------------------------------------------------

    def propose(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """See :class:`openworld.engines.base.Engine`."""
        batch = self.normalise(images)
        levels = self.levels_of(batch.tensors)
        with self.autocast():
            boxes, objectness, losses = self.rpn(batch, list(levels.values()), targets)
        return Proposals(levels, boxes, objectness, batch.image_sizes, batch.tensors), losses

    def levels_of(self, pixels: Tensor) -> dict[str, Tensor]:
        """See :class:`openworld.engines.base.Engine`."""
        with self.autocast():
            levels: dict[str, Tensor] = self.features(pixels)
        return levels

    def box_head(self, found: Proposals, regions: Regions) -> Regions:
        """See :class:`openworld.engines.base.Engine`."""
        boxes = boxes_by_image(regions, len(found.image_sizes))
        with self.autocast():
            features_RD = self.features.region_features(dict(found.levels), boxes)
        features_RD = features_RD.float()
        return replace(
            regions, features=features_RD, logits=self.cls_score(features_RD), deltas=self.bbox_pred(features_RD)
        )

    def refine(self, regions: Regions) -> Tensor:
        """See :class:`openworld.engines.base.Engine`."""
        assert regions.deltas is not None
        boxes_RC4: Tensor = self.coder.decode_single(regions.deltas, regions.boxes)
        return boxes_RC4.reshape(len(regions), -1, 4)

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, space: LabelSpace) -> None:
        """See :class:`openworld.engines.base.Engine`.

        In the growing layout new rows start from that of *unknown*, as which a new class was seen so far. In the fixed
        layout every row exists already, and nothing moves.
        """
        space.kept_rows(self.space)  # raises where the spaces do not belong together
        if space.num_rows != self.space.num_rows:
            self.cls_score = grown_classifier(self.cls_score, self.space, space)
            if self.per_class:
                self.bbox_pred = grown_deltas(self.bbox_pred, self.space, space)
        self.space = space
