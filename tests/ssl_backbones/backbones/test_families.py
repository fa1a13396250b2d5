"""What every family promises, tested on a small network of each: shapes, names, freezing, and files read back."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import nn

from openworld.errors import ConfigError
from openworld.runtime.option_trees import Given, construct, from_words
from ssl_backbones.backbones import FAMILIES, BackboneOptions, ConvNeXtOptions, ResNetOptions
from ssl_backbones.backbones.base import Backbone, spared_by_decay
from ssl_backbones.backbones.options import STAGES
from ssl_backbones.options import PretrainOptions

SMALL: list[BackboneOptions] = [
    ResNetOptions(name="resnet18", width=1 / 16),
    ResNetOptions(name="resnet50", width=1 / 16, stem="cifar3x3"),
    ResNetOptions(name="resnet50", width=1 / 16, stem="clip"),
    ConvNeXtOptions(width=1 / 12, depths=[1, 2, 1, 1]),
]
EACH = pytest.mark.parametrize("options", SMALL, ids=str)


def network(options: BackboneOptions) -> Backbone:
    torch.manual_seed(0)
    return options.build()


def test_every_family_is_here() -> None:
    assert {type(options) for options in SMALL} == set(FAMILIES.values())


@EACH
def test_stages_have_the_promised_channels_and_strides(options: BackboneOptions) -> None:
    body = network(options).eval()
    maps = body.forward_stages(torch.rand(2, 3, 64, 96))
    assert list(maps) == list(body.channels) == list(options.strides) == list(STAGES)
    for name, found in maps.items():
        stride = options.strides[name]
        assert found.shape == (2, body.channels[name], 64 // stride, 96 // stride)
    assert list(body.forward_stages(torch.rand(1, 3, 64, 64), last="c3")) == ["c2", "c3"]


@EACH
def test_features_are_the_mean_of_the_last_stage(options: BackboneOptions) -> None:
    body, images = network(options).eval(), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(body(images), body.forward_stages(images)["c5"].mean(dim=(2, 3)))
    assert body(images).shape == (2, body.dim)


@EACH
@pytest.mark.parametrize("count", range(6))
def test_freezing_stops_the_first_parts_alone(options: BackboneOptions, count: int) -> None:
    """A step of gradient descent moves the maps of a stage where something before it, or in it, trains."""
    body, images = network(options).eval(), torch.rand(1, 3, 64, 64)
    before = body.forward_stages(images)
    body.freeze(count)
    trained = [parameter for parameter in body.parameters() if parameter.requires_grad]
    assert bool(trained) is (count < 5)
    with torch.no_grad():
        for parameter in trained:
            parameter.mul_(1.5)
    after = body.forward_stages(images)
    moved = [not torch.equal(before[name], after[name]) for name in STAGES]
    assert moved == [number + 1 >= count for number in range(4)]


@EACH
def test_the_first_convolution_reads_the_colours(options: BackboneOptions) -> None:
    body, images = network(options).eval(), torch.rand(1, 3, 64, 64)
    turned = options.build().eval()
    turned.load_state_dict(body.state_dict())
    with torch.no_grad():
        turned.first_convolution.weight.copy_(body.first_convolution.weight.flip(1))
    torch.testing.assert_close(turned(images.flip(1)), body(images), rtol=1e-4, atol=1e-5)


@EACH
def test_keys_tell_the_family_and_shapes_the_network(options: BackboneOptions) -> None:
    state = network(options).state_dict()
    assert all(re.match(options.keys, key) for key in state)
    telling = [family for family in FAMILIES.values() if all(key in state for key in family.telling_keys)]
    assert telling == [type(options)]
    found = telling[0].of_shapes({key: tuple(value.shape) for key, value in state.items()}, "test")
    assert found.build().state_dict().keys() == state.keys()
    assert found.build().channels == network(options).channels


@EACH
def test_a_card_gives_the_options_back(options: BackboneOptions) -> None:
    assert BackboneOptions.of_card(asdict(options)) == options


@EACH
def test_weight_decay_spares_what_is_one_number_per_channel(options: BackboneOptions) -> None:
    model = nn.Sequential(network(options), nn.Linear(4, 2))
    spared = spared_by_decay(model)
    for parameter in model.parameters():
        per_channel = parameter.numel() == parameter.shape[0]
        assert (parameter in spared) is per_channel


def test_names_choose_the_family_and_are_unique() -> None:
    names = [name for family in FAMILIES.values() for name in family.names()]
    assert len(set(names)) == len(names)
    for family in FAMILIES.values():
        assert {BackboneOptions.named(name) for name in family.names()} == {family}
    with pytest.raises(ConfigError, match=r"there is no backbone 'vgg16'(.|\n)*resnet18.*convnext_tiny"):
        BackboneOptions.named("vgg16")


def test_a_configuration_chooses_the_family_by_its_name() -> None:
    """``arch: {name: …}`` in a file, ``--arch.name`` on the command line; another name drops the options before it."""

    def arch(*layers: Given) -> BackboneOptions:
        return construct(PretrainOptions, layers).arch

    file = Given({"arch": {"name": "convnext_tiny", "width": 0.125, "depths": [1, 1, 2, 1]}}, "a.yaml")
    assert arch(file) == ConvNeXtOptions(width=0.125, depths=[1, 1, 2, 1])
    assert arch(file, *from_words([("arch.width", "0.25")])).width == 0.25  # type: ignore[attr-defined]
    assert arch(file, *from_words([("arch.name", "resnet50")])) == ResNetOptions(name="resnet50")
    assert arch(*from_words([("arch.width", "1")])) == ResNetOptions(width=1.0)
    with pytest.raises(ConfigError, match=r"a\.yaml: arch\.stem is not an option"):
        arch(Given({"arch": {"name": "convnext_tiny", "stem": "clip"}}, "a.yaml"))
    with pytest.raises(ConfigError, match=r"arch\.name is 'vgg16': there is no backbone"):
        arch(Given({"arch": "vgg16"}, "a.yaml"))


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        (ConvNeXtOptions, {"name": "convnext_huge"}, "convnext_huge"),
        (ConvNeXtOptions, {"width": 0}, "width is 0"),
        (ConvNeXtOptions, {"depths": [1, 2, 3]}, r"depths is \[1, 2, 3\]"),
        (ConvNeXtOptions, {"depths": [1, 2, 0, 3]}, r"depths is"),
        (ConvNeXtOptions, {"layer_scale": -1.0}, "layer_scale is -1"),
        (ResNetOptions, {"name": "convnext_tiny"}, "convnext_tiny"),
    ],
)
def test_bad_options_name_the_field(family: type[BackboneOptions], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        family(**values)


def test_a_configuration_is_read_without_torch() -> None:
    code = "import sys, ssl_backbones.options, ssl_backbones.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
