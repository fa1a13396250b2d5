"""A training step of two processes, whose gradients are averaged after the backward pass or while it runs.

    python benchmarks/gradient_messages.py [--rounds 9] [--side 224] [--gbits 0 10 1] [--json FILE]

Two gloo processes of one thread each train R50-FPN with one image of ``side`` pixels and 512 regions per process, and
their own BatchNorm statistics. Three ways of averaging take turns in every round, so that a slow moment of the machine
affects all of them:

- ``after``: one message with all gradients when the backward pass is through;
- ``overlapped``: :class:`openworld.runtime.gradients.GradientAverage`, as `openworld run` does it;
- ``ddp``: torch's DistributedDataParallel, with the losses as its forward pass.

The table has the median time per step, its ratio to ``after``, and how long the step waited for messages after the
backward pass (DistributedDataParallel waits inside it). The gradients of the first step must agree.

On one machine the messages cross the loopback interface, which is fast but takes time of the same cores. ``--gbits``
adds slower links: each message takes at least as long as a ring all-reduce would over links of this many Gbit/s, and
messages queue. This is simulated by sleeping, which takes no time of the cores, and not for ``ddp``, which sends from
C++. 0 is the loopback interface as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from openworld.config import RunConfig
from openworld.detector import Detector, build_detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.labels import LabelSpace
from openworld.runtime.gradients import GradientAverage
from openworld.structures import Target
from ssl_backbones.backbones import ResNetOptions

SPACE = LabelSpace.of([[f"class {number}" for number in range(20)]], task=1)
REGIONS = 512
PROCESSES = 2

Step = Callable[[], tuple[float, float]]
"""Makes one step; returns its duration, and the time from the end of the backward pass to averaged gradients (s)."""


def detector() -> Detector:
    """The same weights in each process."""
    torch.manual_seed(0)
    model = ModelOptions(
        arch=ResNetOptions(name="resnet50", width=1.0),
        norm="batch",
        synchronise_norm=False,
        fpn_channels=256,
        rpn=RpnOptions(anchor_sizes=[32.0, 64.0, 128.0, 256.0]),
        roi=RoiOptions(sampled_regions=REGIONS, hidden_dim=1024),
        device="cpu",
    )
    return build_detector(replace(RunConfig(), pretrain=None, model=model), SPACE, None).train()


def batch(side: int, rank: int) -> tuple[list[Tensor], list[Target]]:
    """One image with seven boxes."""
    random = torch.Generator().manual_seed(rank)
    corners = torch.rand(7, 2, generator=random) * side / 2
    boxes = torch.cat([corners, corners + 30 + torch.rand(7, 2, generator=random) * side / 3], 1)
    return [torch.rand(3, side, side, generator=random)], [Target(boxes, torch.arange(7), "image")]


class Link:
    """A link on which messages queue; ``gbits`` per second, 0 for no limit."""

    def __init__(self) -> None:
        self.gbits, self.free_at = 0.0, 0.0

    def occupy(self, num_bytes: int) -> float:
        """Queue a message; return its time of arrival, by the clock of :func:`time.perf_counter`."""
        if not self.gbits:
            return 0.0
        moved = 2 * (PROCESSES - 1) / PROCESSES * num_bytes
        self.free_at = max(self.free_at, time.perf_counter()) + 8 * moved / (1e9 * self.gbits)
        return self.free_at


class SlowWork:
    """A message under way; waits for the real one, then for the link."""

    def __init__(self, work: Any, arrives: float) -> None:
        self.work, self.arrives = work, arrives

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
        time.sleep(max(0.0, self.arrives - time.perf_counter()))


@contextmanager
def slow_messages(link: Link) -> Iterator[None]:
    """Let every all-reduce of the block take the link."""
    real = dist.all_reduce

    def all_reduce(tensor: Tensor, *arguments: Any, async_op: bool = False, **named: Any) -> Any:
        work = SlowWork(real(tensor, *arguments, async_op=async_op, **named), link.occupy(tensor.nbytes))
        return work if async_op else work.wait()

    dist.all_reduce = all_reduce
    try:
        yield
    finally:
        dist.all_reduce = real


@torch.no_grad()
def average_after(parameters: list[nn.Parameter]) -> None:
    """All gradients in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    message = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(message)
    means = (message / PROCESSES).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view(gradient.shape))


