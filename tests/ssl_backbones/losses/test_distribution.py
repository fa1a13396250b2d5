"""Alignment, uniformity and the generalised contrastive loss against slow loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses import alignment, generalised_contrastive, sliced_wasserstein, uniformity
from ssl_backbones.losses.distribution import _prior_and_directions

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


@DTYPES
def test_sliced_wasserstein_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    x, prior = draw(0, dtype), draw(1, dtype)
    directions = torch.linalg.qr(draw(2)[:4])[0].to(dtype)
    total = 0.0
    for p in range(4):
        ours = sorted(sum(float(x[i, d]) * float(directions[d, p]) for d in range(4)) for i in range(6))
        theirs = sorted(sum(float(prior[i, d]) * float(directions[d, p]) for d in range(4)) for i in range(6))
        total += sum((a - b) ** 2 for a, b in zip(ours, theirs, strict=True))
    assert sliced_wasserstein(x, prior, directions).item() == pytest.approx(total / 24, rel=5 * tolerance)


def test_sliced_wasserstein_on_the_line_is_scipys() -> None:
    """Points that are all shifted by c: Wasserstein-1 is c, Wasserstein-2 squared c^2."""
    x, one = draw(0, shape=(50, 1)), torch.ones(1, 1, dtype=torch.float64)
    distance = wasserstein_distance(x[:, 0].numpy(), (x[:, 0] + 0.7).numpy())
    shuffled = (x + 0.7)[torch.randperm(50)]
    assert sliced_wasserstein(x, shuffled, one).item() == pytest.approx(distance**2, rel=1e-9)
    assert sliced_wasserstein(x, x.flip(0), one).item() == 0


@DTYPES
def test_generalised_logsumexp_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    z1, z2 = draw(0, dtype), draw(1, dtype)
    first, second = unit(z1), unit(z2)
    aligned = sum(math.dist(a, b) ** 2 for a, b in zip(first, second, strict=True)) / 24 / 2
    spread = 0.0
    for a in first + second:
        dots = [sum(x * y for x, y in zip(a, b, strict=True)) for b in first + second]
        spread += (math.log(sum(math.exp(dot / 0.2) for dot in dots)) - math.log(4)) / 12
    found = generalised_contrastive(z1, z2, distribution="logsumexp", distribution_weight=0.3, temperature=0.2)
    assert found.item() == pytest.approx(aligned + 0.3 * spread, rel=5 * tolerance)


@pytest.mark.parametrize("distribution", ["normal", "hypersphere", "hypercube"])
def test_generalised_sliced_is_its_parts(distribution: str) -> None:
    z1, z2 = draw(0), draw(1)
    prior, directions = _prior_and_directions(torch.Size((12, 4)), distribution, torch.Generator().manual_seed(3))
    if distribution == "hypersphere":
        z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    expected = (z1 - z2).square().mean() / 2 + 5 * sliced_wasserstein(torch.cat([z1, z2]), prior, directions)
    found = generalised_contrastive(
        draw(0),
        draw(1),
        distribution=distribution,  # type: ignore[arg-type]
        distribution_weight=5.0,
        generator=torch.Generator().manual_seed(3),
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_priors_are_what_they_are_called() -> None:
    size = torch.Size((4000, 3))
    normal, cube, sphere = (
        _prior_and_directions(size, name, torch.Generator().manual_seed(0))
        for name in ("normal", "hypercube", "hypersphere")
    )
    assert normal[0].mean().abs() < 0.05 and normal[0].std().item() == pytest.approx(1, rel=0.03)
    assert cube[0].abs().max() <= 1 and cube[0].var().item() == pytest.approx(1 / 3, rel=0.05)
    torch.testing.assert_close(sphere[0].norm(dim=1), torch.ones(4000, dtype=torch.float64))
    for _, directions in (normal, cube, sphere):
        torch.testing.assert_close(directions.T @ directions, torch.eye(3, dtype=torch.float64))


def test_features_that_follow_the_distribution_cost_less() -> None:
    """Uniform on the sphere against a collapsed point and against a half sphere."""
    even = draw(0, shape=(256, 3))
    half, point = torch.cat([even[:, :2], even[:, 2:].abs()], dim=1), torch.ones(256, 3, dtype=torch.float64)
    values = [
        generalised_contrastive(x, x, distribution="hypersphere", generator=torch.Generator().manual_seed(1)).item()
        for x in (even, half, point)
    ]
    assert values[0] < values[1] / 2 < values[2] / 4
