"""Box heads for detectron2's registry: C4 (ORE's own) and FPN, with unknowns labelled among their proposals.

B images, R regions over the batch, D feature dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from openworld.engines.detectron2.backbone import stage
from openworld.engines.detectron2.output_layers import OpenWorldOutputLayers, instances_of, proposals_of
from openworld.engines.sampling import match_regions, training_regions
from openworld.structures import Target


class OpenWorldHeads:
    """The differences of both kinds of heads from detectron2's.

    Args:
        box_predictor: its options say how regions are matched and sampled. detectron2's own arguments for that
            (``num_classes``, ``batch_size_per_image``, …) need not be given, and are ignored.
        parts: the other arguments of detectron2's heads.
    """

    box_predictor: OpenWorldOutputLayers

    @configurable
    def __init__(self, *, box_predictor: OpenWorldOutputLayers, **parts: Any) -> None:
        roi = box_predictor.roi
        parts |= {
            "num_classes": box_predictor.num_classes,
            "batch_size_per_image": roi.sampled_regions,
            "positive_fraction": roi.positive_fraction,
            "proposal_matcher": Matcher([roi.foreground_iou], [0, 1], allow_low_quality_matches=False),
            "proposal_append_gt": roi.append_annotated,
        }
        super().__init__(box_predictor=box_predictor, **parts)  # type: ignore[call-arg]

    def label_and_sample_proposals(self, proposals: list[Instances], targets: list[Instances]) -> list[Instances]:
        """Match the proposals, let the method relabel some, and sample those of the losses.

        Returns:
            for each image the sampled proposals with ``proposal_boxes``, ``objectness_logits``, ``proposal_iou`` (the
            largest IoU with an annotated box), ``gt_classes`` (head rows) and ``gt_boxes`` (zeros where the image has
            none).
        """
        predictor = self.box_predictor
        assert predictor.method is not None
        space = predictor.space
        regions = training_regions(
            proposals_of({}, proposals), targets_of(targets), predictor.method, space, predictor.roi
        )
        sampled = [instances_of(regions[regions.image_index == number], each) for number, each in enumerate(proposals)]
        foreground = float((regions.labels != space.background).sum())
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", foreground / len(sampled))
        storage.put_scalar("roi_head/num_bg_samples", (len(regions) - foreground) / len(sampled))
        return sampled

    @torch.no_grad()
    def calibration_samples(
        self, features: Mapping[str, Tensor], proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> dict[str, Tensor]:
        """Let the method collect its calibration samples from all proposals, matched to the targets."""
        predictor = self.box_predictor
        assert predictor.method is not None
        found, iou = proposals_of({}, proposals), predictor.roi.foreground_iou
        regions = match_regions(found, targets_of(targets), predictor.space, foreground_iou=iou, add_annotated=False)
        predictions = predictor(self.region_features(features, [each.proposal_boxes for each in proposals]))
        return predictor.method.collect(predictor.predicted(regions, predictions), found.sizes)

    def region_features(self, features: Mapping[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Compute the predictor's input, (R, D), for the boxes of all images."""
        raise NotImplementedError


def targets_of(instances: Sequence[Instances]) -> list[Target]:
    """Return the annotated boxes of each image; ``gt_classes`` are head rows."""
    return [Target(each.gt_boxes.tensor, each.gt_classes) for each in instances]


@ROI_HEADS_REGISTRY.register()
class OpenWorldRes5ROIHeads(OpenWorldHeads, Res5ROIHeads):
    """C4: res5 of every region, averaged over space (detectron2's ``Res5ROIHeads``, ORE's detector)."""

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments out of a configuration."""
        arguments: dict[str, Any] = super().from_config(cfg, input_shape)
        channels = arguments["res5"][-1].out_channels
        predictor = OpenWorldOutputLayers(cfg, ShapeSpec(channels=channels, height=1, width=1))
        return {**arguments, "box_predictor": predictor}

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """res5 of any ResNet, frozen if ``MODEL.BACKBONE.FREEZE_AT`` is 5."""
        blocks = stage(cfg, 5)
        if cfg.MODEL.BACKBONE.FREEZE_AT >= 5:
            for block in blocks:
                block.freeze()
        return nn.Sequential(*blocks), blocks[-1].out_channels

    def region_features(self, features: Mapping[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """See :meth:`OpenWorldHeads.region_features`."""
        maps: Tensor = self._shared_roi_transform([features[name] for name in self.in_features], boxes)
        return maps.mean(dim=(2, 3))


@ROI_HEADS_REGISTRY.register()
class OpenWorldStandardROIHeads(OpenWorldHeads, StandardROIHeads):
    """FPN: regions from the level of their size, then ``MODEL.ROI_BOX_HEAD`` (detectron2's ``StandardROIHeads``)."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Pooler, box head and predictor."""
        parts: dict[str, Any] = super()._init_box_head(cfg, input_shape)
        parts["box_pooler"].canonical_box_size = cfg.OPENWORLD.ROI.CANONICAL_SIZE_PX
        return {**parts, "box_predictor": OpenWorldOutputLayers(cfg, parts["box_head"].output_shape)}

    def region_features(self, features: Mapping[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """See :meth:`OpenWorldHeads.region_features`."""
        regions: Tensor = self.box_head(self.box_pooler([features[name] for name in self.box_in_features], boxes))
        return regions
