"""Items computed ahead by worker processes, in order."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from openworld.errors import EnvironmentProblem

Item = TypeVar("Item", covariant=True)


class _Indexed(Protocol[Item]):
    def __getitem__(self, index: int, /) -> Item: ...


def in_order(source: _Indexed[Item], numbers: range, workers: int) -> Iterator[Item]:
    """Yield ``source[n]`` for each number in order, computed ahead by worker processes if there are any.

    Where there is a GPU, a thread then moves the items to pinned memory, from which they are copied to the GPU without
    waiting.

    Raises:
        EnvironmentProblem: the system killed a worker.
    """
    if workers == 0:
        for number in numbers:
            yield source[number]
        return
    loader = DataLoader(
        _AsTorch(source),
        batch_size=None,
        sampler=numbers,
        num_workers=min(workers, max(1, len(numbers))),
        generator=torch.Generator(),  # or the loader draws from the global one, and workers would change the run
        worker_init_fn=_enter_worker,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # but an error that a worker met and passed on
            raise
        raise EnvironmentProblem(
            f"a process that decodes images died ({error})",
            remedy="resume the run; if memory ran out, set data.loader.workers lower, or to 0",
        ) from error


def _enter_worker(worker: int) -> None:
    gc.freeze()  # the collector writes into every object that it visits, and would so copy all that is shared


class _AsTorch(TorchDataset[Item]):
    def __init__(self, source: _Indexed[Item]) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Item:
        return self.source[index]
