"""The names of the engine's tensors and options in detectron2. Works without detectron2.

A detector of this project and its twin in detectron2 are the same network. :func:`detectron2_name` maps the name of
each tensor, :func:`model_keys` that of each option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple

from openworld.engines.options import ModelOptions, RoiOptions
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions, UnknownLabelOptions
from ssl_backbones.backbones import BackboneOptions, ResNetOptions
from ssl_backbones.handover.names import detectron2_name as trunk_name

# -- tensors ----------------------------------------------------------------------------------------------------------

PREDICTOR = "roi_heads.box_predictor"
"""The two last layers, and beside them the open-world method."""

_MODULES = {
    "cls_score": f"{PREDICTOR}.cls_score",
    "bbox_pred": f"{PREDICTOR}.bbox_pred",
    "rpn.head.conv.0.0": "proposal_generator.rpn_head.conv",
    "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
    "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
    "features.head.fc6": "roi_heads.box_head.fc1",
    "features.head.fc7": "roi_heads.box_head.fc2",
    **{f"features.fpn.inner_blocks.{level}.0": f"backbone.fpn_lateral{level + 2}" for level in range(4)},
    **{f"features.fpn.layer_blocks.{level}.0": f"backbone.fpn_output{level + 2}" for level in range(4)},
}


def detectron2_name(name: str, neck: Literal["c4", "fpn"] = "c4") -> str:
    """Return a tensor's name in detectron2: ``rpn.head.conv.0.0.bias`` → ``proposal_generator.rpn_head.conv.bias``.

    Args:
        name: in the state dict of :class:`openworld.engines.torchvision_rcnn.OpenWorldRCNN`.
        neck: with ``c4`` res5 is part of the box head; with ``fpn`` it is part of the backbone below the pyramid.
    """
    module, _, kind = name.rpartition(".")
    if module in _MODULES:
        return f"{_MODULES[module]}.{kind}"
    body = trunk_name(name.removeprefix("features.body."))
    if not name.startswith("features.body.") or body is None:
        return name
    if neck == "c4":
        return f"roi_heads.{body}" if body.startswith("res5.") else f"backbone.{body}"
    return f"backbone.bottom_up.{body}"


# -- options ----------------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """A key of detectron2, and the conversions of its value in both directions."""

    name: str
    there: Callable[[Any], Any] = lambda value: value
    back: Callable[[Any], Any] = lambda value: value


def _at(position: int) -> Callable[[Any], Any]:
    return lambda values: values[position]


ROI_KEYS: Mapping[str, Key] = {
    "sampled_regions": Key("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"),
    "positive_fraction": Key("MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    "foreground_iou": Key("MODEL.ROI_HEADS.IOU_THRESHOLDS", lambda value: [value], _at(0)),
    "append_annotated": Key("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT"),
    "box_regression": Key(
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        lambda value: value == "agnostic",
        lambda value: "agnostic" if value else "per_class",
    ),
    "smooth_l1_beta": Key("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", float),
    "hidden_dim": Key("MODEL.ROI_BOX_HEAD.FC_DIM"),
    "sampling_ratio": Key("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"),
    "aligned": Key(
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
        lambda value: "ROIAlignV2" if value else "ROIAlign",
        lambda value: value == "ROIAlignV2",
    ),
    "score_threshold": Key("MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
    "nms_iou": Key("MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    "detections_per_image": Key("TEST.DETECTIONS_PER_IMAGE"),
}
"""Options of the box head for which detectron2 has a key. The others are below ``OPENWORLD.ROI``."""

CANONICAL_SIZE_PX = 224
"""``OPENWORLD.ROI.CANONICAL_SIZE_PX``: detectron2's own value (poolers.py), which the heads must not change unasked."""

ORE_PAPER = OreOptions(unknown_labels=UnknownLabelOptions(), clustering=ClusteringOptions(), energy=EnergyOptions())
"""The method of the defaults: ORE with the paper's values."""

BACKBONES = {"c4": "build_openworld_resnet_backbone", "fpn": "build_openworld_resnet_fpn_backbone"}
HEADS = {"c4": "OpenWorldRes5ROIHeads", "fpn": "OpenWorldStandardROIHeads"}
"""Names in detectron2's registries (:mod:`openworld.engines.detectron2`)."""


def own_roi_fields() -> list[str]:
    """Return the options of the box head that stand below ``OPENWORLD.ROI``."""
    return [field.name for field in fields(RoiOptions) if field.name not in ROI_KEYS]


def openworld_defaults() -> dict[str, Any]:
    """Return the node ``OPENWORLD`` of detectron2's configuration, with the defaults of this project's options.

    - ``SCHEDULE``: a name or a file for :func:`openworld.data.schedules.read_schedule`; otherwise ``TASKS`` lists the
      classes of each task.
    - ``TASK``: the current task, from 1. ``LAYOUT``: the layout of the head rows.
    - ``STAGE``: ``train``, or ``replay`` for the fine-tuning on exemplars. ``FIRST_STEP``: number of steps that the
      task was trained before.
    - ``POOL_PADDING``: of the stem, for this project's builders of backbones.
    - ``BACKBONE``: a pretrained backbone in a layout that :mod:`ssl_backbones.handover` reads.
    - ``BACKBONE_NETWORK``: prefix of its keys, where the file holds several networks; empty for the one that its
      authors evaluate.
    - ``HELD_OUT``: the data set that the method is calibrated on, by default that of the schedule.
    - ``PROTOCOL``: the rules of scoring.
    - ``METHOD``: the options of the method that its ``NAME`` names.
    """
    roi = RoiOptions()
    return {
        "SCHEDULE": "",
        "TASKS": [],
        "TASK": 1,
        "LAYOUT": ModelOptions().layout,
        "STAGE": "train",
        "FIRST_STEP": 0,
        "BACKBONE": "",
        "BACKBONE_NETWORK": "",
        "HELD_OUT": "",
        "PROTOCOL": "unique",
        "POOL_PADDING": ResNetOptions().pool_padding,
        "ROI": {name.upper(): getattr(roi, name) for name in own_roi_fields()}
        | {"CANONICAL_SIZE_PX": CANONICAL_SIZE_PX},
        "METHOD": option_keys(ORE_PAPER),
    }


