"""Averaged gradients: two gloo processes against the mean of what each computes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from openworld.runtime.gradients import GradientAverage
from tests.two_processes import TwoProcesses


class Net(nn.Module):
    """A layer that is used twice, one that only rank 0 uses, an unused one, a frozen one, and one in channels last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.unused = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.some = nn.Linear(4, 4)
        self.wide = nn.Linear(4, 5, dtype=torch.float64)

    def forward(self, images: Tensor, rank: int) -> Tensor:
        features = self.frozen(self.first(images)).mean(dim=(2, 3)).relu()
        features = self.twice(self.twice(features).relu())
        if rank == 0:
            features = features + self.some(features)
        return self.wide(features.double()).square().mean()


def images(rank: int, micro_batch: int) -> Tensor:
    return torch.randn(2 + rank, 3, 5, 6, generator=torch.Generator().manual_seed(10 * rank + micro_batch))


def gradients(rank: int, micro_batches: int) -> dict[str, Tensor | None]:
    """Of one process alone."""
    net = Net()
    for number in range(micro_batches):
        net(images(rank, number), rank).backward()
    return {name: parameter.grad for name, parameter in net.named_parameters()}


CASES = {"one message": (1, 10**6), "many messages": (1, 100), "one per parameter": (2, 1), "micro-batches": (3, 10**6)}


@contextmanager
def recorded_messages(net: Net) -> Iterator[list[tuple[bool, int]]]:
    """Of each message whether the gradient of the first layer was there already, and its bytes."""
    sent: list[tuple[bool, int]] = []
    add_up = dist.all_reduce

    def all_reduce(tensor: Tensor, **named: Any) -> Any:
        sent.append((net.first.weight.grad is not None, tensor.nbytes))
        return add_up(tensor, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", all_reduce)
        yield sent


def every_case(rank: int) -> dict[str, Any]:
    """What one process finds."""
    found: dict[str, Any] = {}
    for name, (micro_batches, bucket_bytes) in CASES.items():
        net = Net()
        average = GradientAverage(net.parameters(), backwards=micro_batches, bucket_bytes=bucket_bytes)
        with recorded_messages(net) as sent, average:
            for step in range(2):
                net.zero_grad(set_to_none=True)
                sent.clear()
                for number in range(micro_batches):
                    net(images(rank, number), rank).backward()
                average.wait()
                averaged = {key: value.grad for key, value in net.named_parameters()}
                found[f"{name} {step}"] = {"gradients": averaged, "sent": list(sent)}
        assert not any(parameter._post_accumulate_grad_hooks for parameter in net.parameters())
    return found


@pytest.fixture(scope="module")
def found(two_processes: TwoProcesses) -> list[dict[str, Any]]:
    return two_processes.run(every_case)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("name", list(CASES))
def test_each_process_has_the_mean_of_both(found: list[dict[str, Any]], name: str, step: int) -> None:
    """To the last bit; what one process has no gradient of counts as zero there, what none has stays without."""
    alone = [gradients(rank, CASES[name][0]) for rank in range(2)]
    for one in found:
        averaged = one[f"{name} {step}"]["gradients"]
        for key, gradient in averaged.items():
            parts = [each[key] for each in alone if each[key] is not None]
            if not parts:
                assert gradient is None and key.startswith(("frozen", "unused"))
            else:
                assert len(parts) == (1 if key.startswith("some") else 2)
                assert torch.equal(gradient, torch.stack(parts).sum(0) / 2), key


def test_messages_go_while_the_backward_pass_runs(found: list[dict[str, Any]]) -> None:
    """The message of the last layer goes before the first layer has its gradient.

    Those behind an unused layer wait for the end, because all processes send in the same order.
    """
    for one in found:
        late = [first_is_there for first_is_there, _ in one["many messages 0"]["sent"]]
        assert not late[0] and late[-1] and late == sorted(late)


def test_messages_go_with_the_last_micro_batch(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert [late for late, _ in one["micro-batches 0"]["sent"]] == [True, True]  # one for each dtype


def test_the_messages_hold_the_gradients_and_a_count_of_each(found: list[dict[str, Any]]) -> None:
    trained = [parameter for parameter in Net().parameters() if parameter.requires_grad]
    expected = sum((parameter.numel() + 1) * parameter.element_size() for parameter in trained)
    sent = [one[f"{name} 1"]["sent"] for one in found for name in CASES]
    assert {sum(size for _, size in messages) for messages in sent} == {expected}
    assert len(found[0]["one per parameter 0"]["sent"]) == len(trained)


def test_one_process_keeps_its_gradients() -> None:
    net = Net()
    with GradientAverage(net.parameters()) as average:
        net(images(0, 0), 0).backward()
        average.wait()
    for key, gradient in gradients(0, 1).items():
        mine = net.get_parameter(key).grad
        assert (mine is None) == (gradient is None)
        assert mine is None or gradient is None or torch.equal(mine, gradient)
