"""The average of the weights against torch's, and by hand; what is not a weight stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from openworld.runtime.weight_average import WeightAverage, running_statistics, with_tensors, write_tensors


class Network(nn.Module):
    """Trained and frozen weights, BatchNorm, and a floating buffer that is the state of a method."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("memory", torch.zeros(4))


def train(network: Network, steps: int) -> None:
    optimizer = torch.optim.SGD(network.trunk.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network.trunk(torch.randn(2, 2, 5, 5)).square().sum().backward()
        optimizer.step()
        network.memory += 1


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def test_what_is_averaged() -> None:
    statistics = ["trunk.1.running_mean", "trunk.1.running_var"]
    assert list(running_statistics(Network())) == statistics
    trained = [f"trunk.{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")]
    assert list(WeightAverage(Network(), 0.9).tensors) == [*trained, *statistics]


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_that_of_torch_with_a_decay_that_rises(decay: float) -> None:
    """torch's first update copies the weights, so that its n is one more than ours."""

    def update(averaged: list[Tensor], current: list[Tensor], number: Tensor | int) -> None:
        rising = min(decay, int(number) / (9 + int(number)))
        for one, other in zip(averaged, current, strict=True):
            one.copy_(rising * one.double() + (1 - rising) * other.double())

    torch.manual_seed(0)
    network = Network()
    average, expected = WeightAverage(network, decay), AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    expected.update_parameters(network)
    for _ in range(6):
        train(network, 1)
        average.update()
        expected.update_parameters(network)
    theirs = expected.module.state_dict()
    for name, tensor in average.tensors.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-5, atol=1e-6), name
        assert not torch.allclose(tensor, network.state_dict()[name]), name


def test_two_updates_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    average = WeightAverage(layer, 0.15)
    for value, expected in ((11.0, 0.1 * 1 + 0.9 * 11), (20.0, 0.15 * 10 + 0.85 * 20)):  # (1 + 1) / (10 + 1) is more
        nn.init.constant_(layer.weight, value)
        average.update()
        assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_a_restored_average_goes_on_as_it_would_have() -> None:
    torch.manual_seed(0)
    network = Network()
    average = WeightAverage(network, 0.9)
    train(network, 1)
    average.update()
    restored = WeightAverage(network, 0.9)
    restored.load(copy.deepcopy(average.tensors), 1)
    train(network, 1)
    for one in (average, restored):
        one.update()
    assert all(torch.equal(tensor, average.tensors[name]) for name, tensor in restored.tensors.items())


def test_other_tensors_are_in_place_for_the_block_alone() -> None:
    torch.manual_seed(0)
    network = Network()
    average = WeightAverage(network, 0.9)
    train(network, 3)
    average.update()
    before, parameters = snapshot(network), list(network.parameters())
    with pytest.raises(KeyboardInterrupt), with_tensors(network, average.tensors):
        inside = snapshot(network)
        raise KeyboardInterrupt
    after = snapshot(network)
    for name, tensor in inside.items():
        assert torch.equal(tensor, average.tensors.get(name, before[name])), name
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(inside["trunk.0.weight"], before["trunk.0.weight"])
    write_tensors(network, average.tensors)
    assert all(one is other for one, other in zip(parameters, network.parameters(), strict=True))
    assert torch.equal(network.state_dict()["trunk.0.weight"], average.tensors["trunk.0.weight"])
