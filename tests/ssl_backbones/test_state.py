"""Teacher and queue against cases worked by hand."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ssl_backbones.state import Queue, Teacher


def test_teacher_follows_exactly() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = Teacher(student)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    teacher.follow(student, 0.99)
    for old, now, s in zip(before, teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(now, 0.99 * old + (1 - 0.99) * s)
        assert not now.requires_grad


def test_teachers_buffers_are_its_own() -> None:
    student = nn.Sequential(nn.BatchNorm1d(2))
    teacher = Teacher(student)
    student(torch.randn(8, 2) + 5)
    teacher.follow(student, 0.0)
    assert torch.equal(teacher.network[0].running_mean, torch.zeros(2))  # type: ignore[index]
    out = teacher(torch.full((4, 2), 3.0))
    assert not out.requires_grad
    assert torch.allclose(teacher.network[0].running_mean, torch.full((2,), 0.3))  # type: ignore[index]


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
