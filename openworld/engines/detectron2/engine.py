"""detectron2's Faster R-CNN as an engine of this project, made of the same parts that its own trainers use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from openworld.data.transforms import as_float
from openworld.engines.base import Proposals
from openworld.engines.detectron2.backbone import backbone_stages, load_trunk
from openworld.engines.detectron2.config import add_openworld_config, set_keys
from openworld.engines.detectron2.names import model_keys
from openworld.engines.detectron2.output_layers import OpenWorldOutputLayers, proposals_of
from openworld.engines.options import ModelOptions
from openworld.engines.sampling import boxes_by_image
from openworld.labels import LabelSpace
from openworld.structures import Regions, Target
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD

LOSSES = {"loss_rpn_cls": "objectness", "loss_rpn_loc": "rpn_box"}
"""detectron2's names of the proposals' losses, and the engine's."""


class Detectron2RCNN(nn.Module):
    """The engine ``detectron2``. With the same weights it computes the same as :class:`OpenWorldRCNN`.

    The proposals' losses are detectron2's: divided by ``rpn.sampled_anchors`` per image, also where an image has fewer.

    Args:
        space: label space whose rows the head has.
        arch: the ResNet; :func:`openworld.engines.weights.load_backbone` loads its weights.
        options: see :class:`ModelOptions`.
    """

    def __init__(self, space: LabelSpace, arch: BackboneOptions, options: ModelOptions) -> None:
        super().__init__()
        self.options = options
        cfg = get_cfg()
        add_openworld_config(cfg)
        set_keys(cfg, {**model_keys(options, arch, space), "MODEL.DEVICE": "cpu"})
        self.model = build_model(cfg)
        self.model.roi_heads.box_predictor.method = None  # the detector of a run has its own
        for name, values in (("pixel_mean", IMAGENET_MEAN), ("pixel_std", IMAGENET_STD)):
            self.model.register_buffer(name, torch.tensor(values).view(3, 1, 1))  # saved, unlike detectron2's

    # -- the parts ----------------------------------------------------------------------------------------------------

    @property
    def predictor(self) -> OpenWorldOutputLayers:
        """The two last layers."""
        predictor: OpenWorldOutputLayers = self.model.roi_heads.box_predictor
        return predictor

    @property
    def space(self) -> LabelSpace:
        """Label space of the current task."""
        return self.predictor.space

    @property
    def feature_dim(self) -> int:
        """Width of the regions' features."""
        return self.predictor.feature_dim

    @property
    def pixel_mean(self) -> Tensor:
        """(3, 1, 1) float32, RGB in [0, 1]."""
        mean: Tensor = self.model.pixel_mean
        return mean

    @property
    def pixel_std(self) -> Tensor:
        """(3, 1, 1) float32, RGB in [0, 1]."""
        std: Tensor = self.model.pixel_std
        return std

    @property
    def backbone(self) -> nn.Module:
        """See :class:`openworld.engines.base.Engine`: with C4 the trunk and res5."""
        if self.options.neck == "c4":
            return nn.ModuleList([self.model.backbone, self.model.roi_heads.res5])
        trunk: nn.Module = self.model.backbone.bottom_up
        return trunk

    def parts(self) -> list[tuple[str, nn.Module]]:
        """See :class:`openworld.engines.base.Engine`."""
        backbone, heads = self.model.backbone, self.model.roi_heads
        trunk = (
            [("trunk", backbone)] if self.options.neck == "c4" else [("FPN", backbone), ("trunk", backbone.bottom_up)]
        )
        head = [heads.pooler, heads.res5] if self.options.neck == "c4" else [heads.box_pooler, heads.box_head]
        box_head = [*head, heads.box_predictor]
        return [*trunk, ("RPN", self.model.proposal_generator), *(("RoI head", module) for module in box_head)]

    def normalise(self, images: Sequence[Tensor]) -> ImageList:
        """Normalise images (3, h, w), RGB, uint8 or float32 in [0, 1], by the pixel statistics; pad to one batch."""
        moved = [image.to(self.pixel_mean.device, non_blocking=True) for image in images]
        batch = self.model.preprocess_image([{"image": as_float(image)} for image in moved])
        batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def autocast(self) -> torch.autocast:
        """Return the autocast to bf16 for convolutions and linear layers; it acts where the options ask for it."""
        enabled = self.options.precision == "bf16"
        return torch.autocast(self.pixel_mean.device.type, dtype=torch.bfloat16, enabled=enabled)

    def levels_of(self, pixels: Tensor) -> dict[str, Tensor]:
        """See :class:`openworld.engines.base.Engine`."""
        with self.autocast():
            levels = self.model.backbone(pixels)
        return {name: level.float() for name, level in levels.items()}

    def _instances(self, targets: Sequence[Target], batch: ImageList) -> list[Instances]:
        return [
            Instances(size, gt_boxes=Boxes(target.boxes), gt_classes=target.labels)
            for size, target in zip(batch.image_sizes, targets, strict=True)
        ]

    # -- the two stages -----------------------------------------------------------------------------------------------

    def propose(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """See :class:`openworld.engines.base.Engine`."""
        batch = self.normalise(images)
        levels = self.levels_of(batch.tensor)
        annotated = None if targets is None else self._instances(targets, batch)
        with EventStorage():  # detectron2's parts log what they do; the run has a log of its own
            instances, losses = self.model.proposal_generator(batch, levels, annotated)
        return replace(proposals_of(levels, instances), pixels=batch.tensor), {
            LOSSES[name]: loss for name, loss in losses.items()
        }

    def box_head(self, found: Proposals, regions: Regions) -> Regions:
        """See :class:`openworld.engines.base.Engine`."""
        boxes = [Boxes(each) for each in boxes_by_image(regions, len(found.image_sizes))]
        with self.autocast():
            features = self.model.roi_heads.region_features(found.levels, boxes)
        return self.predictor.predicted(regions, self.predictor(features))

    def refine(self, regions: Regions) -> Tensor:
        """See :class:`openworld.engines.base.Engine`."""
        return self.predictor.refine(regions)

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, space: LabelSpace) -> None:
        """See :class:`openworld.engines.base.Engine`."""
        self.predictor.grow(space)
        self.model.roi_heads.num_classes = space.background

    # -- weights ------------------------------------------------------------------------------------------------------

    def load_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """See :class:`openworld.engines.base.Engine`."""
        load_trunk(self.model, tensors)

    def backbone_stages(self, image: Tensor) -> dict[str, Tensor]:
        """See :class:`openworld.engines.base.Engine`."""
        return backbone_stages(self.model, image)
