"""The convolution of tiny maps as a matrix product, against torch's convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ssl_backbones.dense_conv import DenseConv2d, dense_conv3x3, densify
from ssl_backbones.methods.simclr import SimCLR
from ssl_backbones.nets import ResNet
from ssl_backbones.options import ArchOptions, PretrainOptions


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("count", "height", "width"), [(5, 2, 2), (3, 1, 1), (2, 1, 2), (2, 2, 1), (0, 2, 2)])
def test_it_is_the_convolution(count: int, height: int, width: int, layout: torch.memory_format) -> None:
    source = torch.Generator().manual_seed(0)
    maps = torch.randn(count, 3, height, width, generator=source, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(4, 3, 3, 3, generator=source, dtype=torch.float64).contiguous(memory_format=layout)
    slope = torch.randn(count, 4, height, width, generator=source, dtype=torch.float64)
    found: list[torch.Tensor] = []
    wanted: list[torch.Tensor] = []
    for results, convolve in ((found, dense_conv3x3), (wanted, lambda x, w: F.conv2d(x, w, padding=1))):
        inputs = (maps.clone().requires_grad_(), weight.clone().requires_grad_())
        output = convolve(*inputs)
        results += [output, *torch.autograd.grad(output, inputs, slope)]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_weight_alone_has_a_gradient() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    dense_conv3x3(torch.randn(2, 3, 2, 2), weight).sum().backward()
    assert weight.grad is not None and weight.grad.shape == weight.shape


@pytest.mark.parametrize(("side", "autocast", "dense"), [(2, False, True), (3, False, False), (2, True, False)])
def test_where_it_is_taken(side: int, autocast: bool, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Tensor] = []

    def record(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        taken.append(maps)
        return dense_conv3x3(maps, weight)

    monkeypatch.setattr("ssl_backbones.dense_conv.dense_conv3x3", record)
    layer = DenseConv2d(3, 3, 3, padding=1, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        layer(torch.randn(2, 3, side, side))
    assert bool(taken) is dense


def test_an_encoder_has_it() -> None:
    network = SimCLR(PretrainOptions(arch=ArchOptions(arch="resnet18", width=0.1))).encoder
    dense = [name for name, module in network.named_modules() if isinstance(module, DenseConv2d)]
    assert [name for name in dense if "layer4" in name] == ["layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"]
    plain = ResNet(network.options)
    plain.load_state_dict(network.state_dict())
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [{"padding": 0}, {"dilation": 2}, {"stride": 2}, {"groups": 2}, {"bias": True}, {}])
def test_other_convolutions_stay(other: dict[str, int]) -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, **{"padding": 1, "bias": False, **other}))  # type: ignore[arg-type]
    densify(network)
    assert (type(network[0]) is DenseConv2d) is (other == {})
