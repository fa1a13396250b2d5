"""CMC and CPC, whose parts are of their own, in two gloo processes: loss, gradient and banks of one process.

Batch norms have fixed statistics, for SyncBatchNorm needs a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openworld.runtime.distributed import mean_over_ranks, rank
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Batch
from ssl_backbones.methods.cmc_options import CMCOptions
from ssl_backbones.methods.cpc_options import CPCOptions
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions
from tests.two_processes import TwoProcesses

SIDES = {"cmc": (16,), "cpc": (28,)}
METHODS: dict[str, MethodOptions] = {
    "cmc": CMCOptions(projection_dim=8),
    "cpc": CPCOptions(projection_dim=8, context_dim=6, directions=4, predicted_rows=2),
}


def step(name: str, rows: slice) -> dict[str, Tensor]:
    """Loss, gradients and buffers after two steps over the rows of a batch of four, averaged over the processes."""
    torch.manual_seed(4)
    arch = ResNetOptions(width=1 / 16, norm="frozen")
    method = METHODS[name].implementation()(PretrainOptions(method=METHODS[name], arch=arch, views=name))  # type: ignore[arg-type]
    method.allocate(9)
    torch.manual_seed(100 * rank())  # the first process decides what is drawn
    for index in (torch.tensor([3, 1, 8, 0]), torch.tensor([2, 1, 7, 3])):
        source = torch.Generator().manual_seed(0)
        views = [torch.randn(4, 3, side, side, generator=source)[rows] for side in SIDES[name]]
        method.zero_grad()
        loss, _ = method.loss(Batch(views, index[rows]))
        loss.backward()
    gradients = {key: mean_over_ranks(p.grad) for key, p in method.named_parameters() if p.grad is not None}
    return {**gradients, **dict(method.named_buffers()), "loss": mean_over_ranks(loss)}


def half(rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: step(name, slice(2 * rank, 2 * rank + 2)) for name in SIDES}


def test_two_processes_are_one(two_processes: TwoProcesses) -> None:
    first, second = two_processes.run(half)
    for name in SIDES:
        alone = step(name, slice(0, 4))
        assert alone.keys() == first[name].keys() == second[name].keys()
        assert len(alone) > 60 and alone["loss"] > 0
        for key, value in alone.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            scale = max(1.0, float(value.double().abs().max()))
            assert torch.allclose(first[name][key].double(), value.double(), atol=1e-5 * scale), (name, key)
