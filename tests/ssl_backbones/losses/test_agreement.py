"""Losses without negatives against slow loops and cases worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses import (
    barlow_twins,
    byol_regression,
    dino_cross_entropy,
    distillation,
    negative_cosine,
    swapped_prediction,
)

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)


def draw(seed: int, dtype: torch.dtype = torch.float64, shape: tuple[int, int] = (6, 4)) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softmax(logits: list[float]) -> list[float]:
    votes = [math.exp(x) for x in logits]
    return [vote / sum(votes) for vote in votes]


def entropy(target: list[float], guess: list[float]) -> float:
    return -sum(t * math.log(g) for t, g in zip(target, guess, strict=True))


@DTYPES
def test_cosine_losses_are_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    p, z = draw(0, dtype), draw(1, dtype)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(p.double(), z.double(), strict=True)]
    assert negative_cosine(p, z).item() == pytest.approx(-sum(cosines) / 6, rel=tolerance, abs=tolerance)
    assert byol_regression(p, z).item() == pytest.approx(2 - 2 * sum(cosines) / 6, rel=tolerance)


def test_cosine_losses_by_hand() -> None:
    """Same, orthogonal and opposite directions, of any length."""
    p = torch.tensor([[2.0, 0.0]])
    for z, cosine in ((3 * p, 1.0), (torch.tensor([[0.0, 5.0]]), 0.0), (-p, -1.0)):
        assert negative_cosine(p, z).item() == -cosine
        assert byol_regression(p, z).item() == 2 - 2 * cosine


def test_nothing_is_detached() -> None:
    p, z = draw(0).requires_grad_(), draw(1).requires_grad_()
    for loss in (negative_cosine(p, z), byol_regression(p, z), barlow_twins(p, z), distillation(p, z)):
        assert all(slope.any() for slope in torch.autograd.grad(loss, [p, z]))
    (slope,) = torch.autograd.grad(negative_cosine(p, z.detach()), [p])
    assert slope.any()


@DTYPES
def test_barlow_twins_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    views = [draw(seed, dtype).double() for seed in (0, 1)]
    columns = []
    for z in views:
        columns.append([])
        for d in range(4):
            values = z[:, d].tolist()
            mean = sum(values) / 6
            variance = sum((value - mean) ** 2 for value in values) / 6
            columns[-1].append([(value - mean) / math.sqrt(variance + 1e-5) for value in values])
    total = 0.0
    for i in range(4):
        for j in range(4):
            c = sum(a * b for a, b in zip(columns[0][i], columns[1][j], strict=True)) / 6
            total += (c - 1) ** 2 if i == j else 0.0051 * c**2
    assert barlow_twins(draw(0, dtype), draw(1, dtype)).item() == pytest.approx(total, rel=tolerance)


def test_barlow_twins_by_hand() -> None:
    """Whitened equal views cost nothing; opposite ones (1 + 1)^2 a dimension; collapsed ones 1 a dimension."""
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64) * 100
    assert barlow_twins(z, z).item() == pytest.approx(0, abs=1e-12)
    assert barlow_twins(z, -z).item() == pytest.approx(8, rel=1e-6)
    assert barlow_twins(torch.ones(4, 2), torch.ones(4, 2)).item() == pytest.approx(2)
    assert barlow_twins(torch.ones(1, 2), torch.ones(1, 2)).item() == pytest.approx(2)


def test_barlow_twins_standardises_over_the_whole_batch() -> None:
    """Two halves on their own are another loss: this is why several processes gather before it."""
    z1, z2 = draw(0, shape=(8, 4)), draw(1, shape=(8, 4))
    halves = (barlow_twins(z1[:4], z2[:4]) + barlow_twins(z1[4:], z2[4:])) / 2
    assert abs(halves.item() - barlow_twins(z1, z2).item()) > 0.1


@DTYPES
def test_dino_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    student, teacher = [draw(s, dtype) for s in range(4)], [draw(10 + t, dtype) for t in range(2)]
    center, values = draw(20, dtype)[:1], []
    for t in range(2):
        for s in range(4):
            for i in range(6):
                if s != t:
                    target = softmax([(float(x) - float(c)) / 0.25 for x, c in zip(teacher[t][i], center[0])])
                    values.append(entropy(target, softmax([float(x) / 0.5 for x in student[s][i]])))
    expected = sum(values) / len(values)
    for shape in (center, center[0]):
        found = dino_cross_entropy(student, teacher, 0.5, 0.25, shape)
        assert found.item() == pytest.approx(expected, rel=5 * tolerance)


def test_dino_starts_at_ln_k() -> None:
    flat = torch.zeros(2, 65536)
    found = dino_cross_entropy([flat, flat], [flat, flat], 0.1, 0.04, torch.zeros(65536))
    assert found.item() == pytest.approx(math.log(65536), rel=1e-6)


def test_dino_without_another_view_is_zero() -> None:
    logits = draw(0).requires_grad_()
    loss = dino_cross_entropy([logits], [logits.detach()], 0.1, 0.04, torch.zeros(4).double())
    loss.backward()
    assert loss.item() == 0
    assert swapped_prediction([logits]).item() == 0


@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_distillation_is_the_loop_and_torchs_divergence(
    temperature: float, dtype: torch.dtype, tolerance: float
) -> None:
    student, teacher, total = draw(0, dtype), draw(1, dtype), 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        total += entropy(softmax([x / temperature for x in t]), softmax([x / temperature for x in s]))
    found = distillation(student, teacher, temperature)
    assert found.item() == pytest.approx(total / 6, rel=5 * tolerance)
    p = F.softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(F.log_softmax(student / temperature, dim=1), p, reduction="batchmean")
    own = -(p * p.log()).sum(dim=1).mean()
    assert found.item() == pytest.approx((divergence + own).item(), rel=5 * tolerance)
    assert distillation(teacher, teacher, temperature).item() == pytest.approx(own.item(), rel=5 * tolerance)
