"""Modules replaced inside a network: which, where, and with what tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from openworld.runtime.modules import batch_norm_as, convolution_as, replace_modules, with_tensors_of


class OtherConv2d(nn.Conv2d):
    """Told apart by its type."""


class OtherBatchNorm2d(nn.BatchNorm2d):
    """Told apart by its type."""


def other(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Conv2d:
        return convolution_as(OtherConv2d, module)
    return batch_norm_as(OtherBatchNorm2d, module) if type(module) is nn.BatchNorm2d else None


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2), groups=2, padding_mode="circular"),
        nn.Sequential(nn.BatchNorm2d(6, eps=1e-2, momentum=0.3), nn.ReLU()),
        nn.Conv2d(6, 6, 1, bias=False),
        nn.BatchNorm2d(6, affine=False),
    )


def test_the_function_the_names_and_the_very_tensors_stay() -> None:
    torch.manual_seed(0)
    plain = network()
    replaced = copy.deepcopy(plain)
    parameters = dict(replaced.named_parameters())
    drawn = torch.get_rng_state()
    assert replace_modules(replaced, other) is replaced
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [type(module) for module in replaced.modules()] == [
        {nn.Conv2d: OtherConv2d, nn.BatchNorm2d: OtherBatchNorm2d}.get(type(module), type(module))  # type: ignore[call-overload]
        for module in plain.modules()
    ]
    assert all(parameter is parameters[name] for name, parameter in replaced.named_parameters())
    images = torch.randn(3, 4, 9, 9)
    for mode in (True, False):
        assert torch.equal(replaced.train(mode)(images), plain.train(mode)(images))
    wanted = plain.state_dict()  # with the statistics of the images, counted as often
    assert list(replaced.state_dict()) == list(wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in replaced.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_frozen_weights_stay(training: bool) -> None:
    norm = nn.BatchNorm2d(3).train(training).requires_grad_(False)
    replacement = batch_norm_as(OtherBatchNorm2d, norm)
    assert replacement.training is training and not replacement.weight.requires_grad
    assert replacement.running_mean is norm.running_mean


def test_a_shared_module_stays_shared() -> None:
    shared = nn.Conv2d(2, 2, 1)
    network = nn.ModuleDict({"one": nn.Sequential(shared, nn.ReLU()), "two": nn.Sequential(shared)})
    replace_modules(network, other)
    assert type(network.get_submodule("one.0")) is OtherConv2d
    assert network.get_submodule("one.0") is network.get_submodule("two.0")


def test_the_network_itself_and_what_is_inside_a_replacement() -> None:
    asked: list[nn.Module] = []

    def rule(module: nn.Module) -> nn.Module | None:
        asked.append(module)
        return nn.Identity() if isinstance(module, nn.Sequential) else None

    assert type(replace_modules(nn.Sequential(nn.ReLU()), rule)) is nn.Identity and len(asked) == 1
    network = nn.ModuleDict({"inner": nn.Sequential(nn.ReLU()), "inner_too": nn.ReLU()})
    asked.clear()
    replace_modules(network, rule)
    assert type(network["inner"]) is nn.Identity and asked[2:] == [network["inner_too"]]


def test_tensors_are_taken_over_and_not_copied() -> None:
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    assert with_tensors_of(target, source.eval()) is target
    assert target.weight is source.weight and target.bias is source.bias and not target.training