def option_keys(options: Any) -> dict[str, Any]:
    """Return the fields of an options dataclass in capitals; nested dataclasses become nested mappings."""
    values = {field.name.upper(): getattr(options, field.name) for field in fields(options)}
    return {name: option_keys(value) if is_dataclass(value) else value for name, value in values.items()}


def arch_keys(arch: BackboneOptions) -> dict[str, Any]:
    """Return the keys of detectron2's configuration for a ResNet, by their dotted names.

    Raises:
        ConfigError: detectron2 has no parts for the network.
    """
    if not isinstance(arch, ResNetOptions):
        raise ConfigError(
            f"detectron2's detectors are built on ResNets, and model.arch.name is {arch.name!r}",
            remedy=f"set model.engine: torchvision, or choose one of {', '.join(ResNetOptions.names())}",
        )
    if arch.stem != "imagenet7x7":
        raise ConfigError(f"detectron2 has no stem {arch.stem!r}", remedy="use a network with the stem imagenet7x7")
    width = max(1, round(64 * arch.width))
    return {
        "MODEL.RESNETS.DEPTH": int(arch.name.removeprefix("resnet")),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": arch.stem_width or width,
        "MODEL.RESNETS.WIDTH_PER_GROUP": width,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": width * (4 if arch.name == "resnet50" else 1),
        "MODEL.RESNETS.STRIDE_IN_1X1": arch.stride_in_1x1,
        "OPENWORLD.POOL_PADDING": arch.pool_padding,
    }


def model_keys(options: ModelOptions, arch: BackboneOptions, labels: LabelSpace) -> dict[str, Any]:
    """Return the keys of detectron2's configuration that build the same network, by their dotted names.

    Values have the types of detectron2's defaults, since yacs accepts no others from a file. The exception is a
    fractional ``rpn.min_side_px``.

    Args:
        options: of the detector.
        arch: of the backbone.
        labels: of the task.

    Raises:
        ConfigError: a network that detectron2 has no parts for.
    """
    rpn, fpn = options.rpn, options.neck == "fpn"
    levels = [f"p{level}" for level in range(2, 6)] if fpn else ["res4"]
    keys: dict[str, Any] = {
        "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL.BACKBONE.NAME": BACKBONES[options.neck],
        "MODEL.BACKBONE.FREEZE_AT": options.freeze_stages,
        **arch_keys(arch),
        "MODEL.RESNETS.NORM": "FrozenBN" if options.norm == "frozen" else "BN",
        "MODEL.RESNETS.OUT_FEATURES": [f"res{stage}" for stage in range(2, 6)] if fpn else ["res4"],
        "MODEL.FPN.IN_FEATURES": [f"res{stage}" for stage in range(2, 6)] if fpn else [],
        "MODEL.FPN.OUT_CHANNELS": options.fpn_channels,
        "MODEL.ANCHOR_GENERATOR.NAME": "RoundedAnchorGenerator",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[size] for size in rpn.anchor_sizes] if fpn else [list(rpn.anchor_sizes)],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(rpn.anchor_ratios)],
        "MODEL.RPN.IN_FEATURES": levels,
        "MODEL.RPN.IOU_THRESHOLDS": [rpn.background_iou, rpn.foreground_iou],
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": rpn.sampled_anchors,
        "MODEL.RPN.PRE_NMS_TOPK_TRAIN": rpn.train_candidates,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": rpn.train_proposals,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": rpn.test_candidates,
        "MODEL.RPN.POST_NMS_TOPK_TEST": rpn.test_proposals,
        "MODEL.RPN.NMS_THRESH": rpn.nms_iou,
        "MODEL.RPN.SMOOTH_L1_BETA": float(rpn.smooth_l1_beta),
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": int(side) if (side := rpn.min_side_px) == int(side) else side,
        "MODEL.ROI_HEADS.NAME": HEADS[options.neck],
        "MODEL.ROI_HEADS.NUM_CLASSES": labels.background,
        "MODEL.ROI_HEADS.IN_FEATURES": levels,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead" if fpn else "",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2 if fpn else 0,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7 if fpn else 14,
        "OPENWORLD.TASKS": [list(names) for names in labels.tasks],
        "OPENWORLD.TASK": labels.task,
        "OPENWORLD.LAYOUT": labels.layout,
        **{f"OPENWORLD.ROI.{name.upper()}": getattr(options.roi, name) for name in own_roi_fields()},
    }
    for name, key in ROI_KEYS.items():
        keys[key.name] = key.there(getattr(options.roi, name))
    return keys
