"""ConvNeXt against torchvision's own, and its published weights' layout through the handover."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from openworld.cli import main
from openworld.errors import CheckpointError, ConfigError, HandoverError
from ssl_backbones.backbones import ConvNeXtOptions
from ssl_backbones.backbones.convnext import ConvNeXt
from ssl_backbones.handover import export_backbone, load_backbone_file, stage_features, verify
from ssl_backbones.methods.cmc import CMC
from ssl_backbones.methods.cmc_options import CMCOptions
from ssl_backbones.methods.curl import CURL
from ssl_backbones.methods.curl_options import CURLOptions
from ssl_backbones.options import PretrainOptions

SMALL = ConvNeXtOptions(width=1 / 12, depths=[1, 1, 2, 1], layer_scale=0.5)


def network(options: ConvNeXtOptions = SMALL) -> ConvNeXt:
    torch.manual_seed(0)
    return options.build()


def test_full_width_is_torchvision() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.convnext_tiny(weights=None, layer_scale=0.5).eval()
    theirs.classifier = nn.Flatten(1)
    ours = ConvNeXt(ConvNeXtOptions()).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        c5 = ours.forward_stages(images)["c5"]
        assert torch.equal(c5, theirs.features(images))
        assert torch.equal(ours.forward_stages(images)["c3"], theirs.features[:4](images))


@pytest.mark.parametrize("name", ["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"])
def test_shapes_name_the_published_networks(name: str) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None)
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    found = ConvNeXtOptions.of_shapes(shapes, "test")
    assert found == ConvNeXtOptions(name=name)  # type: ignore[arg-type]
    with torch.device("meta"):
        ours = found.build()
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == {
        key: shape for key, shape in shapes.items() if key.startswith("features.")
    }


def test_torchvisions_file_loads_and_computes_the_same(tmp_path: Path) -> None:
    """The oracle is torchvision's network after torchvision's preprocessing."""
    torch.manual_seed(1)
    settings = [
        torchvision.models.convnext.CNBlockConfig(inside, outside, depth)
        for inside, outside, depth in ((16, 32, 1), (32, 64, 1), (64, 128, 2), (128, None, 1))
    ]
    theirs = torchvision.models.ConvNeXt(settings, layer_scale=0.5, num_classes=5).eval()
    torch.save(theirs.state_dict(), tmp_path / "convnext.pth")
    backbone = load_backbone_file(tmp_path / "convnext.pth")
    assert backbone.arch == ConvNeXtOptions(width=1 / 6, depths=[1, 1, 2, 1])
    assert all(key.startswith("classifier.") for key in backbone.left_out) and len(backbone.left_out) == 4

    @torch.no_grad()
    def features(image: Tensor) -> dict[str, Tensor]:
        normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        x = normalise(image / 255)[None]
        return {f"c{2 + stage}": theirs.features[: 2 + 2 * stage](x) for stage in range(4)}

    found = verify(stage_features(backbone.network(), backbone.preprocess), features, backbone=backbone)
    assert max(found.values()) < 1e-5
    with pytest.raises(HandoverError, match="colour order is the other one"):
        verify(
            stage_features(backbone.network(), backbone.preprocess),
            lambda image: features(image.flip(0)),
            backbone=backbone,
        )
    torch.save(
        {key: value for key, value in theirs.state_dict().items() if key != "features.3.0.block.5.bias"},
        tmp_path / "less.pth",
    )
    with pytest.raises(CheckpointError, match=r"convnext_tiny of width 0\.16.*missing features\.3\.0\.block\.5\.bias"):
        load_backbone_file(tmp_path / "less.pth")


def test_a_network_of_bgr_is_turned(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "w.pth")
    caffe: Any = {"order": "BGR", "range": 255.0, "mean": [103.5, 116.3, 123.7], "std": [57.4, 57.1, 58.4]}
    backbone = load_backbone_file(tmp_path / "w.pth", preprocess=caffe, arch=SMALL)
    rgb = backbone.as_rgb()
    found = verify(
        stage_features(backbone.network(), backbone.preprocess), stage_features(rgb.network(), rgb.preprocess)
    )
    assert max(found.values()) < 1e-4


def test_views_smaller_than_a_cell_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"28 x 28 pixels.*convnext_tiny"):
        network()(torch.zeros(1, 3, 28, 28))


def test_what_is_for_resnets_alone_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"arch\.name is 'convnext_tiny'"):
        CMC(PretrainOptions(method=CMCOptions(), views="cmc", arch=SMALL))
    torch.save(network().state_dict(), tmp_path / "w.pth")
    backbone = load_backbone_file(tmp_path / "w.pth", arch=SMALL)
    for target, suffix in (("detectron2", ".pkl"), ("torchvision", ".pth")):
        with pytest.raises(ConfigError, match=r"written for ResNets, and arch\.name is 'convnext_tiny'"):
            export_backbone(backbone, target, tmp_path / f"out{suffix}")  # type: ignore[arg-type]


def test_the_command_line_tells_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {**network().state_dict(), "classifier.2.weight": torch.ones(2, 64)}}, tmp_path / "w.pth")
    main(["backbone", "inspect", str(tmp_path / "w.pth")])
    text = capsys.readouterr().out
    assert "convnext_tiny" in text and "depths" in text and "classifier.2.weight" in text
    with pytest.raises(SystemExit) as refused:
        main(["backbone", "inspect", str(tmp_path / "w.pth"), "--pool-padding", "end"])
    assert refused.value.code == 2
    assert "--pool-padding is for ResNets, and this is a convnext_tiny" in capsys.readouterr().err


def test_curl_reads_a_stack_of_frames_and_exports_one_picture() -> None:
    """A scene that stands still: the stack's features are the exported network's."""
    torch.manual_seed(0)
    own = CURLOptions(projection_dim=8, frames=3)
    options = PretrainOptions(method=own, views="curl", arch=replace(SMALL))
    method = CURL(options).eval()
    picture = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(method.encoder(picture.repeat(1, 3, 1, 1)), method.backbone()(picture))
