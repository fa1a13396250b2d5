"""The two last layers of the box head in detectron2, with ORE beside them.

R regions over the batch, D feature dimension, K head rows, C sets of box deltas: 1 or one a row before background.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers, _log_classification_stats
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torchvision.ops import boxes as box_ops

from openworld.engines.base import Decide
from openworld.engines.detectron2.config import build_ore, check_supported, label_space, roi_options
from openworld.engines.head_rows import grown_classifier, grown_deltas
from openworld.engines.options import RoiOptions
from openworld.engines.roi_inference import detections_of_image
from openworld.engines.roi_losses import BOX_WEIGHTS, box_head_losses
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.runtime import distributed
from openworld.structures import Detections, Regions

Predictions = tuple[Tensor, Tensor, Tensor]
"""Logits (R, K), box deltas (R, 4·C) and features (R, D), float32."""


def regions_of(proposals: Sequence[Instances]) -> tuple[Regions, Tensor]:
    """The sampled proposals of all images as regions, and the annotated box of each (R, 4); zeros where it has none."""
    boxes = [each.proposal_boxes.tensor for each in proposals]
    index = [torch.full((len(each),), number, device=each.device) for number, each in enumerate(boxes)]
    regions = Regions(
        torch.cat(boxes),
        torch.cat(index),
        torch.cat([each.objectness_logits for each in proposals]),
        torch.cat([each.proposal_iou for each in proposals]),
        torch.cat([each.gt_classes for each in proposals]),
    )
    return regions, torch.cat([each.gt_boxes.tensor for each in proposals])


class OpenWorldOutputLayers(FastRCNNOutputLayers):
    """Classification and box deltas whose rows are those of our label space.

    The module ``ore`` holds feature memory, prototypes and the energy model; it has buffers only, which detectron2's
    checkpoints save with the rest. Predictions carry the features as a third part. Detected ``Instances`` have two
    fields more: ``energies`` and ``known_classes``, the best known class whatever was decided.

    Args:
        input_shape: of the features that enter.
        labels: of the current task; ``num_classes`` is its row of background.
        roi: options of the box head. Thresholds and the cap at test are its own, not attributes of detectron2's layer.
        ore: None, where somebody else watches the regions.
        first_step: steps that the task had before this training; they time the prototypes.
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
        labels: LabelSpace,
        roi: RoiOptions,
        ore: Ore | None = None,
        first_step: int = 0,
        replay: bool = False,
    ) -> None:
        super().__init__(
            input_shape,
            box2box_transform=Box2BoxTransform(weights=BOX_WEIGHTS),
            num_classes=labels.background,
            cls_agnostic_bbox_reg=roi.box_regression == "agnostic",
            smooth_l1_beta=roi.smooth_l1_beta,
        )
        self.labels = labels
        self.roi = roi
        self.ore = ore
        self.first_step = first_step
        self.replay = replay
        self.register_buffer("num_known", torch.tensor(labels.num_known))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Arguments out of a configuration."""
        check_supported(cfg)
        labels = label_space(cfg)
        if cfg.ORE.STAGE not in ("train", "replay"):
            raise ConfigError(f"ORE.STAGE is {cfg.ORE.STAGE!r}", remedy="choose train or replay")
        return {
            "input_shape": input_shape,
            "labels": labels,
            "roi": roi_options(cfg),
            "ore": build_ore(cfg, labels, input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)),
            "first_step": cfg.ORE.FIRST_STEP,
            "replay": cfg.ORE.STAGE == "replay",
        }

    @property
    def feature_dim(self) -> int:
        """D."""
        return int(self.cls_score.in_features)

    def forward(self, x: Tensor) -> Predictions:
        """Features (R, D) or (R, C, h, w) → predictions; in float32 under autocast too, as energies are compared."""
        with torch.autocast(x.device.type, enabled=False):
            features_RD = x.flatten(1).float()
            return self.cls_score(features_RD), self.bbox_pred(features_RD), features_RD

    # -- training -----------------------------------------------------------------------------------------------------

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_box_reg`` and ``loss_clustering`` of the sampled proposals."""
        logits_RK, _, features_RD = predictions
        losses = self.box_losses(predictions, proposals)
        assert self.ore is not None
        storage, rows = get_event_storage(), torch.cat([each.gt_classes for each in proposals])
        with torch.autocast(logits_RK.device.type, enabled=False):
            losses["loss_clustering"] = self.ore.step(
                features_RD, rows, self.first_step + storage.iter, replay=self.replay, ranks=distributed
            )
        _log_classification_stats(logits_RK, rows)
        storage.put_scalar("ore/num_unknown_samples", float((rows == self.labels.unknown).sum()) / len(proposals))
        storage.put_scalar("ore/num_prototypes", float(self.ore.prototypes.present.sum()))
        storage.put_scalar("ore/num_remembered", float(self.ore.memory.counts.sum()))
        return losses

    def box_losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """``loss_cls`` and ``loss_box_reg`` alone."""
        logits_RK, deltas_RC, _ = predictions
        regions, goals_R4 = regions_of(proposals)
        classification, box = box_head_losses(logits_RK, deltas_RC, regions, goals_R4, self.labels, self.roi)
        return {"loss_cls": classification, "loss_box_reg": box}

    # -- test ---------------------------------------------------------------------------------------------------------

    def inference(self, predictions: Predictions, proposals: list[Instances]) -> tuple[list[Instances], list[Tensor]]:
        """Detections of each image with the decision on each, and the region (N,) of each."""
        assert self.ore is not None
        found = self.detections(
            predictions, proposals, self.ore.decide, nms_after_decision=self.ore.energy.nms_after_decision
        )
        instances = []
        for each, (detections, _) in zip(proposals, found, strict=True):
            instances.append(
                Instances(
                    each.image_size,
                    pred_boxes=Boxes(detections.boxes),
                    scores=detections.scores,
                    pred_classes=detections.labels,
                    energies=detections.energies,
                    known_classes=detections.known_labels,
                )
            )
        return instances, [region for _, region in found]

    @torch.no_grad()
    def detections(
        self, predictions: Predictions, proposals: list[Instances], decide: Decide, *, nms_after_decision: bool
    ) -> list[tuple[Detections, Tensor]]:
        """Detections of each image, boxes in pixels of the network's input, and the region (N,) of each."""
        logits_RK, deltas_RC, _ = predictions
        boxes_R4 = torch.cat([each.proposal_boxes.tensor for each in proposals])
        boxes_RC = self.box2box_transform.apply_deltas(deltas_RC, boxes_R4)
        counts = [len(each) for each in proposals]
        return [
            detections_of_image(
                box_ops.clip_boxes_to_image(boxes.reshape(-1, 4), each.image_size).reshape(boxes.shape),
                logits,
                self.labels,
                self.roi,
                decide,
                nms_after_decision=nms_after_decision,
            )
            for each, boxes, logits in zip(proposals, boxes_RC.split(counts), logits_RK.split(counts), strict=True)
        ]

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

    def grow(self, labels: LabelSpace) -> None:
        """Go on to the label space of a later task; see :class:`openworld.engines.base.Engine`."""
        labels.kept_rows(self.labels)  # raises where the spaces do not belong together
        if labels.num_rows != self.labels.num_rows:
            self.cls_score = grown_classifier(self.cls_score, self.labels, labels)
            if self.roi.box_regression == "per_class":
                self.bbox_pred = grown_deltas(self.bbox_pred, self.labels, labels)
        if self.ore is not None:
            self.ore.grow(labels)
        self.labels, self.num_classes = labels, labels.background
        self.num_known.fill_(labels.num_known)
