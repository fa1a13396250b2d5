"""Teacher, queue, bank, prototypes, centre and clusters against cases worked by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from ssl_backbones.state import Bank, Center, Clusters, Prototypes, Queue, Teacher


def test_teacher_follows() -> None:
    torch.manual_seed(0)
    encoder, head = nn.Linear(3, 4).double(), nn.BatchNorm1d(4).double()
    student, teacher = nn.Sequential(encoder, head), Teacher(encoder, head)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    teacher.follow(encoder, head, momentum=0.99)
    assert len(before) == 4
    for old, now, s in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.99 * old + (1 - 0.99) * s, rtol=1e-14, atol=1e-15)
        assert not now.requires_grad
    x = torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():
        encoder.load_state_dict(teacher.network[0].state_dict())
        head.load_state_dict(teacher.network[1].state_dict())
    assert torch.equal(teacher(x), student(x))  # one after the other


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.99, 1.0])
def test_a_teacher_that_has_arrived_stays(momentum: float) -> None:
    student = nn.Linear(7, 5)
    teacher = Teacher(student)
    teacher.follow(student, momentum=momentum)
    assert torch.equal(teacher.network[0].weight, student.weight)  # type: ignore[arg-type]


def test_teachers_buffers_are_its_own() -> None:
    student = nn.BatchNorm1d(2)
    teacher = Teacher(student)
    student(torch.randn(8, 2) + 5)
    teacher.follow(student, momentum=0.0)
    assert torch.equal(teacher.network[0].running_mean, torch.zeros(2))  # type: ignore[arg-type, index, union-attr]
    out = teacher(torch.full((4, 2), 3.0))
    assert not out.requires_grad
    assert torch.allclose(teacher.network[0].running_mean, torch.full((2,), 0.3))  # type: ignore[arg-type, index, union-attr]


def test_queue_wraps_around() -> None:
    queue = Queue(5, 2)
    initial = queue.features.clone()
    assert torch.allclose(initial.norm(dim=1), torch.ones(5))
    rows = F.normalize(torch.tensor([[1.0, 0], [2, 1], [3, 1], [4, 1], [5, 1], [6, 1]]), dim=1)
    queue.enqueue(rows[:3])
    assert (int(queue.pointer), int(queue.filled), queue.full) == (3, 3, False)
    assert torch.allclose(queue.features[:3], rows[:3]) and torch.equal(queue.features[3:], initial[3:])
    queue.enqueue(rows[3:])
    assert (int(queue.pointer), int(queue.filled), queue.full) == (1, 5, True)
    assert torch.allclose(queue.features, rows[[5, 1, 2, 3, 4]])


def test_queue_takes_more_than_it_holds_and_nothing() -> None:
    queue = Queue(3, 2)
    queue.enqueue(torch.zeros(0, 2))
    assert int(queue.filled) == 0
    rows = F.normalize(torch.randn(5, 2), dim=1)
    queue.enqueue(rows)  # as one by one: row i lands at i mod 3
    assert torch.allclose(queue.features, rows[[3, 4, 2]])
    assert (int(queue.pointer), int(queue.filled)) == (2, 3)


def test_queue_snapshot_and_state() -> None:
    queue, other = Queue(4, 2), Queue(4, 2)
    snapshot = queue.negatives()
    queue.enqueue(torch.randn(3, 2))
    assert not torch.equal(snapshot, queue.features)
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.features, queue.features) and int(other.pointer) == 3


def test_queues_nearest_is_by_angle_and_without_gradient() -> None:
    queue = Queue(3, 2)
    queue.enqueue(torch.tensor([[1.0, 0], [0, 1], [-1, 0]]))
    z = torch.tensor([[0.9, 1.0], [9.0, 8.0]], requires_grad=True)
    found = queue.nearest(z)
    assert found.tolist() == [[0, 1], [1, 0]] and not found.requires_grad
    found[0] = 7
    assert queue.features.max() == 1


def test_bank_overwrites_its_own_rows() -> None:
    bank = Bank(4, 2)
    before = bank.features.clone()
    assert torch.allclose(before.norm(dim=1), torch.ones(4)) and not bank.filled.any()
    bank.write(torch.tensor([3, 1]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    assert torch.allclose(bank.features[[3, 1]], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert torch.equal(bank.features[[0, 2]], before[[0, 2]])
    assert bank.filled.tolist() == [False, True, False, True]
    bank.write(torch.zeros(0, dtype=torch.long), torch.zeros(0, 2))


def test_bank_with_momentum_is_the_normalised_mixture() -> None:
    bank = Bank(1, 2, momentum=0.5)
    bank.features.copy_(torch.tensor([[1.0, 0.0]]))
    bank.write(torch.tensor([0]), torch.tensor([[0.0, 5.0]]))
    assert torch.allclose(bank.features, torch.full((1, 2), 0.5**0.5))


def test_prototypes_score_cosines() -> None:
    prototypes = Prototypes(5, 3)
    assert torch.allclose(prototypes.weight.norm(dim=1), torch.ones(5))
    assert [name for name, _ in prototypes.named_parameters()] == ["weight"]  # no bias
    z = F.normalize(torch.randn(4, 3), dim=1)
    expected = F.cosine_similarity(z[:, None], prototypes.weight[None], dim=2)
    assert torch.allclose(prototypes(z), expected, atol=1e-6)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    prototypes.normalise()
    assert torch.allclose(prototypes(z), expected, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert prototypes(z).dtype == torch.float32


def test_center_is_a_running_mean() -> None:
    center = Center(2, 0.9)
    center.update(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert center.mean.tolist() == pytest.approx([0.2, 0.4])
    center.update(torch.zeros(1, 2))
    assert center.mean.tolist() == pytest.approx([0.18, 0.36])
    center.update(torch.zeros(0, 2))
    assert center.mean.tolist() == pytest.approx([0.18, 0.36])


def test_clusters_start_without_assignments() -> None:
    clusters = Clusters(3, 2, 5)
    assert not clusters.fitted and clusters.assignments.tolist() == [-1] * 5
    clusters.assignments[1] = 0
    assert clusters.fitted
    with pytest.raises(ConfigError, match="6 clusters of 5 images"):
        Clusters(6, 2, 5)


@pytest.mark.parametrize("make", [lambda: Bank(4, 2), lambda: Prototypes(3, 2), lambda: Center(3, 0.9)])
def test_all_state_is_in_the_checkpoint(make: Callable[[], nn.Module]) -> None:
    one, other = make(), make()
    for tensor in one.state_dict().values():
        tensor.copy_(torch.ones_like(tensor))
    other.load_state_dict(one.state_dict())
    assert all(bool((tensor == 1).all()) for tensor in (*other.buffers(), *other.parameters()))
