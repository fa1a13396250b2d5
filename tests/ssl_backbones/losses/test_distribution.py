"""Alignment and uniformity against slow loops and values worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_backbones.losses import alignment, uniformity

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)


def draw(seed: int, dtype: torch.dtype = torch.float64, shape: tuple[int, int] = (6, 4)) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(x: Tensor) -> list[list[float]]:
    return [[value / math.hypot(*row) for value in row] for row in x.tolist()]


@DTYPES
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_is_the_loop(alpha: float, dtype: torch.dtype, tolerance: float) -> None:
    x, y = draw(0, dtype), draw(1, dtype)
    expected = sum(math.dist(a, b) ** alpha for a, b in zip(unit(x), unit(y), strict=True)) / 6
    assert alignment(x, y, alpha).item() == pytest.approx(expected, rel=tolerance)


@DTYPES
@pytest.mark.parametrize("t", [1.0, 2.0])
def test_uniformity_is_the_loop(t: float, dtype: torch.dtype, tolerance: float) -> None:
    x = draw(0, dtype)
    rows = unit(x)
    values = [math.exp(-t * math.dist(rows[i], rows[j]) ** 2) for i in range(6) for j in range(i)]
    assert uniformity(x, t).item() == pytest.approx(math.log(sum(values) / 15), rel=2 * tolerance)


def test_alignment_and_uniformity_by_hand() -> None:
    """Opposite points are at distance 2; a collapsed network is at 0 for both; equal pairs leave no NaN behind."""
    x = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert alignment(x, -x).item() == 4 and alignment(x, -x, alpha=1).item() == 2
    assert uniformity(x).item() == pytest.approx(-8) and uniformity(x, t=1).item() == pytest.approx(-4)
    ones = torch.ones(5, 3, requires_grad=True)
    loss = alignment(ones, 2 * ones, alpha=1) + uniformity(ones)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and ones.grad is not None and torch.isfinite(ones.grad).all()


def test_uniformity_of_the_sphere() -> None:
    """In many dimensions uniform points are at squared distance 2, so the value comes near -2t."""
    assert uniformity(draw(0, shape=(400, 1000))).item() == pytest.approx(-4, abs=0.02)
    assert uniformity(draw(0, shape=(1, 3))).item() == 0
