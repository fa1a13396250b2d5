"""CMC and CPC, whose parts are of their own, in two gloo processes: loss, gradient and banks of one process.

Batch norms have fixed statistics, for SyncBatchNorm needs a GPU. Run as a script, this file is one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

from openworld.runtime.distributed import mean_over_ranks, rank
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Batch
from ssl_backbones.methods.cmc_options import CMCOptions
from ssl_backbones.methods.cpc_options import CPCOptions
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions

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


def process(rank: int, folder: Path) -> None:
    """What one process does; its findings go to a file."""
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    torch.save({name: step(name, slice(2 * rank, 2 * rank + 2)) for name in SIDES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    assert [one.wait(timeout=200) for one in started] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in SIDES:
        alone = step(name, slice(0, 4))
        assert alone.keys() == first[name].keys() == second[name].keys()
        assert len(alone) > 60 and alone["loss"] > 0
        for key, value in alone.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            scale = max(1.0, float(value.double().abs().max()))
            assert torch.allclose(first[name][key].double(), value.double(), atol=1e-5 * scale), (name, key)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
