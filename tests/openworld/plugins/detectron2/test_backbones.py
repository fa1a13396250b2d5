"""A pretrained backbone in detectron2's own world: the file sets the keys, and what it does not fit is noticed."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.modeling import build_model

from openworld.errors import HandoverError
from openworld.plugins.detectron2 import command, verify_backbone
from openworld.plugins.detectron2.backbones import load_backbone
from openworld.runtime.files import sha256_of
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet

pytestmark = pytest.mark.detectron2

CAFFE = {"order": "BGR", "range": 255.0, "mean": [103.5, 116.3, 123.7], "std": [1.0, 57.0, 58.0]}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A narrow ResNet-50 with the stride in the 1x1 that sees BGR from 0 to 255, with its card."""
    torch.manual_seed(0)
    arch = ResNetOptions(name="resnet50", width=0.125, stride_in_1x1=True)
    network = ResNet(arch)
    nn.init.normal_(network.conv1.weight, std=0.001)
    folder = tmp_path / "backbone"
    folder.mkdir()
    path = folder / "backbone.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    card = {"arch": vars(arch), "preprocess": CAFFE, "sha256": sha256_of(path)}
    (folder / "card.json").write_text(json.dumps(card))
    return path


def test_the_network_of_the_key_is_loaded(arguments: Callable[..., Namespace], tmp_path: Path) -> None:
    arch = ResNetOptions(name="resnet50", width=0.125, stride_in_1x1=True)
    twins = {}
    for seed, prefix in enumerate(("encoder_q.", "encoder_k.")):
        torch.manual_seed(seed)
        twins |= {prefix + name: value for name, value in ResNet(arch).state_dict().items()}
    torch.save({"state_dict": twins}, tmp_path / "twins.pth")
    keys = ["OPENWORLD.BACKBONE", str(tmp_path / "twins.pth"), "MODEL.RESNETS.STRIDE_IN_1X1", "True"]
    for prefix in ("encoder_q.", "encoder_k."):
        chosen = ["OPENWORLD.BACKBONE_NETWORK", prefix] if prefix == "encoder_k." else []
        cfg = command.setup(arguments(tmp_path, 1, "train", *keys, *chosen))
        model = build_model(cfg)
        load_backbone(cfg, model)
        stem = next(value for name, value in model.state_dict().items() if name.endswith("stem.conv1.weight"))
        assert torch.equal(stem, twins[f"{prefix}conv1.weight"])


def test_a_backbone_sets_its_keys_and_arrives(
    arguments: Callable[..., Namespace], backbone: Path, tmp_path: Path
) -> None:
    cfg = command.setup(arguments(tmp_path, 1, "train", "OPENWORLD.BACKBONE", str(backbone)))
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.PIXEL_STD == [1, 57, 58]
    assert (
        cfg.MODEL.RESNETS.DEPTH == 50 and cfg.MODEL.RESNETS.STRIDE_IN_1X1 and cfg.MODEL.RESNETS.RES2_OUT_CHANNELS == 32
    )
    model = build_model(cfg)
    with pytest.raises(HandoverError):
        verify_backbone(cfg, model)  # nothing is loaded yet
    assert max(load_backbone(cfg, model).values()) < 1e-4

    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(HandoverError, match="colour order"):
        verify_backbone(cfg, model)
    cfg.INPUT.FORMAT, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = "BGR", False
    with pytest.raises(HandoverError, match="C3"):
        load_backbone(cfg, build_model(cfg))
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.PIXEL_STD = True, [57, 57, 57]
    with pytest.raises(HandoverError, match="C2"):
        load_backbone(cfg, build_model(cfg))
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 16
    with pytest.raises(HandoverError, match="the detector has"):
        load_backbone(cfg, build_model(cfg))