class Losses(nn.Module):
    """The losses of a detector as the forward pass that DistributedDataParallel asks for."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        return self.model.losses(*arguments)


def step_of(model: Detector, losses: Callable[..., dict[str, Tensor]], average: Callable[[], None], data: Any) -> Step:
    """A step of SGD; every one samples the same anchors and regions."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)

    def step() -> tuple[float, float]:
        torch.manual_seed(1)
        began = time.perf_counter()
        total = torch.stack(list(losses(*data, 0).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        through = time.perf_counter()
        average()
        averaged = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - began, averaged - through

    return step


def process(rank: int, options: argparse.Namespace) -> None:
    """Run one process; rank 0 writes the times."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{options.meeting}", rank=rank, world_size=PROCESSES)
    data = batch(options.side, rank)
    models = {name: detector() for name in ("after", "overlapped", "ddp")}
    trained = [parameter for parameter in models["after"].parameters() if parameter.requires_grad]
    average = GradientAverage(models["overlapped"].parameters())
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    wrapped = DistributedDataParallel(Losses(models["ddp"]))
    steps = {
        "after": step_of(models["after"], models["after"].losses, lambda: average_after(trained), data),
        "overlapped": step_of(models["overlapped"], models["overlapped"].losses, average.wait, data),
        "ddp": step_of(models["ddp"], wrapped, lambda: None, data),
    }
    link, found = Link(), []
    with slow_messages(link), average:
        for step in steps.values():
            step()
        check_gradients(models)
        for link.gbits in options.gbits:
            names = [name for name in steps if name != "ddp" or not link.gbits]
            seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
            for number in range(options.rounds):
                for name in names if number % 2 else reversed(names):
                    dist.barrier()
                    seconds[name].append(steps[name]())
            found.append({"gbits": link.gbits, "seconds": seconds})
    if rank == 0:
        sent = sum(parameter.nbytes for parameter in trained)
        Path(options.findings).write_text(json.dumps({"gradient_bytes": sent, "links": found}))
    dist.destroy_process_group()


def check_gradients(models: dict[str, Detector]) -> None:
    """Stop unless all three ways give the same gradients up to rounding, and the first two the same to the last bit."""
    for (name, one), two, three in zip(*(dict(model.named_parameters()).items() for model in models.values())):
        if one.grad is not None:
            if not torch.equal(one.grad, two[1].grad):
                raise SystemExit(f"{name}: the gradients after and during the backward pass differ")
            torch.testing.assert_close(three[1].grad, one.grad, rtol=1e-4, atol=1e-6)


def print_table(found: dict[str, Any]) -> None:
    """Medians per link and way."""
    print(f"gradients: {found['gradient_bytes'] / 1e6:.0f} MB per process and step")
    print(f"{'link':<16}{'way':<12}{'step, s':>9}{'ratio':>8}{'range of ratios':>18}{'waiting, s':>12}")
    for link in found["links"]:
        title = f"{link['gbits']:g} Gbit/s" if link["gbits"] else "loopback"
        base = [step for step, _ in link["seconds"]["after"]]
        for name, seconds in link["seconds"].items():
            ratios = [step / other for (step, _), other in zip(seconds, base, strict=True)]
            step, waiting = (statistics.median(part) for part in zip(*seconds))
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"{title:<16}{name:<12}{step:>9.2f}{statistics.median(ratios):>8.2f}{spread:>18}{waiting:>12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="steps of each way and link that are timed")
    parser.add_argument("--side", type=int, default=224, help="pixels of the image")
    parser.add_argument("--gbits", type=float, nargs="+", default=[0.0, 10.0, 1.0], help="links, 0 for loopback")
    parser.add_argument("--json", type=Path, default=None, help="file for the numbers")
    for name, kind in (("--rank", int), ("--meeting", Path), ("--findings", Path)):
        parser.add_argument(name, type=kind, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        process(options.rank, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting, findings = Path(folder, "meeting"), Path(folder, "findings.json")
        inner = [sys.executable, __file__, *sys.argv[1:], "--meeting", str(meeting), "--findings", str(findings)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = [subprocess.Popen([*inner, "--rank", str(rank)], env=environment) for rank in range(PROCESSES)]
        if any(one.wait() for one in started):
            raise SystemExit("a process failed")
        found = json.loads(findings.read_text())
    print_table(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
