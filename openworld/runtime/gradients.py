"""Gradients averaged over the processes, in messages that overlap the backward pass.

torch's DistributedDataParallel does the same for a module that is called once per step. Here a loss may call parts of a
model in any order and several times. The buckets are the same in every step of every run, so that each gradient is
always added up in the same order and a resumed run continues bit for bit. (DistributedDataParallel arranges its buckets
anew after the first step.)
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from types import TracebackType
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from openworld.runtime.distributed import TIMEOUT, explain_lost_process, message_device, world_size

BUCKET_BYTES = 25 * 2**20
"""Size from which a message is sent: small enough to start early, large enough that latency does not matter."""


class GradientAverage:
    """Average the gradients of a backward pass over the processes while the pass runs.

    The parameters that train are put into buckets, last ones first, which is about the order in which the backward pass
    reaches them. A bucket is sent when all its gradients are there and the buckets before it are on their way;
    :meth:`wait` sends what is left. With one process nothing happens.

    A parameter without a gradient keeps none, unless another process has one: then it gets the mean, to which it
    contributed zero.

    Use it as a context manager around the steps. Entering, leaving and :meth:`wait` are collective.

    Args:
        parameters: in the same order in every process; frozen ones are left out.
        backwards: backward passes per step, whose gradients add up; the messages go with the last one.
        bucket_bytes: size from which a message is sent.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, backwards: int = 1, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        trained = [parameter for parameter in parameters if parameter.requires_grad] if world_size() > 1 else []
        self._buckets = _buckets(list(reversed(trained)), bucket_bytes)
        self._bucket_of = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._backwards = backwards
        self._passes: dict[nn.Parameter, int] = {}
        self._sent = 0
        self._hooks: list[Any] = []
        self._group: Any = None

    def __enter__(self) -> GradientAverage:
        if self._buckets:
            # A group of its own, so that these messages need no fixed order among those of the backward pass itself.
            self._group = dist.new_group(timeout=TIMEOUT)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)
            for bucket in self._buckets
            for parameter in bucket.parameters
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        if self._group is not None and not self._sent:  # with a message under way, closing would wait for the others
            dist.destroy_process_group(self._group)

    def _arrived(self, parameter: nn.Parameter) -> None:
        """Count the backward passes that reached a parameter, and send what is complete."""
        self._passes[parameter] = self._passes.get(parameter, 0) + 1
        if self._passes[parameter] == self._backwards:
            self._bucket_of[parameter].missing -= 1
            while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
                self._send_next()

    def _send_next(self) -> None:
        self._buckets[self._sent].send(self._group)
        self._sent += 1

    @torch.no_grad()
    def wait(self) -> None:
        """Wait until every gradient is the mean over the processes. Call it after the last backward pass of a step."""
        while self._sent < len(self._buckets):
            self._send_next()
        for bucket in self._buckets:
            bucket.receive()
        self._passes, self._sent = {}, 0


class _Bucket:
    """Parameters of one dtype and device whose gradients travel in one message.

    The message holds the gradients, each in the memory order of its parameter, and per parameter the number of
    processes that have a gradient.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)
        sizes = [parameter.numel() for parameter in parameters]
        dtype = torch.promote_types(parameters[0].dtype, torch.float32)  # not every backend adds up bfloat16
        self._message = torch.zeros(sum(sizes) + len(sizes), dtype=dtype, device=message_device(parameters[0]))
        starts = accumulate(sizes, initial=0)
        self._slots = [
            self._message.as_strided(parameter.shape, torch.empty_like(parameter, device="meta").stride(), start)
            for parameter, start in zip(parameters, starts)
        ]
        self._counts = self._message[sum(sizes) :]
        self._absent: list[int] = []
        self._work: Any = None

    @torch.no_grad()
    def send(self, group: Any) -> None:
        """Start to add up the gradients of all processes."""
        self._counts.fill_(1)
        self._absent = []
        for position, (parameter, slot) in enumerate(zip(self.parameters, self._slots, strict=True)):
            if parameter.grad is None:
                self._absent.append(position)
                self._counts[position] = 0
                slot.zero_()
            else:
                slot.copy_(parameter.grad)
        with explain_lost_process():
            self._work = dist.all_reduce(self._message, group=group, async_op=True)

    def receive(self) -> None:
        """Wait for the sums, and write their means to the gradients."""
        with explain_lost_process():
            self._work.wait()
        self.missing = len(self.parameters)
        self._message /= world_size()
        unused = {position for position in self._absent if not self._counts[position]}
        for position, (parameter, slot) in enumerate(zip(self.parameters, self._slots, strict=True)):
            if position in unused:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(slot)


def _buckets(parameters: list[nn.Parameter], bucket_bytes: int) -> list[_Bucket]:
    """Put neighbouring parameters of one dtype and device together until a bucket has ``bucket_bytes``."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        alike = groups and (groups[-1][0].dtype, groups[-1][0].device) == (parameter.dtype, parameter.device)
        if not alike or room <= 0:
            groups.append([])
            room = bucket_bytes
        groups[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return [_Bucket(group) for group in groups]
