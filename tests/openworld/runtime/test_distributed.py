"""Collectives: two gloo processes against what each is known to hold, and one process on its own."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from openworld.errors import ConfigError, EnvironmentProblem
from openworld.runtime import distributed
from tests.two_processes import TwoProcesses

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def rows_of(rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """3 rows at rank 0, 5 at rank 1."""
    generator = torch.Generator().manual_seed(rank)
    return (10 * torch.rand(3 + 2 * rank, 2, 3, generator=generator)).to(dtype)


def weights(rank: int) -> Tensor:
    """What the process multiplies the gathered rows by."""
    return torch.rand(8, 2, 3, generator=torch.Generator().manual_seed(9 + rank))


def collectives(rank: int) -> dict[str, Any]:
    """What one process finds."""
    leaf = rows_of(rank).requires_grad_()
    found: dict[str, Any] = {
        "who": (distributed.is_initialised(), distributed.rank(), distributed.world_size()),
        "dtypes": [distributed.gather_rows(rows_of(rank, dtype)) for dtype in DTYPES],
        "detached": not distributed.gather_rows(leaf * 2).requires_grad,
        "one empty": distributed.gather_rows(rows_of(0)[: 3 * rank]),
        "all empty": distributed.gather_rows(torch.zeros(0, 4, dtype=torch.int64)),
        "no width": distributed.gather_rows(torch.zeros(1 + rank, 0)),
        "strided": distributed.gather_rows(rows_of(rank).transpose(1, 2)),
        "flat": distributed.gather_rows(torch.arange(rank + 1)),
        "mean": distributed.mean_over_ranks(leaf[:2]),
        "scalar": distributed.mean_over_ranks(torch.tensor(float(rank))),
        "untouched": torch.equal(leaf.detach(), rows_of(rank)),
        "others": distributed.rows_of_others(rows_of(rank)),
        "first": [distributed.broadcast(rows_of(2 * rank, dtype)[:2]) for dtype in DTYPES],
    }
    gathered = distributed.gather_rows_with_gradient(leaf)
    (gathered * weights(rank)).sum().backward()
    found["with gradient"], found["gradient"] = gathered.detach(), leaf.grad
    halves = rows_of(rank, torch.bfloat16).requires_grad_()
    distributed.gather_rows_with_gradient(halves).float().sum().backward()
    found["gradient of halves"] = halves.grad
    try:
        distributed.gather_rows(torch.zeros(2, 3 + rank))
    except ConfigError as error:
        found["error"] = str(error)
    found["on first"] = distributed.on_first(lambda: f"rank {rank}")
    found["objects"] = distributed.gather_objects({"rank": rank})
    found["largest"] = distributed.max_over_ranks([5 - rank, rank])
    found["share"] = list(distributed.local_range(5))
    found["weight"] = distributed.mean_weight(torch.tensor(3 * rank))
    found["no weight"] = distributed.mean_weight(torch.tensor(0))
    torch.manual_seed(0)
    found["orders"] = distributed.permutations([4, 6] if rank == 0 else [5])
    found["next number"] = torch.rand(1)
    return found


def left_alone(rank: int) -> str:
    """What a process is told whose partner dies."""
    if rank == 1:
        os._exit(7)
    with pytest.raises(EnvironmentProblem) as problem:
        distributed.barrier()
    return str(problem.value)


@pytest.fixture(scope="module")
def found(two_processes: TwoProcesses) -> list[dict[str, Any]]:
    return two_processes.run(collectives)


def test_each_process_knows_itself(found: list[dict[str, Any]]) -> None:
    assert [one["who"] for one in found] == [(True, 0, 2), (True, 1, 2)]


def test_rows_of_all_processes_in_rank_order(found: list[dict[str, Any]]) -> None:
    for one in found:
        for dtype, rows in zip(DTYPES, one["dtypes"], strict=True):
            assert rows.dtype == dtype
            assert torch.equal(rows, torch.cat([rows_of(0, dtype), rows_of(1, dtype)]))
        assert torch.equal(one["strided"], torch.cat([rows_of(0), rows_of(1)]).transpose(1, 2))
        assert one["flat"].tolist() == [0, 0, 1]
        assert one["detached"]


def test_empty_processes(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert torch.equal(one["one empty"], rows_of(0))
        assert one["all empty"].shape == (0, 4) and one["all empty"].dtype == torch.int64
        assert one["no width"].shape == (3, 0)


def test_mean(found: list[dict[str, Any]]) -> None:
    for one in found:
        torch.testing.assert_close(one["mean"], (rows_of(0)[:2] + rows_of(1)[:2]) / 2)
        assert not one["mean"].requires_grad and one["scalar"] == 0.5 and one["untouched"]


def test_the_gradient_of_a_row_is_the_sum_of_what_all_send_back(found: list[dict[str, Any]]) -> None:
    total = weights(0) + weights(1)
    for one, own in zip(found, (total[:3], total[3:]), strict=True):
        assert torch.equal(one["with gradient"], torch.cat([rows_of(0), rows_of(1)]))
        torch.testing.assert_close(one["gradient"], own)
        halves = one["gradient of halves"]
        assert halves.dtype == torch.bfloat16 and torch.equal(halves, torch.full_like(halves, 2))


def test_rows_of_the_others(found: list[dict[str, Any]]) -> None:
    assert torch.equal(found[0]["others"], rows_of(1)) and torch.equal(found[1]["others"], rows_of(0))


def test_what_the_first_process_has(found: list[dict[str, Any]]) -> None:
    for one in found:
        for dtype, value in zip(DTYPES, one["first"], strict=True):
            assert value.dtype == dtype and torch.equal(value, rows_of(0, dtype)[:2])


def test_what_is_decided_and_collected_for_all(found: list[dict[str, Any]]) -> None:
    for rank, one in enumerate(found):
        assert one["on first"] == "rank 0" and one["objects"] == [{"rank": 0}, {"rank": 1}]
        assert one["largest"] == [5, 1]
        assert one["weight"] == 2 * rank and one["no weight"] == 0
    assert [one["share"] for one in found] == [[0, 1], [2, 3, 4]]


def test_random_orders_are_those_that_one_process_draws(found: list[dict[str, Any]]) -> None:
    torch.manual_seed(0)
    orders = distributed.permutations([4, 6, 5])
    assert [order.tolist() for one in found for order in one["orders"]] == [order.tolist() for order in orders]
    following = torch.rand(1)
    assert all(torch.equal(one["next number"], following) for one in found)


def test_a_process_that_died_is_named_as_the_reason(two_processes: TwoProcesses) -> None:
    told, _ = two_processes.run(left_alone, exits={1: 7})
    assert "another process of this run ended" in told


def test_rows_of_different_width_are_an_error_everywhere(found: list[dict[str, Any]]) -> None:
    assert all("[12, 16] bytes" in one["error"] for one in found)


def test_one_process_without_a_group() -> None:
    assert (distributed.is_initialised(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    rows = torch.ones(2, 3, requires_grad=True)
    for same in (distributed.gather_rows(rows), distributed.mean_over_ranks(rows)):
        assert torch.equal(same, rows) and not same.requires_grad
    assert distributed.gather_rows_with_gradient(rows) is rows
    assert distributed.rows_of_others(rows).shape == (0, 3)
    assert torch.equal(distributed.broadcast(rows), rows)
