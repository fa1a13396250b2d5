"""LARS against its formula, the schedule at its corners."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_backbones.optim import (
    LARS,
    build_optimizer,
    cosine_momentum,
    multi_step,
    set_learning_rates,
    warmup_cosine,
)
from ssl_backbones.options import PretrainOptions


def test_lars_is_the_formula() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
    groups = [
        {"params": [weight], "weight_decay": 0.1, "adapt": True},
        {"params": [bias], "weight_decay": 0.0, "adapt": False},
    ]
    optimizer = LARS(groups, lr=0.5, momentum=0.9)
    w, b, vw, vb = weight.detach().clone(), bias.detach().clone(), torch.zeros(3, 4), torch.zeros(4)
    for _ in range(3):
        weight.grad, bias.grad = torch.randn(3, 4), torch.randn(4)
        g = weight.grad + 0.1 * w
        vw = 0.9 * vw + g * (1e-3 * w.norm() / g.norm())
        vb = 0.9 * vb + bias.grad
        w, b = w - 0.5 * vw, b - 0.5 * vb
        optimizer.step()
    assert torch.allclose(weight, w, atol=1e-6) and torch.allclose(bias, b, atol=1e-6)


def test_lars_leaves_zero_norms_alone() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=1.0).step()
    assert torch.equal(weight.detach(), -torch.ones(2, 2))


def test_choice() -> None:
    group = [{"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.0, "adapt": True}]
    assert isinstance(build_optimizer(group, PretrainOptions()), torch.optim.SGD)
    assert isinstance(build_optimizer(group, PretrainOptions(optimizer="lars")), LARS)


def test_schedule() -> None:
    rates = [warmup_cosine(step, steps=20, warmup=4, lr=1.0) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.02
    assert warmup_cosine(0, steps=1, warmup=0, lr=0.3) == 0.3
    assert warmup_cosine(20, steps=20, warmup=4, lr=1.0, final_lr=0.1) == pytest.approx(0.1)
    assert warmup_cosine(12, steps=20, warmup=4, lr=1.0, final_lr=0.1) == pytest.approx(0.55)


def test_milestones() -> None:
    rates = [multi_step(step, milestones=[3, 5], warmup=2, lr=1.0) for step in range(7)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


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
