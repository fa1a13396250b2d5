"""Losses against lightly, pytorch-metric-learning and the formula as a slow loop."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_backbones.losses import info_nce, nt_xent


def pair(count: int = 6, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, dim, dtype=torch.float64), torch.randn(count, dim, dtype=torch.float64)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_loop(temperature: float) -> None:
    z1, z2 = pair()
    z, total = torch.cat([z1, z2]), 0.0
    for i in range(12):
        positive = math.exp(cosine(z[i], z[(i + 6) % 12]) / temperature)
        everyone = sum(math.exp(cosine(z[i], z[j]) / temperature) for j in range(12) if j != i)
        total -= math.log(positive / everyone)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(total / 12, rel=1e-12)


def test_nt_xent_is_lightlys_and_pmls() -> None:
    lightly = pytest.importorskip("lightly.loss")
    pml = pytest.importorskip("pytorch_metric_learning.losses")
    z1, z2 = pair()
    ours = nt_xent(z1, z2, 0.3).item()
    assert ours == pytest.approx(lightly.NTXentLoss(temperature=0.3, memory_bank_size=0)(z1, z2).item(), rel=1e-9)
    assert ours == pytest.approx(pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=0.3))(z1, z2).item(), rel=1e-9)


@pytest.mark.parametrize("count", [2, 64])
def test_nt_xent_starts_at_ln_2n_minus_1(count: int) -> None:
    same = torch.ones(count, 8)
    assert nt_xent(same, same, 0.5).item() == pytest.approx(math.log(2 * count - 1), rel=1e-5)


def test_nt_xent_ignores_scale_and_order() -> None:
    z1, z2 = pair()
    order = torch.randperm(6)
    value = nt_xent(z1, z2, 0.2)
    assert nt_xent(7 * z1[order], 0.1 * z2[order], 0.2).item() == pytest.approx(value.item())
    assert nt_xent(z2, z1, 0.2).item() == pytest.approx(value.item())


def test_info_nce_is_the_loop() -> None:
    q, k = pair()
    bank = torch.randn(9, 5, dtype=torch.float64)
    total = 0.0
    for i in range(6):
        positive = math.exp(cosine(q[i], k[i]) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(cosine(q[i], n) / 0.2) for n in bank)))
    assert info_nce(q, k, bank, 0.2).item() == pytest.approx(total / 6, rel=1e-12)


def test_info_nce_is_lightlys() -> None:
    lightly = pytest.importorskip("lightly.loss")
    criterion = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(16, 5))
    q, k = (x.float() for x in pair())
    criterion(q, k)  # makes the bank
    bank = criterion.memory_bank.bank.clone()
    theirs = criterion(q, k).item()
    assert info_nce(q, k, bank, 0.2).item() == pytest.approx(theirs, rel=1e-5)


def test_info_nce_starts_at_ln_k_plus_1() -> None:
    same = torch.ones(4, 8)
    assert info_nce(same, same, torch.ones(4096, 8), 0.07).item() == pytest.approx(math.log(4097), rel=1e-4)


def test_empty_inputs() -> None:
    nothing = torch.zeros(0, 5, requires_grad=True)
    for loss in (nt_xent(nothing, nothing, 0.1), info_nce(nothing, nothing, torch.ones(3, 5), 0.1)):
        assert loss.item() == 0
        loss.backward()
    assert info_nce(torch.ones(2, 5), torch.ones(2, 5), torch.zeros(0, 5), 0.1).item() == 0


def test_full_precision_under_autocast() -> None:
    z1, z2 = (x.float() for x in pair(32, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, negatives = nt_xent(z1, z2, 0.05), info_nce(z1, z2, z1, 0.05)
    assert inside.dtype == negatives.dtype == torch.float32
    assert torch.equal(inside, nt_xent(z1, z2, 0.05))
    assert torch.equal(negatives, info_nce(z1, z2, z1, 0.05))
