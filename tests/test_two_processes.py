"""The pair of processes that other tests use: what it says when a process fails, and that it goes on afterwards."""

from __future__ import annotations

import os

import pytest
import torch
from torch import distributed as dist

from tests.two_processes import TwoProcesses


def total(rank: int, values: list[float]) -> float:
    """The sum over both processes of the value of each."""
    found = torch.tensor(values[rank])
    dist.all_reduce(found)
    return float(found)


def fail_in_the_second(rank: int) -> None:
    print(f"rank {rank} has begun")
    if rank == 1:
        raise ValueError("no such luck")
    dist.barrier()


def end_in_the_second(rank: int) -> int:
    if rank == 1:
        os._exit(3)
    return rank


def test_both_take_part(two_processes: TwoProcesses) -> None:
    assert two_processes.run(total, [1.0, 2.5]) == [3.5, 3.5]


def test_a_failure_comes_with_its_traceback_and_what_was_printed(two_processes: TwoProcesses) -> None:
    with pytest.raises(AssertionError) as failure:
        two_processes.run(fail_in_the_second)
    told = str(failure.value)
    assert "rank 1: Traceback" in told and "ValueError: no such luck" in told
    assert "printed by rank 0\nrank 0 has begun" in told
    assert two_processes.run(total, [2.0, 2.0]) == [4.0, 4.0]


def test_an_end_that_was_not_asked_for_is_a_failure(two_processes: TwoProcesses) -> None:
    with pytest.raises(AssertionError, match="rank 1: ended with exit code 3"):
        two_processes.run(end_in_the_second)
    assert two_processes.run(total, [0.0, 1.0]) == [1.0, 1.0]
