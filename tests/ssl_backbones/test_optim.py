"""LARS against its formula, the schedule at its corners."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_backbones.optim import LARS, build_optimizer, warmup_cosine
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
