"""LARS against its formula, the schedules at their corners."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openworld.runtime.optim import LARS, half_cosine, make_optimizer, multi_step, set_learning_rate, warmup_cosine


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


def test_momentum_is_that_of_the_optimiser() -> None:
    group = {"params": [nn.Parameter(torch.ones(1))], "weight_decay": 0.1}
    made = [make_optimizer(name, [dict(group)], lr=0.5, momentum=0.8) for name in ("sgd", "lars", "adamw")]
    assert [type(each) for each in made] == [torch.optim.SGD, LARS, torch.optim.AdamW]
    sgd, lars, adamw = (each.param_groups[0] for each in made)
    assert sgd["momentum"] == lars["momentum"] == 0.8 and adamw["betas"] == (0.8, 0.999)
    assert [each["lr"] for each in (sgd, lars, adamw)] == [0.5] * 3
    assert [each["weight_decay"] for each in (sgd, lars, adamw)] == [0.1] * 3


def test_warmup_then_cosine() -> None:
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


def test_half_a_cosine_of_numbers_and_of_shares() -> None:
    assert [half_cosine(done, 4) for done in (0, 1, 2, 4)] == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, 0])
    assert half_cosine(0.25) == half_cosine(1, 4)


def test_groups_scale_the_rate_or_keep_the_peak() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], **extra} for extra in ({}, {"lr_scale": 0.1})]
    groups.append({"params": [nn.Parameter(torch.ones(1))], "lr_scale": 0.5, "constant_lr": True})
    optimizer = make_optimizer("sgd", groups, lr=9.0, momentum=0.0)
    set_learning_rate(optimizer, 2.0, peak=4.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.0, 0.2, 2.0])
