"""ResNet against torchvision's own."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from openworld.errors import ConfigError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_full_width_is_torchvision(arch: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, arch)(weights=None)
    theirs.fc = nn.Identity()
    ours = ResNet(ResNetOptions(name=arch, width=1.0))  # type: ignore[arg-type]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    for mode in (True, False):
        with torch.no_grad():
            assert torch.equal(ours.train(mode)(images), theirs.train(mode)(images))


def test_initialisation_is_torchvisions() -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    ours = ResNet(ResNetOptions(name="resnet18", width=1.0)).state_dict()
    key = "layer3.0.conv2.weight"
    assert ours[key].std().item() == pytest.approx(theirs[key].std().item(), rel=0.01)


@pytest.mark.parametrize(("stem", "strides"), [("imagenet7x7", (4, 8, 16, 32)), ("cifar3x3", (1, 2, 4, 8))])
def test_half_width_stages(stem: str, strides: tuple[int, ...]) -> None:
    net = ResNet(ResNetOptions(name="resnet50", width=0.5, stem=stem))  # type: ignore[arg-type]
    stages = net.forward_stages(torch.zeros(1, 3, 64, 64))
    assert net.channels == {"c2": 128, "c3": 256, "c4": 512, "c5": 1024}
    for (name, stage), stride in zip(stages.items(), strides, strict=True):
        assert stage.shape == (1, net.channels[name], 64 // stride, 64 // stride)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, net.dim) == (2, 1024)


def test_empty_batch() -> None:
    assert ResNet(ResNetOptions()).eval()(torch.zeros(0, 3, 64, 64)).shape == (0, 256)


def test_stem_width_is_free_of_width() -> None:
    assert ResNet(ResNetOptions(stem_width=64)).conv1.weight.shape == (64, 3, 7, 7)


def test_stride_moves_to_the_1x1_and_keys_stay() -> None:
    at_1x1 = ResNet(ResNetOptions(name="resnet50", width=0.25, stride_in_1x1=True))
    at_3x3 = ResNet(ResNetOptions(name="resnet50", width=0.25))
    strides = [at_1x1.get_submodule(f"layer2.0.conv{i}").stride for i in (1, 2)]
    assert strides == [(2, 2), (1, 1)]
    at_3x3.load_state_dict(at_1x1.state_dict())
    images = torch.randn(1, 3, 64, 64)
    a, b = at_1x1.eval().forward_stages(images), at_3x3.eval().forward_stages(images)
    assert torch.equal(a["c2"], b["c2"])
    assert not torch.allclose(a["c3"], b["c3"])


def test_end_padded_pool_by_hand() -> None:
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    end, both = (ResNet(ResNetOptions(pool_padding=p)).maxpool for p in ("end", "both"))
    assert end(x).flatten().tolist() == [10, 11, 14, 15]  # windows start at 0 and 2
    assert both(x).flatten().tolist() == [5, 7, 13, 15]  # windows start at -1 and 1


def test_zero_init_residual_is_identity_of_the_shortcut() -> None:
    block = ResNet(ResNetOptions(zero_init_residual=True)).get_submodule("layer1.1").eval()
    x = torch.rand(1, 32, 8, 8)
    assert torch.equal(block(x), x)


def test_frozen_norm_takes_a_trained_ones_tensors() -> None:
    trained, frozen = ResNet(ResNetOptions(width=0.25)), ResNet(ResNetOptions(width=0.25, norm="frozen"))
    frozen.load_state_dict(trained.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(frozen.train()(images), trained.eval()(images), atol=1e-5)


def test_bad_options_name_the_field() -> None:
    with pytest.raises(ConfigError, match="pool_padding is 'left'"):
        ResNetOptions(pool_padding="left")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="width is 0"):
        ResNetOptions(width=0)
