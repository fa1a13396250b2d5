"""Exchange between the processes of a pretraining around each step; the stores of methods exchange themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from openworld.runtime.distributed import broadcast, mean_over_ranks, world_size


@torch.no_grad()
def share_buffers(method: nn.Module) -> None:
    """Give every process the buffers of rank 0.

    Stores are equal already. Running statistics of batch norm differ unless it is synchronised, and clusterings may
    differ by the rounding of their features.
    """
    if world_size() == 1:
        return
    for buffer in method.buffers():
        buffer.copy_(broadcast(buffer))


def mean_numbers(numbers: Sequence[dict[str, float]]) -> dict[str, float]:
    """Average the numbers for the log over micro-batches and processes; all have the same names."""
    names = list(numbers[0])
    if world_size() == 1 and len(numbers) == 1:
        return dict(numbers[0])
    table = torch.tensor([[each[name] for name in names] for each in numbers], dtype=torch.float64)
    means = mean_over_ranks(table.mean(0))
    return dict(zip(names, means.tolist(), strict=True))
