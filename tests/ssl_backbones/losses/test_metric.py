"""Losses of pairs and triplets against slow loops and numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_backbones.losses import margin_triplet, max_margin_contrastive, n_pair, nt_logistic, triplet

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)


def draw(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def distance(a: Tensor, b: Tensor) -> float:
    return math.dist(a.tolist(), b.tolist())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


@DTYPES
@pytest.mark.parametrize("form", ["hadsell", "squared"])
def test_max_margin_is_the_loop(form: str, dtype: torch.dtype, tolerance: float) -> None:
    x1, x2, total = draw(0, dtype), draw(1, dtype), 0.0
    together = [True, False, False, True, False, False]
    for a, b, same in zip(x1, x2, together, strict=True):
        d = distance(a, b)
        total += d**2 if same else (max(0, 3 - d) ** 2 if form == "hadsell" else max(0, 3 - d**2))
    found = max_margin_contrastive(x1, x2, torch.tensor(together), 3.0, form=form)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(total / 6, rel=tolerance)


def test_max_margin_forms_by_hand() -> None:
    """d = 1 and margin 20: (20 - 1)^2 = 361 and 20 - 1 = 19. Where they are together both are d^2."""
    x1, x2, apart = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([False])
    assert max_margin_contrastive(x1, x2, apart, 20.0).item() == 361
    assert max_margin_contrastive(x1, x2, apart, 20.0, form="squared").item() == 19
    assert max_margin_contrastive(x1, x2, ~apart, 20.0).item() == 1
    assert max_margin_contrastive(x1, x2, ~apart, 20.0, form="squared").item() == 1


def test_equal_features_apart_have_a_finite_gradient() -> None:
    x = torch.ones(1, 3, requires_grad=True)
    loss = max_margin_contrastive(x, torch.ones(1, 3), torch.tensor([False]), 2.0)
    loss.backward()
    assert loss.item() == 4 and x.grad is not None and torch.isfinite(x.grad).all()


@DTYPES
def test_triplet_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    a, p, n = (draw(seed, dtype) for seed in range(3))
    values = [max(0.0, distance(a[i], p[i]) ** 2 - distance(a[i], n[i]) ** 2 + 1) for i in range(6)]
    positive = [value for value in values if value > 0]
    assert 0 < len(positive) < 6
    assert triplet(a, p, n, 1.0).item() == pytest.approx(sum(values) / 6, rel=tolerance)
    assert triplet(a, p, n, 1.0, reduction="sum").item() == pytest.approx(sum(values), rel=tolerance)
    found = triplet(a, p, n, 1.0, reduction="nonzero")
    assert found.item() == pytest.approx(sum(values) / len(positive), rel=tolerance)


def test_satisfied_triplets_cost_nothing() -> None:
    near, far = torch.zeros(2, 3), torch.full((2, 3), 9.0)
    for reduction in ("mean", "sum", "nonzero"):
        assert triplet(near, near, far, 1.0, reduction=reduction).item() == 0  # type: ignore[arg-type]


@DTYPES
def test_n_pair_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    """Sohn's own form: log(1 + sum over other classes of exp(a p_other - a p_own))."""
    a, p, total = draw(0, dtype), draw(1, dtype), 0.0
    product = (a.double() @ p.double().T).tolist()
    for i in range(6):
        total += math.log(1 + sum(math.exp(product[i][j] - product[i][i]) for j in range(6) if j != i))
    assert n_pair(a, p).item() == pytest.approx(total / 6, rel=tolerance)


@DTYPES
def test_logistic_and_margin_on_cosines_are_the_loops(dtype: torch.dtype, tolerance: float) -> None:
    u, p, n = (draw(seed, dtype) for seed in range(3))
    logistic, margin = 0.0, 0.0
    for i in range(6):
        to_positive, to_negative = cosine(u[i], p[i]), cosine(u[i], n[i])
        logistic += math.log(1 + math.exp(-to_positive / 0.5)) + math.log(1 + math.exp(to_negative / 0.5))
        margin += max(0.0, to_negative - to_positive + 0.3)
    assert nt_logistic(u, p, n, 0.5).item() == pytest.approx(logistic / 6, rel=tolerance)
    assert margin_triplet(u, p, n, 0.3).item() == pytest.approx(margin / 6, rel=tolerance)


def test_logistic_starts_at_two_coins() -> None:
    u, orthogonal = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert nt_logistic(u, orthogonal, -orthogonal, 0.1).item() == pytest.approx(2 * math.log(2))
