"""What `openworld backbone export` writes, in a detector of plain detectron2: its own builders, its own loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import build_model
from PIL import Image

from openworld.cli import main
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import PREPROCESSES, load_backbone_file
from ssl_backbones.handover.verify import stage_features, test_image

pytestmark = pytest.mark.detectron2

C4 = {
    "BACKBONE": {"NAME": "build_resnet_backbone"},
    "ROI_HEADS": {"NAME": "Res5ROIHeads", "NUM_CLASSES": 3},
}
FPN = {
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
    "RESNETS": {"OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"], "OUT_CHANNELS": 8},
    "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]]},
    "RPN": {"IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"]},
    "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": ["p2", "p3", "p4", "p5"], "NUM_CLASSES": 3},
    "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1, "FC_DIM": 8, "POOLER_RESOLUTION": 7},
}


@pytest.fixture
def pretrained(tmp_path: Path) -> Callable[[str, bool], Path]:
    """The weights of a narrow ResNet-50 whose batch norms have seen something."""

    def write(preprocess: str, stride_in_1x1: bool) -> Path:
        torch.manual_seed(0)
        network = ResNet(ResNetOptions(name="resnet50", width=0.125, stride_in_1x1=stride_in_1x1))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
                nn.init.uniform_(module.weight, 0.5, 1.5)
        if preprocess == "caffe":  # values up to 255 that are not divided
            nn.init.normal_(network.conv1.weight, std=0.001)
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
        return path

    return write


@torch.no_grad()
def plain_features(settings: Path, detector: dict[str, Any], image: Tensor) -> dict[str, Tensor]:
    """C2…C5 of an image (3, H, W), RGB in 0…255, in detectron2's detector of these settings, read as it reads files."""
    base = settings.with_name("detector.yaml")
    base.write_text(yaml.safe_dump({"MODEL": detector, "VERSION": 2}))
    cfg = get_cfg()
    cfg.merge_from_file(str(base))
    cfg.merge_from_file(str(settings))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN"])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)  # a name in the folder of the settings
    picture = Image.fromarray(image.permute(1, 2, 0).byte().numpy())
    pixels = torch.from_numpy(convert_PIL_to_numpy(picture, cfg.INPUT.FORMAT).copy()).permute(2, 0, 1)
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    x, stages = trunk.stem(model.preprocess_image([{"image": pixels}]).tensor), {}
    for name in ("res2", "res3", "res4"):
        x = stages[name.replace("res", "c")] = getattr(trunk, name)(x)
    stages["c5"] = trunk.res5(x) if hasattr(trunk, "res5") else model.roi_heads.res5(x)
    return stages


@pytest.mark.parametrize(
    ("target", "detector", "preprocess", "stride_in_1x1"),
    [
        ("detectron2", C4, "imagenet", False),
        ("detectron2", FPN, "caffe", True),
        ("detectron2-c4", C4, "caffe", True),
        ("detectron2-fpn", FPN, "imagenet", False),
    ],
    ids=["heuristics, C4", "heuristics, FPN", "C4", "FPN"],
)
def test_plain_detectron2_sees_the_pretrained_features(
    target: str,
    detector: dict[str, Any],
    preprocess: str,
    stride_in_1x1: bool,
    pretrained: Callable[[str, bool], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fragment of the export over a detector's configuration, with the norms that it names for a CPU; nothing of
    this project is in the detector."""
    weights = pretrained(preprocess, stride_in_1x1)
    output = tmp_path / "exported" / "backbone.pkl"
    options = ["--preprocess", preprocess, "--stride-in-1x1", str(stride_in_1x1).lower()]
    main(["backbone", "export", str(weights), *options, "--to", target, "--output", str(output)])
    own = load_backbone_file(output)
    assert own.preprocess == PREPROCESSES[preprocess] and own.arch.stride_in_1x1 is stride_in_1x1
    network = ResNet(own.arch)
    network.load_state_dict(safetensors.torch.load_file(weights))
    monkeypatch.chdir(output.parent)
    image = test_image(64, 96)
    expected = stage_features(network, own.preprocess)(image)
    found = plain_features(output.with_suffix(".yaml"), detector, image)
    for stage, value in expected.items():
        torch.testing.assert_close(found[stage], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()), msg=stage)
