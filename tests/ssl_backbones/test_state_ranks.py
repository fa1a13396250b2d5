"""Queue, bank and centre in two gloo processes: equal on both, and what one process makes of all rows.

Run as a script, this file is one of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ssl_backbones.state import Bank, Center, Queue


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


def process(rank: int, folder: Path) -> None:
    """What one process does; its state goes to a file."""
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    torch.save(states(*rows_of(rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(2)]
    started = [subprocess.Popen(command, env=environment) for command in commands]
    assert [one.wait(timeout=100) for one in started] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = states(*(torch.cat(parts) for parts in zip(rows_of(0), rows_of(1), strict=True)))
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key].double(), value.double(), atol=1e-6), key


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
