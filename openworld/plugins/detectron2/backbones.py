"""A pretrained backbone in a detector of detectron2: its keys, its weights, and their verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN
from torch import Tensor

from openworld.engines.detectron2.backbone import backbone_stages, load_trunk
from openworld.engines.detectron2.config import set_keys
from openworld.engines.detectron2.names import arch_keys
from ssl_backbones.handover import BackboneFile, load_backbone_file, stage_features, verify


def backbone_keys(backbone: BackboneFile) -> dict[str, Any]:
    """Return the keys of detectron2's configuration that the backbone needs: architecture, stride, pixel statistics.

    The norm and ``FREEZE_AT`` are the user's choice and not among them.
    """
    preprocess = backbone.preprocess
    scale = 255 / preprocess["range"]
    return {
        "INPUT.FORMAT": preprocess["order"],
        "MODEL.PIXEL_MEAN": [scale * value for value in preprocess["mean"]],
        "MODEL.PIXEL_STD": [scale * value for value in preprocess["std"]],
        **arch_keys(backbone.arch),
    }


def use_backbone(cfg: CfgNode) -> None:
    """Set the keys that ``OPENWORLD.BACKBONE`` needs, if it is given; call it before the model is built."""
    if cfg.OPENWORLD.BACKBONE:
        set_keys(cfg, backbone_keys(_read(cfg)))


def load_backbone(cfg: CfgNode, model: GeneralizedRCNN) -> dict[str, float]:
    """Copy the weights of ``OPENWORLD.BACKBONE`` into a detector, and verify them.

    Returns:
        the relative difference of each stage.

    Raises:
        CheckpointError: the file cannot be read.
        HandoverError: the detector is another network, or computes other features.
    """
    load_trunk(model, _read(cfg).state_dict)
    return verify_backbone(cfg, model)


def verify_backbone(cfg: CfgNode, model: GeneralizedRCNN) -> dict[str, float]:
    """Compare C2…C5 of the detector with those of ``OPENWORLD.BACKBONE`` on one image.

    Each network does its own preprocessing.

    The check fails for a wrong stride, colour order, mean, std, stem or norm, and for frozen layers without weights.

    Returns:
        the relative difference of each stage.

    Raises:
        HandoverError: a stage differs by more than rounding; it names the stage and likely causes.
    """
    backbone = _read(cfg)

    def detector_stages(image: Tensor) -> dict[str, Tensor]:
        pixels = image.float() if cfg.INPUT.FORMAT == "RGB" else image.float().flip(0)
        training = model.training
        model.eval()
        try:
            return backbone_stages(model, pixels)
        finally:
            model.train(training)

    return verify(stage_features(backbone.network(), backbone.preprocess), detector_stages)


def _read(cfg: CfgNode) -> BackboneFile:
    return load_backbone_file(Path(cfg.OPENWORLD.BACKBONE), network=cfg.OPENWORLD.BACKBONE_NETWORK or None)
