"""Optimiser and schedules as the options of a pretraining say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openworld.runtime.optim import LARS
from ssl_backbones.optim import build_optimizer, cosine_momentum, set_learning_rates
from ssl_backbones.options import PretrainOptions


def test_choice() -> None:
    group = [{"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0, "adapt": True}]
    assert isinstance(build_optimizer(group, PretrainOptions()), torch.optim.SGD)
    assert isinstance(build_optimizer(group, PretrainOptions(optimizer="lars")), LARS)


def test_momentum_rises_to_one() -> None:
    momenta = [cosine_momentum(step, steps=8, base=0.96) for step in (0, 2, 4, 8)]
    assert momenta == pytest.approx([0.96, 1 - 0.04 * (1 + 0.5**0.5) / 2, 0.98, 1.0])
    assert cosine_momentum(0, steps=0, base=0.9) == pytest.approx(0.9)


def test_groups_may_scale_or_keep_the_rate() -> None:
    follows, small, constant = (nn.Parameter(torch.ones(1)) for _ in range(3))
    groups = [
        {"params": [follows]},
        {"params": [small], "lr_scale": 0.1},
        {"params": [constant], "constant_lr": True},
    ]
    chosen = PretrainOptions(steps=10, warmup=0, lr=2.0)
    optimizer = build_optimizer(groups, chosen)
    assert set_learning_rates(optimizer, 5, chosen) == pytest.approx(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1, 2.0])
    chosen = PretrainOptions(steps=10, warmup=0, lr=2.0, lr_milestones=[5])
    set_learning_rates(optimizer, 5, chosen)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02, 2.0])
