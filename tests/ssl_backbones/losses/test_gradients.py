"""The gradients that SimCLR's table 2 writes down, against autograd.

The table has the gradient of the negative loss with respect to an anchor u on the sphere. The losses normalise their
input themselves, so autograd's gradient is the table's with its part along u taken off (and divided by the length).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses import info_nce, nt_xent


def sphere(count: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 4, generator=source, dtype=torch.float64), dim=1)


def on_the_sphere(gradient: Tensor, u: Tensor, length: float) -> Tensor:
    """What remains of the gradient at x = length * u when x is normalised first."""
    return (gradient - (gradient @ u) * u) / length


def check(loss: Tensor, x: Tensor, table: list[Tensor], length: float) -> None:
    """``table``: gradient of minus the loss of each anchor; the loss is the mean over anchors."""
    (found,) = torch.autograd.grad(loss, x)
    for row, u, expected in zip(found, F.normalize(x.detach(), dim=1), table, strict=True):
        torch.testing.assert_close(row, -on_the_sphere(expected, u, length) / len(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("length", [1.0, 2.5])
def test_nt_xent_of_an_anchor(length: float) -> None:
    """(1 - e+ / Z) / t v+ - sum_- (e- / Z) / t v-, with e = exp(u v / t) and Z the sum over all of them."""
    t, u, positives, negatives = 0.3, sphere(5, 0), sphere(5, 1), sphere(7, 2)
    x, table = (length * u).requires_grad_(), []
    for anchor, positive in zip(u, positives, strict=True):
        to_positive, to_negatives = (anchor @ positive / t).exp(), [(anchor @ v / t).exp() for v in negatives]
        z = to_positive + sum(to_negatives)
        pushed = sum(e / z / t * v for e, v in zip(to_negatives, negatives, strict=True))
        table.append((1 - to_positive / z) / t * positive - pushed)
    check(info_nce(x, positives, negatives, t), x, table, length)


def test_nt_xent_of_a_batch() -> None:
    """The same, and what each feature gets as the positive and as a negative of the others."""
    t, count, z = 0.3, 4, sphere(8, 0)
    p = torch.zeros(8, 8, dtype=torch.float64)
    for i in range(8):
        everyone = sum((z[i] @ z[j] / t).exp() for j in range(8) if j != i)
        for j in range(8):
            p[i, j] = 0 if i == j else (z[i] @ z[j] / t).exp() / everyone
    table = []
    for i in range(8):
        other = (i + count) % 8
        anchor = (1 - p[i, other]) / t * z[other] - sum(p[i, j] / t * z[j] for j in range(8) if j not in (i, other))
        asked = (1 - p[other, i]) / t * z[other] - sum(p[j, i] / t * z[j] for j in range(8) if j not in (i, other))
        table.append(anchor + asked)
    x = z.clone().requires_grad_()
    check(nt_xent(x[:count], x[count:], t), x, table, 1.0)
