"""Prototype updates worked by hand."""

from __future__ import annotations

import torch

from openworld.methods.ore.prototypes import Prototypes


def test_start_update_and_late_class() -> None:
    prototypes = Prototypes(3, 1)
    assert not prototypes.started
    prototypes.start(torch.tensor([[2.0], [4.0], [0.0]]), torch.tensor([True, True, False]))
    assert prototypes.present.tolist() == [True, True, False]
    prototypes.update(torch.tensor([[3.0], [0.0], [7.0]]), torch.tensor([True, False, True]), momentum=0.9)
    torch.testing.assert_close(prototypes.vectors, torch.tensor([[0.9 * 2 + 0.1 * 3], [4.0], [7.0]]))
    assert prototypes.present.all()


def test_absent_classes_as_zero_vectors_move_by_momentum() -> None:
    prototypes = Prototypes(2, 1, absent="zero")
    prototypes.start(torch.tensor([[2.0], [5.0]]), torch.tensor([True, False]))
    assert prototypes.present.all() and prototypes.vectors.tolist() == [[2.0], [0.0]]
    prototypes.update(torch.tensor([[2.0], [10.0]]), torch.tensor([True, True]), momentum=0.9)
    torch.testing.assert_close(prototypes.vectors, torch.tensor([[2.0], [1.0]]))


def test_nothing_seen_does_not_start() -> None:
    for absent in ("masked", "zero"):
        prototypes = Prototypes(2, 1, absent=absent)
        prototypes.start(torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool))
        assert not prototypes.started


def test_second_start_keeps_prototypes_of_classes_without_mean() -> None:
    prototypes = Prototypes(2, 1)
    prototypes.start(torch.tensor([[2.0], [3.0]]), torch.tensor([True, True]))
    prototypes.start(torch.tensor([[5.0], [0.0]]), torch.tensor([True, False]))
    assert prototypes.vectors.tolist() == [[5.0], [3.0]]
