"""The probe against a slow loop and a case by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_backbones.probes import knn
from ssl_backbones.probes.knn import knn_accuracy, knn_predict, majority_share


def test_is_the_loop() -> None:
    torch.manual_seed(0)
    queries, bank, labels = torch.randn(7, 4), torch.randn(20, 4), torch.randint(0, 3, (20,))
    found = knn_predict(queries, bank, labels, k=5, temperature=0.1)
    for query, answer in zip(queries, found.tolist(), strict=True):
        similar = [float(query @ b / (query.norm() * b.norm())) for b in bank]
        nearest = sorted(range(20), key=lambda i: -similar[i])[:5]
        votes = [sum(math.exp(similar[i] / 0.1) for i in nearest if labels[i] == c) for c in range(3)]
        assert answer == votes.index(max(votes))


def test_by_hand() -> None:
    """At T = 1 two samples at 60 degrees (2 e^0.5) outvote one at 0 degrees (e^1); at T = 0.1 they do not."""
    bank = torch.tensor([[1.0, 0], [0.5, math.sqrt(0.75)], [0.5, -math.sqrt(0.75)]])
    labels, query = torch.tensor([0, 1, 1]), torch.tensor([[3.0, 0]])
    assert knn_predict(query, bank, labels, k=3, temperature=1.0).tolist() == [1]
    assert knn_predict(query, bank, labels, k=3, temperature=0.1).tolist() == [0]
    assert knn_predict(query, bank, labels, k=1, temperature=1.0).tolist() == [0]


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_pieces_are_the_whole(leave_one_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(11) % 3

    def predict() -> torch.Tensor:
        return knn_predict(features, features, labels, k=3, temperature=0.1, leave_one_out=leave_one_out)

    whole = predict()
    monkeypatch.setattr(knn, "QUERIES", 4)
    assert torch.equal(predict(), whole)


def test_leave_one_out_never_asks_itself() -> None:
    features, labels = torch.eye(4), torch.tensor([0, 1, 0, 1])
    pairs = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert knn_accuracy(pairs, torch.tensor([0, 0, 1, 1]), k=1, temperature=0.1) == 1
    assert knn_accuracy(pairs, torch.tensor([0, 1, 0, 1]), k=1, temperature=0.1) == 0
    assert 0 <= knn_accuracy(features, labels, k=200, temperature=0.01) <= 1


def test_majority_and_no_queries() -> None:
    labels = torch.tensor([2, 2, 0, 2])
    assert majority_share(labels) == pytest.approx(0.75)
    assert knn_predict(torch.zeros(0, 2), torch.ones(4, 2), labels, k=2, temperature=0.1).shape == (0,)
