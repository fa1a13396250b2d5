"""The measure beside its control."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_backbones.probes.alignment import alignment_row, alignment_table


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_row_is_the_loop() -> None:
    x, y = draw(7, 3, seed=0), draw(7, 3, seed=1)
    views = [[[value / math.hypot(*row) for value in row] for row in view.tolist()] for view in (x, y)]
    aligned = sum(math.dist(a, b) ** 2 for a, b in zip(*views, strict=True)) / 7
    spread = 0.0
    for view in views:
        values = [math.exp(-2 * math.dist(view[i], view[j]) ** 2) for i in range(7) for j in range(7) if i != j]
        spread += math.log(sum(values) / 42) / 2
    row = alignment_row(x.requires_grad_(), y)
    assert row["alignment"] == pytest.approx(aligned, rel=1e-12)
    assert row["uniformity"] == pytest.approx(spread, rel=1e-12)


def test_table_tells_good_from_collapsed_from_untrained() -> None:
    """Good: views agree and spread. Collapsed: they agree only. Untrained, here noise: they spread only."""
    x, other, noise = draw(200, 64, seed=0), draw(200, 64, seed=1), 0.1 * draw(200, 64, seed=2)
    good = alignment_table((x, x + noise), (x, other))
    collapsed = alignment_table((torch.ones(200, 64), torch.ones(200, 64)), (x, other))
    assert good["trained"]["alignment"] < 0.05 < 1.5 < good["untrained"]["alignment"]
    assert good["trained"]["uniformity"] < -3.5 and good["untrained"]["uniformity"] < -3.5
    assert collapsed["trained"] == pytest.approx({"alignment": 0, "uniformity": 0}, abs=1e-6)
    assert collapsed["untrained"] == good["untrained"] and good["samples"] == 200
