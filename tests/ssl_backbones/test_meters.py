"""Collapse meters against their definitions and cases by hand."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn

from ssl_backbones.meters import ROWS, CollapseMeter, effective_rank, watched


def slow_rank(features: np.ndarray) -> float:
    """Definition 1 of Roy and Vetterli (2007), value by value."""
    values = np.linalg.svd(features, compute_uv=False)
    shares = [value / sum(values) for value in values]
    return float(np.exp(-sum(share * np.log(share) for share in shares if share > 0)))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4), (4, 1)])
def test_effective_rank_is_its_definition(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert effective_rank(features) == pytest.approx(slow_rank(features.double().numpy()), rel=1e-6)


def test_effective_rank_by_hand() -> None:
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(7, 3)) == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.zeros(4, 3)) == effective_rank(torch.zeros(0, 3)) == 0
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0]))  # shares 3/4 and 1/4
    assert effective_rank(two) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)


def test_watching_costs_no_forward_pass_and_ends() -> None:
    network = nn.Linear(3, 2)
    with watched(network, on=False) as nothing:
        network(torch.zeros(4, 3))
    with watched(network) as seen:
        first, second = network(torch.zeros(4, 3)), network(torch.ones(2, 3))
        network(torch.ones(1, 2, 3))  # no features: three-dimensional
    network(torch.zeros(4, 3))
    assert nothing == []
    assert len(seen) == 2 and not seen[0].requires_grad
    assert torch.equal(seen[0], first) and torch.equal(seen[1], second)


def test_only_so_many_rows_are_measured() -> None:
    meter = CollapseMeter()
    rows = torch.randn(3 * ROWS, 4, generator=torch.Generator().manual_seed(1))
    assert meter.measure(list(rows.split(100))) == meter.measure([rows[:ROWS]])
    last = meter.last
    assert meter.measure([]) == {} and meter.last == last
    assert last["feature_std"] == pytest.approx(1, abs=0.1)


def test_collapse_is_said_once_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    meter, source = CollapseMeter(), torch.Generator().manual_seed(2)
    healthy, few = torch.randn(20, 8, generator=source), torch.randn(20, 1, generator=source).expand(20, 8)
    looks = [healthy, few, few, healthy, few, few, few, few]  # three in a row count
    with caplog.at_level(logging.WARNING):
        said = [meter.judge(step, meter.measure([rows])) for step, rows in enumerate(looks, 1)]
    assert said == [False] * 6 + [True, False]
    assert caplog.text.count("collapsed at step 7") == 1
    assert meter.summary()["first_rank"] == pytest.approx(effective_rank(healthy))
    assert meter.summary() | {"effective_rank": None} == {
        "collapsed_at": 7,
        "first_rank": meter.first_rank,
        "feature_std": meter.last["feature_std"],
        "effective_rank": None,
    }
    other = CollapseMeter()
    other.load_state(meter.state())
    assert other.summary() == meter.summary() and other.state() == meter.state()


def test_what_counts_as_collapsed() -> None:
    def at_last(numbers: dict[str, float], *, first_rank: float | None = None, judging: bool = True) -> bool:
        meter = CollapseMeter(judging=judging)
        meter.first_rank = first_rank
        return [meter.judge(step, numbers) for step in range(3)][-1]

    assert at_last({"spread": 0.001})  # a method's own outputs, where its features are not seen
    assert not at_last({}) and not at_last({"spread": 0.1})
    for rank, first_rank, collapsed in ((10.2, 151.7, True), (6.0, 45.0, True), (30.0, 151.7, False)):  # measured
        assert at_last({"effective_rank": rank}, first_rank=first_rank) is collapsed
    assert at_last({"effective_rank": 6.9}, first_rank=42) and not at_last({"effective_rank": 7.1}, first_rank=42)
    assert at_last({"effective_rank": 1.1}, first_rank=1.5) and not at_last({"effective_rank": 1.3}, first_rank=1.5)
    assert not at_last({"effective_rank": 1.0, "feature_std": 0.0}, first_rank=40, judging=False)
