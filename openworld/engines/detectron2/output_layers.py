"""The two last layers of the box head in detectron2, with an open-world method beside them.

R regions over the batch, D feature dimension, K head rows, C sets of box deltas: 1, or one per row before background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from openworld.engines.base import Proposals
from openworld.engines.detectron2.config import build_method, check_supported, label_space, roi_options
from openworld.engines.head_rows import grown_classifier, grown_deltas
from openworld.engines.options import RoiOptions
from openworld.engines.roi_inference import detections_of_batch
from openworld.engines.roi_losses import BOX_WEIGHTS, box_head_losses
from openworld.engines.sampling import unmatched_regions
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.runtime import distributed
from openworld.structures import Regions

Predictions = tuple[Tensor, Tensor, Tensor]
"""Logits (R, K), box deltas (R, 4·C) and features (R, D), float32."""

EXTRA = "extra_"
"""Prefix of a method's extra columns in detected ``Instances``."""


def proposals_of(levels: Mapping[str, Tensor], instances: Sequence[Instances]) -> Proposals:
    """Convert detectron2's proposals to those of an engine."""
    return Proposals(
        levels,
        [each.proposal_boxes.tensor for each in instances],
        [each.objectness_logits for each in instances],
        [each.image_size for each in instances],
    )


def instances_of(regions: Regions, proposals: Instances) -> Instances:
    """Convert the sampled regions of one image to detectron2's instances; the inverse of :func:`regions_of`."""
    return Instances(
        proposals.image_size,
        proposal_boxes=Boxes(regions.boxes),
        objectness_logits=regions.objectness,
        proposal_iou=regions.iou,
        gt_classes=regions.labels,
        gt_boxes=Boxes(regions.goals),
    )


def regions_of(proposals: Sequence[Instances]) -> Regions:
    """Convert the sampled proposals of all images to regions."""
    boxes = [each.proposal_boxes.tensor for each in proposals]
    index = [torch.full((len(each),), number, device=each.device) for number, each in enumerate(boxes)]
    return Regions(
        boxes=torch.cat(boxes),
        image_index=torch.cat(index),
        objectness=torch.cat([each.objectness_logits for each in proposals]),
        iou=torch.cat([each.proposal_iou for each in proposals]),
        labels=torch.cat([each.gt_classes for each in proposals]),
        goals=torch.cat([each.gt_boxes.tensor for each in proposals]),
    )


