"""Two gloo processes under DistributedDataParallel against one process with the joined batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from openworld.labels import LabelSpace
from openworld.methods.base import Ranks
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions
from openworld.runtime import distributed
from openworld.structures import Regions
from tests.two_processes import TwoProcesses

SPACE = LabelSpace.of([["cat", "dog"]], task=1)  # cat 0, dog 1, unknown 2, background 3
STEPS = 7
SCHEDULE: dict[str, Any] = {"start_step": 1, "update_every": 2, "items_per_class": 4, "momentum": 0.7, "weight": 0.5}
PAPER = ClusteringOptions(**SCHEDULE)
REFERENCE = ClusteringOptions(
    **SCHEDULE, margin=2.0, distance_order=10, absent="zero", reduction="all", background_prototype=True
)
PER_RANK = ClusteringOptions(**SCHEDULE, memory="per_rank", averaged_over="rank")
CASES = {"paper": PAPER, "reference": REFERENCE, "per rank": PER_RANK}


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels: 9 regions, or 4 at rank 1; no object there at step 3, no region at 4, none anywhere at 5."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    count = 0 if rank == 1 and step == 4 else 4 if rank == 1 else 9
    labels = torch.randint(0, 4, (count,), generator=generator)
    if step == 5 or (rank == 1 and step == 3):
        labels.fill_(SPACE.background)
    return torch.randn(count, 6, generator=generator), labels


def train(options: ClusteringOptions, batches: list[tuple[Tensor, Tensor]], ranks: Ranks | None) -> list[Any]:
    """Loss, gradient and state after each step of a linear layer that makes the features."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    model = layer if ranks is None else DistributedDataParallel(layer)
    ore = Ore(SPACE, 5, options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    seen = []
    for step, (inputs, labels) in enumerate(batches):
        features = model(inputs)
        count = len(labels)
        zeros, index = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
        regions = Regions(torch.zeros(count, 4), index, zeros, zeros, labels, features=features)
        loss = ore.losses(regions, step, replay=False, ranks=ranks)["clustering"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert layer.weight.grad is not None
        watched = ("memory.", "prototypes.")
        state = {name: value.clone() for name, value in ore.state_dict().items() if name.startswith(watched)}
        seen.append({"loss": loss.detach(), "grad": layer.weight.grad.clone(), **state})
        optimizer.step()
    return seen


def every_case(rank: int) -> dict[str, list[Any]]:
    batches = [batch(step, rank) for step in range(STEPS)]
    return {name: train(options, batches, distributed) for name, options in CASES.items()}


@pytest.fixture(scope="module")
def ranks(two_processes: TwoProcesses) -> list[dict[str, list[Any]]]:
    return two_processes.run(every_case)


def joined() -> list[tuple[Tensor, Tensor]]:
    pairs = [(batch(step, 0), batch(step, 1)) for step in range(STEPS)]
    return [(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in pairs]


@pytest.mark.parametrize("case", ["paper", "reference"])
def test_the_same_as_one_process_with_the_joined_batch(ranks: list[dict[str, list[Any]]], case: str) -> None:
    one_process = train(CASES[case], joined(), None)
    assert sum(bool(step["loss"] > 0) for step in one_process) >= STEPS - 2  # all but step 0 and the empty step 5
    for first, second, one in zip(ranks[0][case], ranks[1][case], one_process, strict=True):
        torch.testing.assert_close((first["loss"] + second["loss"]) / 2, one["loss"], rtol=1e-6, atol=1e-6)
        for name in one.keys() - {"loss"}:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], one[name], rtol=1e-6, atol=1e-6)


def test_without_an_object_a_process_has_no_loss_and_the_other_the_whole(ranks: list[dict[str, list[Any]]]) -> None:
    one_process = train(PAPER, joined(), None)
    for step in (3, 4):
        assert ranks[1]["paper"][step]["loss"] == 0
        torch.testing.assert_close(ranks[0]["paper"][step]["loss"] / 2, one_process[step]["loss"])
    assert ranks[0]["paper"][5]["loss"] == ranks[1]["paper"][5]["loss"] == 0


def test_a_memory_for_each_process(ranks: list[dict[str, list[Any]]]) -> None:
    """The reference's way: at the first step each remembers, and averages over, what it has seen alone."""
    for rank in range(2):
        alone = train(PER_RANK, [batch(0, rank), batch(1, rank)], None)[1]
        there = ranks[rank]["per rank"][1]
        for name in alone.keys() - {"grad"}:
            torch.testing.assert_close(there[name], alone[name], rtol=1e-6, atol=1e-6)
    last = [ranks[rank]["per rank"][-1] for rank in range(2)]
    assert not torch.equal(last[0]["memory.counts"], last[1]["memory.counts"])
    assert not torch.equal(last[0]["prototypes.vectors"], last[1]["prototypes.vectors"])
