"""Load a pretrained backbone into the detector, and verify that it computes the same features there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openworld.engines.base import Engine
from openworld.engines.options import ModelOptions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.errors import HandoverError
from openworld.labels import LabelSpace
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.handover import BackboneFile, load_backbone_file, stage_features, verify


def build_engine(space: LabelSpace, options: ModelOptions, weights: Path | None) -> Engine:
    """Build a detector on a random or a pretrained backbone.

    Args:
        weights: backbone file, or None for random weights.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another network.
        HandoverError: the detector would compute other features than the pretrained network.
        ConfigError: the engine, the neck or the norm does not go with the network.
        EnvironmentProblem: the engine is detectron2, which is not installed.
    """
    backbone = None
    if weights is not None:
        backbone = load_backbone_file(weights, arch=options.arch, network=options.weights_network)
    if backbone is None and (options.norm == "frozen" or options.freeze_stages):
        raise HandoverError(
            f"model.norm is {options.norm!r} and model.freeze_stages is {options.freeze_stages} on random weights",
            where="model",
            remedy="frozen layers need a pretrained backbone: give model.weights or turn pretrain on",
        )
    engine = random_engine(space, options if backbone is None else replace(options, arch=backbone.arch))
    if backbone is not None:
        load_backbone(engine, backbone)
    return engine


def random_engine(space: LabelSpace, options: ModelOptions) -> Engine:
    """Build a detector with random weights only, for a checkpoint to replace.

    Args:
        options: ``arch`` describes the network; None is the demo's ResNet, whatever ``weights`` says.

    Raises:
        EnvironmentProblem: the engine is detectron2, which is not installed.
    """
    arch = options.arch or ResNetOptions()
    if options.engine == "detectron2":
        from openworld.engines.detectron2.parts import Detectron2RCNN  # an optional dependency

        return Detectron2RCNN(space, arch, options)
    return OpenWorldRCNN(space, arch.in_detector(options.norm).build(), options)


def load_backbone(engine: Engine, backbone: BackboneFile) -> dict[str, float]:
    """Copy weights and pixel statistics, then compare C2…C5 of both networks on one image.

    Each side does its own preprocessing, so that the comparison finds a wrong colour order, mean, std, stride, stem or
    norm.

    Returns:
        The relative difference of each stage.

    Raises:
        HandoverError: a stage differs by more than rounding; the network takes L*a*b*, or is a ResNet with layer norm.
    """
    backbone.arch.in_detector("batch")  # or it is not one for a detector
    rgb = backbone.as_rgb()
    engine.load_backbone(rgb.state_dict)
    engine.pixel_mean.copy_(torch.tensor(rgb.preprocess["mean"]).view(3, 1, 1))
    engine.pixel_std.copy_(torch.tensor(rgb.preprocess["std"]).view(3, 1, 1))

    def detector_stages(image: Tensor) -> dict[str, Tensor]:
        training = engine.training
        engine.eval()
        try:
            return engine.backbone_stages(image.float() / 255)
        finally:
            engine.train(training)

    return verify(stage_features(backbone.network(), backbone.preprocess), detector_stages, backbone=backbone)