class OpenWorldOutputLayers(FastRCNNOutputLayers):
    """Classification and box deltas with the rows of a label space.

    detectron2's checkpoints save the module ``method`` with the rest. Predictions carry the features as a third part.
    Detected ``Instances`` have further fields: ``known_classes``, the best known class whatever the decision, and each
    extra column of the method as ``extra_<name>``.

    Args:
        input_shape: of the features that enter.
        space: label space of the current task; ``num_classes`` is its row of background.
        roi: options of the box head. They also hold the thresholds and the cap at test, which are not attributes of
            detectron2's layer.
        method: None where the caller holds the method.
        first_step: number of steps that the task was trained before; it times the prototypes.
        replay: this training fine-tunes on exemplars, see ``clustering.during_replay``.

    Buffers:
        num_known: () int64, classes known when the weights were saved.
    """

    num_known: Tensor
    cls_score: nn.Linear
    bbox_pred: nn.Linear

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        space: LabelSpace,
        roi: RoiOptions,
        method: OpenWorldMethod | None = None,
        first_step: int = 0,
        replay: bool = False,
    ) -> None:
        super().__init__(
            input_shape,
            box2box_transform=Box2BoxTransform(weights=BOX_WEIGHTS),
            num_classes=space.background,
            cls_agnostic_bbox_reg=roi.box_regression == "agnostic",
            smooth_l1_beta=roi.smooth_l1_beta,
        )
        self.space = space
        self.roi = roi
        self.method = method
        self.first_step = first_step
        self.replay = replay
        self.register_buffer("num_known", torch.tensor(space.num_known))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Return the arguments of the constructor for a configuration."""
        check_supported(cfg)
        space = label_space(cfg)
        if cfg.OPENWORLD.STAGE not in ("train", "replay"):
            raise ConfigError(f"OPENWORLD.STAGE is {cfg.OPENWORLD.STAGE!r}", remedy="choose train or replay")
        return {
            "input_shape": input_shape,
            "space": space,
            "roi": roi_options(cfg),
            "method": build_method(
                cfg, space, input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
            ),
            "first_step": cfg.OPENWORLD.FIRST_STEP,
            "replay": cfg.OPENWORLD.STAGE == "replay",
        }

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.cls_score.in_features)

    def forward(self, x: Tensor) -> Predictions:
        """Predict from features (R, D) or (R, C, h, w), in float32 under autocast too, as energies are compared."""
        with torch.autocast(x.device.type, enabled=False):
            features_RD = x.flatten(1).float()
            return self.cls_score(features_RD), self.bbox_pred(features_RD), features_RD

    def predicted(self, regions: Regions, predictions: Predictions) -> Regions:
        """Return the regions with the predictions of :meth:`forward`."""
        logits_RK, deltas_RC, features_RD = predictions
        return replace(regions, features=features_RD, logits=logits_RK, deltas=deltas_RC)

    def refine(self, regions: Regions) -> Tensor:
        """Move the boxes by their deltas: (R, C, 4) pixels, not clipped."""
        boxes: Tensor = self.box2box_transform.apply_deltas(regions.deltas, regions.boxes)
        return boxes.reshape(len(regions), -1, 4)

    # -- training -----------------------------------------------------------------------------------------------------

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """Compute ``loss_cls``, ``loss_box_reg`` and the method's ``loss_<name>`` of the sampled proposals."""
        assert self.method is not None
        regions = self.predicted(regions_of(proposals), predictions)
        box = box_head_losses(regions, self.space, self.roi, self.method.unused_rows)
        storage, step = get_event_storage(), self.first_step + get_event_storage().iter
        with torch.autocast(regions.boxes.device.type, enabled=False):
            own = self.method.losses(regions, step, replay=self.replay, ranks=distributed)
        _log_classification_stats(regions.logits, regions.labels)
        num_unknown = float((regions.labels == self.space.unknown).sum())
        storage.put_scalar("openworld/num_unknown_samples", num_unknown / len(proposals))
        for name, value in self.method.meters().items():
            storage.put_scalar(f"openworld/{name}", value)
        return {
            "loss_cls": box["classification"],
            "loss_box_reg": box["box"],
            **{f"loss_{name}": loss for name, loss in own.items()},
        }

    # -- test ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def inference(self, predictions: Predictions, proposals: list[Instances]) -> tuple[list[Instances], list[Tensor]]:
        """Return the detections of each image with the decision on each, and the region (N,) of each."""
        assert self.method is not None
        found = proposals_of({}, proposals)
        regions = self.predicted(unmatched_regions(found, self.space), predictions)
        of_images = detections_of_batch(
            regions, self.refine(regions), found.image_sizes, self.method, self.space, self.roi
        )
        instances = [
            Instances(
                size,
                pred_boxes=Boxes(detections.boxes),
                scores=detections.scores,
                pred_classes=detections.labels,
                known_classes=detections.known_labels,
                **{f"{EXTRA}{name}": column for name, column in detections.extras.items()},
            )
            for size, (detections, _) in zip(found.image_sizes, of_images, strict=True)
        ]
        return instances, [region for _, region in of_images]

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]) -> tuple[Tensor, ...]:
        """See detectron2's."""
        boxes: tuple[Tensor, ...] = super().predict_boxes(predictions[:2], proposals)
        return boxes

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> tuple[Tensor, ...]:
        """See detectron2's; the rows are those of the label space."""
        probabilities: tuple[Tensor, ...] = super().predict_probs(predictions[:2], proposals)
        return probabilities

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> tuple[Tensor, ...] | list[Tensor]:
        """See detectron2's."""
        boxes: tuple[Tensor, ...] = super().predict_boxes_for_gt_classes(predictions[:2], proposals)
        return boxes

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, space: LabelSpace) -> None:
        """Grow to the label space of a later task; see :class:`openworld.engines.base.Engine`."""
        space.kept_rows(self.space)  # raises where the spaces do not belong together
        if space.num_rows != self.space.num_rows:
            self.cls_score = grown_classifier(self.cls_score, self.space, space)
            if self.roi.box_regression == "per_class":
                self.bbox_pred = grown_deltas(self.bbox_pred, self.space, space)
        if self.method is not None:
            self.method.grow(space)
        self.space, self.num_classes = space, space.background
        self.num_known.fill_(space.num_known)
