"""Queue, bank and centre in two gloo processes: equal on both, and what one process makes of all rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_backbones.state import Bank, Center, Queue
from tests.two_processes import TwoProcesses


def rows_of(rank: int) -> tuple[Tensor, Tensor]:
    """2 images at rank 0, 3 at rank 1, and a feature of each."""
    index = torch.tensor([[4, 1], [0, 6, 3]][rank])
    return index, torch.randn(len(index), 3, generator=torch.Generator().manual_seed(rank))


def states(index: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Every store after two rounds, by name."""
    torch.manual_seed(5)
    stores = nn.ModuleDict({"queue": Queue(7, 3), "bank": Bank(8, 3, momentum=0.5), "center": Center(3, 0.9)})
    for scale in (1.0, 0.3):
        stores["queue"].enqueue(scale + features)  # type: ignore[operator]
        stores["bank"].write(index, scale + features)  # type: ignore[operator]
        stores["center"].update(scale * features)  # type: ignore[operator]
    return stores.state_dict()


def states_of(rank: int) -> dict[str, Tensor]:
    return states(*rows_of(rank))


def test_two_processes_are_one(two_processes: TwoProcesses) -> None:
    first, second = two_processes.run(states_of)
    alone = states(*(torch.cat(parts) for parts in zip(rows_of(0), rows_of(1), strict=True)))
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key].double(), value.double(), atol=1e-6), key
