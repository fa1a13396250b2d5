"""Batch norm over all processes: which norms it replaces, and its numbers against torch's with the joined batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from openworld.runtime import batch_norm, distributed
from openworld.runtime.batch_norm import RankBatchNorm1d, RankBatchNorm2d, synchronise_batch_norm


def network() -> nn.Sequential:
    """A norm that trains, a frozen one, one without scale, and one of a head."""
    return nn.Sequential(
        nn.BatchNorm2d(3, eps=1e-2, momentum=0.3),
        nn.BatchNorm2d(3).requires_grad_(False),
        nn.BatchNorm2d(3, affine=False),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48)),
    )


def kinds(model: nn.Sequential) -> list[type[nn.Module]]:
    return [type(model[0]), type(model[1]), type(model[2]), type(model[3][1])]


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("only_trained", [False, True])
def test_kinds_names_and_tensors(on_gpu: bool, only_trained: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "_is_on_gpu", lambda model: on_gpu)
    model = network()
    before = model.state_dict(keep_vars=True)
    synchronise_batch_norm(model, only_trained=only_trained)
    wide, flat = (nn.SyncBatchNorm, nn.SyncBatchNorm) if on_gpu else (RankBatchNorm2d, RankBatchNorm1d)
    kept = nn.BatchNorm2d if only_trained else wide
    assert kinds(model) == [wide, kept, kept, flat]
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert (model[0].eps, model[0].momentum) == (1e-2, 0.3)


def test_a_single_process_keeps_its_norms() -> None:
    model = network()
    expected = kinds(model)
    synchronise_batch_norm(model)
    assert kinds(model) == expected


@pytest.mark.parametrize("momentum", [0.1, None])
def test_two_processes_with_the_same_batch_are_one_with_it_twice(
    momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs, gradients and statistics of two steps. The other process is played by repeating what this one sends."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_rows", lambda rows: torch.cat([rows, rows]))
    monkeypatch.setattr(distributed, "mean_over_ranks", lambda tensor: tensor)
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum).double()
    nn.init.uniform_(plain.weight, 0.5, 2)
    joined = nn.Sequential(copy.deepcopy(plain))
    synchronise_batch_norm(joined)
    assert isinstance(joined[0], RankBatchNorm2d)
    for _ in range(2):
        images, factors = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
        once, twice = images.clone().requires_grad_(), torch.cat([images, images]).requires_grad_()
        plain.zero_grad()
        joined.zero_grad()
        output, expected = joined(once), plain(twice)
        torch.testing.assert_close(torch.cat([output, output]), expected)
        output.backward(factors)
        expected.backward(torch.cat([factors, factors]))
        torch.testing.assert_close(torch.cat([once.grad, once.grad]), twice.grad)
        torch.testing.assert_close(2 * joined[0].weight.grad, plain.weight.grad)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(joined[0].state_dict()[name], value)
