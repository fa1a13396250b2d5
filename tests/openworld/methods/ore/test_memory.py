"""Feature memory against a loop over collections.deque(maxlen=Q)."""

from __future__ import annotations

from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.methods.ore.memory import FeatureMemory


def queue_of(memory: FeatureMemory, row: int) -> list[list[float]]:
    """Features of a class from the oldest to the newest."""
    places, count, pointer = memory.features.shape[1], int(memory.counts[row]), int(memory.pointers[row])
    slots = [(pointer - count + number) % places for number in range(count)]
    return memory.features[row, slots].tolist()


@settings(max_examples=40, deadline=None)
@given(
    pushes=st.lists(st.lists(st.integers(-1, 5), max_size=25), max_size=8),
    places=st.integers(1, 6),
)
def test_same_content_as_deques(pushes: list[list[int]], places: int) -> None:
    memory = FeatureMemory(4, places, 2)
    deques: list[deque[list[float]]] = [deque(maxlen=places) for _ in range(4)]
    number = 0.0
    for labels in pushes:
        features = torch.tensor([[number + i, -(number + i)] for i in range(len(labels))]).reshape(-1, 2)
        number += len(labels)
        memory.push(features, torch.tensor(labels, dtype=torch.int64))
        for feature, label in zip(features.tolist(), labels, strict=True):
            if 0 <= label < 4:
                deques[label].append(feature)
    means, seen = memory.means()
    for row, queue in enumerate(deques):
        assert queue_of(memory, row) == list(queue)
        assert bool(seen[row]) == bool(queue)
        wanted = torch.tensor(list(queue)).mean(0) if queue else torch.zeros(2)
        torch.testing.assert_close(means[row], wanted)


def test_features_are_detached_and_cast() -> None:
    memory = FeatureMemory(2, 3, 4)
    features = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    memory.push(features, torch.tensor([0, 1, 0, 0, 0]))
    assert not memory.features.requires_grad
    assert memory.features.dtype == torch.float32
    assert queue_of(memory, 0) == features.detach()[[2, 3, 4]].float().tolist()


def test_growth_moves_rows() -> None:
    memory = FeatureMemory(3, 2, 1)
    memory.push(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 2]))
    memory.grow(5, [(0, 0), (1, 1), (2, 4)])
    assert [queue_of(memory, row) for row in range(5)] == [[[1.0]], [], [], [], [[2.0], [3.0]]]
    assert set(memory.state_dict()) == {"features", "counts", "pointers"}
