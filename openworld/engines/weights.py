"""Putting a pretrained backbone into the detector, and proving that it arrived (DESIGN: a verified handover)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openworld.engines.options import ModelOptions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.errors import HandoverError
from openworld.labels import LabelSpace
from ssl_backbones.handover import BackboneFile, load_backbone_file, stage_features, verify
from ssl_backbones.nets import ResNet
from ssl_backbones.options import ArchOptions


def build_engine(labels: LabelSpace, options: ModelOptions, weights: Path | None) -> OpenWorldRCNN:
    """A detector on a random or a pretrained ResNet.

    Args:
        weights: backbone file, or None for random weights.

    Raises:
        CheckpointError: the file cannot be read or is of another network.
        HandoverError: the detector would see other features than the pretrained network.
    """
    backbone = load_backbone_file(weights, arch=options.arch) if weights is not None else None
    arch = backbone.arch if backbone is not None else options.arch or ArchOptions()
    if backbone is None and (options.norm == "frozen" or options.freeze_stages):
        raise HandoverError(
            f"model.norm is {options.norm!r} and model.freeze_stages is {options.freeze_stages} on random weights",
            where="model",
            remedy="frozen layers need a pretrained backbone: give model.weights or turn pretrain on",
        )
    engine = OpenWorldRCNN(labels, ResNet(replace(arch, norm=options.norm)), options)
    if backbone is not None:
        load_backbone(engine, backbone)
    return engine


def load_backbone(engine: OpenWorldRCNN, backbone: BackboneFile) -> dict[str, float]:
    """Copy weights and pixel statistics, then compare C2…C5 of both networks on one image.

    Each side does its own preprocessing, so that a wrong colour order, mean, std, stride, stem or norm shows.

    Returns:
        The relative difference of each stage.

    Raises:
        HandoverError: a stage differs by more than rounding, or the pretraining saw other channels or ranges than RGB
            from 0 to 1.
    """
    body, preprocess = engine.features.body, backbone.preprocess
    expected = set(body.state_dict())
    body.load_state_dict({key: value for key, value in backbone.state_dict.items() if key in expected})
    scale = preprocess["range"]
    engine.pixel_mean.copy_(torch.tensor(preprocess["mean"]).view(3, 1, 1) / scale)
    engine.pixel_std.copy_(torch.tensor(preprocess["std"]).view(3, 1, 1) / scale)
    if preprocess["order"] == "BGR":
        with torch.no_grad():
            body.conv1.weight.copy_(body.conv1.weight.flip(1))
            for statistic in (engine.pixel_mean, engine.pixel_std):
                statistic.copy_(statistic.flip(0))

    def detector_stages(image: Tensor) -> dict[str, Tensor]:
        training = engine.training
        engine.eval()
        try:
            return body.forward_stages(engine.normalise([image.float() / 255]).tensors)
        finally:
            engine.train(training)

    network = ResNet(backbone.arch)
    network.load_state_dict(backbone.state_dict)
    return verify(stage_features(network, preprocess), detector_stages)
