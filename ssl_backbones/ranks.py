"""What the processes of one pretraining tell each other around a step. The state of methods looks after itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.distributed import from_first_rank, mean_over_ranks, world_size


@torch.no_grad()
def share_buffers(method: nn.Module) -> None:
    """Give every process the buffers of rank 0.

    Stores are equal already. Running statistics of batch norm are not, unless it is synchronised, and clusterings may
    differ by the rounding of the features that they are made from.
    """
    if world_size() == 1:
        return
    for buffer in method.buffers():
        buffer.copy_(from_first_rank(buffer))


def mean_numbers(numbers: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of the numbers for the log, over micro-batches and processes; each has the same names."""
    names = list(numbers[0])
    if world_size() == 1 and len(numbers) == 1:
        return dict(numbers[0])
    table = torch.tensor([[each[name] for name in names] for each in numbers], dtype=torch.float64)
    means = mean_over_ranks(table.mean(0))
    return dict(zip(names, means.tolist(), strict=True))


def join_batch_norms(method: nn.Module) -> None:
    """Let every batch norm, teachers' and heads' too, see the batch of all processes; names and values stay.

    By torch's SyncBatchNorm on a GPU, which is all that this works on, and by this project's slower one elsewhere.
    """
    if world_size() > 1 and next(method.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    else:
        synchronise_batch_norm(method)
