"""Several processes of one training, as ``torchrun`` starts them: who am I, and what do the others have?

Without a process group there is one process, and every function returns what it is given. The functions are
collective, unless they say otherwise: every process calls them, in the same order. None of them is a barrier beyond
that, and only :func:`gather_rows_with_gradient` carries a gradient. They work with gloo and nccl, and with tensors on
the CPU or on a GPU whichever of the two it is.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from openworld.errors import ConfigError, EnvironmentProblem
from openworld.runtime.profiling import scope

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others: one of them may score or write alone. That one has died, ``torchrun`` sees
at once."""

Value = TypeVar("Value")


# -- the processes ----------------------------------------------------------------------------------------------------


@contextmanager
def session(device: str) -> Iterator[None]:
    """The process group that ``torchrun`` describes in the environment, for as long as the block lasts.

    With nccl for ``device`` ``cuda``, each process on the GPU of its local rank, and with gloo otherwise. Not started
    by ``torchrun``, or with one process only: no group.

    Raises:
        ConfigError: the device is a single GPU, such as ``cuda:1``, for several processes.
        EnvironmentProblem: the others cannot be reached; this machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
        yield
        return
    if device.startswith("cuda"):
        _take_gpu(device, int(os.environ.get("LOCAL_RANK", 0)))
    try:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"the processes do not find each other ({error})",
            remedy="start all of them with torchrun, with the same --rdzv-endpoint on several machines",
        ) from error
    yield
    dist.destroy_process_group()


def _take_gpu(device: str, local_rank: int) -> None:
    """Make the GPU of the local rank the current one, which ``cuda`` means from then on."""
    if device != "cuda":
        raise ConfigError(
            f"device {device!r} for {os.environ['WORLD_SIZE']} processes",
            remedy="set model.device to cuda: each process takes the GPU of its local rank",
        )
    if local_rank >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}",
            remedy="start as many processes as there are GPUs: torchrun --nproc-per-node gpu",
        )
    torch.cuda.set_device(local_rank)


def is_initialised() -> bool:
    """A process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0. Not collective."""
    return dist.get_rank() if is_initialised() else 0


def is_first() -> bool:
    """This process writes, logs and draws for all. Not collective."""
    return rank() == 0


def world_size() -> int:
    """Number of processes, 1 without a process group. Not collective."""
    return dist.get_world_size() if is_initialised() else 1


def share(count: int) -> range:
    """This process's part of so many things: neighbours, the first of them for rank 0. Not collective."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        _all_reduce(torch.zeros(1, device=_device(torch.zeros(0))))


def on_first(function: Callable[[], Value]) -> Value:
    """What the function gives in rank 0, in every process; the others do not run it, but wait.

    For decisions that depend on files, and for what one process does for all.

    Args:
        function: its value can be pickled.
    """
    if world_size() == 1:
        return function()
    holder: list[Any] = [function() if is_first() else None]
    with _together("broadcast", 0):
        dist.broadcast_object_list(holder, src=0)
    value: Value = holder[0]
    return value


def objects_of_all(value: Value) -> list[Value]:
    """What each process has, in the order of the ranks; it can be pickled."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _together("all_gather", 0):
        dist.all_gather_object(values, value)
    return values


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The block runs in rank 0, and when it is through, in the others: it may leave files that they read."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


# -- what a step sends ------------------------------------------------------------------------------------------------


@dataclass
class Traffic:
    """What this process handed to the collectives of one kind and purpose."""

    calls: int = 0
    payload_bytes: int = 0


traffic: dict[tuple[str, str], Traffic] = {}
"""By purpose and kind (``all_reduce``, ``all_gather``, ``broadcast``), since the process began. Objects count 0 bytes.
"""
_purpose = "other"


@contextmanager
def purpose(name: str) -> Iterator[None]:
    """What the collectives in the block are counted as in :data:`traffic`. Not collective."""
    global _purpose
    before, _purpose = _purpose, name
    try:
        yield
    finally:
        _purpose = before


@contextmanager
def _together(kind: str, payload_bytes: int) -> Iterator[None]:
    """Count and time a collective, and say what it means when one fails."""
    counted = traffic.setdefault((_purpose, kind), Traffic())
    counted.calls += 1
    counted.payload_bytes += payload_bytes
    with scope("communication"):
        try:
            yield
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"another process of this run ended or cannot be reached ({str(error).strip().splitlines()[-1]})",
                remedy="its own message says why; start again with --resume when that is mended",
            ) from error


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    with _together("all_reduce", tensor.numel() * tensor.element_size()):
        dist.all_reduce(tensor, operation)


# -- tensors ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all processes, those of rank 0 first.

    Args:
        tensor: (R, …) of any dtype; R may differ between the processes and may be 0, the rest may not.

    Returns:
        (sum of R, …), on the device of ``tensor``, detached, equal in all processes; ``tensor`` itself, detached, in a
        single process.

    Raises:
        ConfigError: the rows of the processes have different sizes, in all processes alike.
    """
    if world_size() == 1:
        return tensor.detach()
    here = tensor.detach().to(_device(tensor)).contiguous()
    row_bytes = math.prod(here.shape[1:]) * here.element_size()
    header = torch.tensor([len(here), row_bytes], device=here.device)
    headers = torch.stack(_all_gather(header)).tolist()
    if len({size for _, size in headers}) > 1:
        raise ConfigError(
            f"the processes hold rows of {[size for _, size in headers]} bytes",
            remedy="give every process the same model and the same precision",
        )
    counts = [count for count, _ in headers]
    if not max(counts) or not row_bytes:
        return tensor.detach().new_empty(sum(counts), *tensor.shape[1:])
    # As bytes, for not every backend knows every dtype.
    padded = torch.zeros(max(counts), row_bytes, dtype=torch.uint8, device=here.device)
    padded[: len(here)] = here.reshape(-1, 1).view(torch.uint8).reshape(-1, row_bytes)
    parts = [part[:count] for part, count in zip(_all_gather(padded), counts)]
    return torch.cat(parts).view(tensor.dtype).reshape(sum(counts), *tensor.shape[1:]).to(tensor.device)


def gather_rows_with_gradient(tensor: Tensor) -> Tensor:
    """:func:`gather_rows`, differentiable: the gradient of a row is the sum of what all processes send back to it.

    It is the adjoint of the gathering. A loss that every process computes from all rows, whose gradients with respect
    to the parameters are then *averaged* over the processes, gives the gradient of one process with the joined batch.

    Args:
        tensor: (R, …) floating; R may differ between the processes and may be 0, the rest may not.

    Returns:
        (sum of R, …), the values equal in all processes; ``tensor`` itself in a single process.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _GatherRows.apply(tensor)
    return gathered


def first_row(tensor: Tensor) -> int:
    """Where the rows of this process begin among those of all that :func:`gather_rows` returns."""
    return int(gather_rows(torch.tensor([len(tensor)], device=tensor.device))[: rank()].sum())


@torch.no_grad()
def rows_of_others(tensor: Tensor) -> Tensor:
    """:func:`gather_rows` without this process's own rows.

    Returns:
        (sum of R of the other processes, …), detached; no rows in a single process.
    """
    if world_size() == 1:
        return tensor.detach()[:0]
    everything, first = gather_rows(tensor), first_row(tensor)
    return torch.cat([everything[:first], everything[first + len(tensor) :]])


@torch.no_grad()
def from_first_rank(tensor: Tensor) -> Tensor:
    """The tensor of rank 0, in every process: for what each computes for itself and rounding might tell apart.

    Args:
        tensor: the same shape and dtype in every process; it is not changed.

    Returns:
        The same shape, dtype and device, detached.
    """
    if world_size() == 1:
        return tensor.detach()
    here = tensor.detach().to(_device(tensor)).contiguous()
    bytes_here = here.reshape(-1, 1).view(torch.uint8).clone()  # as bytes, for not every backend knows every dtype
    with _together("broadcast", bytes_here.numel()):
        dist.broadcast(bytes_here, src=0)
    return bytes_here.view(tensor.dtype).reshape(tensor.shape).to(tensor.device)


@torch.no_grad()
def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Mean over the processes, element by element.

    Args:
        tensor: floating, the same shape in every process; it is not changed.

    Returns:
        The same shape, dtype and device, detached, equal in all processes.
    """
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().to(_device(tensor), copy=True)
    _all_reduce(total)
    return (total / world_size()).to(tensor.device)


@torch.no_grad()
def means_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """:func:`mean_over_ranks` of several tensors at once, in one message of float32.

    Args:
        tensors: floating, of the same shapes in every process, on one device.

    Returns:
        As many, of the same shapes and dtypes.
    """
    if world_size() == 1 or not tensors:
        return [tensor.detach() for tensor in tensors]
    flat = mean_over_ranks(torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors)]


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean of the gradients of all, in one message after the backward pass.

    Not DistributedDataParallel: what is summed here does not depend on the order in which gradients become ready, and
    networks may run outside of a ``forward`` and several times a step.

    Args:
        parameters: the same in every process; those without a gradient, which must be the same ones too, stay without.
    """
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    with purpose("gradients"):
        for mine, mean in zip(gradients, means_over_ranks(gradients), strict=True):
            mine.copy_(mean)


def largest_over_ranks(values: Sequence[int]) -> list[int]:
    """The largest of each of some numbers."""
    if world_size() == 1:
        return list(values)
    here = torch.tensor(values, device=_device(torch.zeros(0)))
    _all_reduce(here, dist.ReduceOp.MAX)
    return [int(value) for value in here.tolist()]


def permutations(sizes: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
    """Random orders, drawn from the global generator of the device as one process would for the sizes of all ranks.

    Every process draws those of the others too, and drops them. So a region that is chosen by chance does not depend
    on the number of processes, and the generators of all processes stay equal.

    Args:
        sizes: how many things each order has; as many as this process needs, the numbers may differ between processes.

    Returns:
        For each size (size,) int64, a permutation of 0 … size - 1.
    """
    if world_size() == 1:
        return [torch.randperm(size, device=device) for size in sizes]
    mine, own = rank(), []
    with purpose("random orders"):
        asked = gather_rows(torch.tensor([[mine, size] for size in sizes], dtype=torch.int64).reshape(-1, 2))
    for owner, size in asked.tolist():
        order = torch.randperm(size, device=device)
        if owner == mine:
            own.append(order)
    return own


@torch.no_grad()
def share_of_mean(count: Tensor) -> Tensor:
    """``count`` over its mean over the processes: the weight of a process's average in that of all.

    A loss that is averaged over so many anchors, regions or images, times this, has as its mean over the processes the
    average over those of all processes.

    Args:
        count: () of any dtype, 0 or more.

    Returns:
        () float32; 1 in a single process, and 0 where no process has anything.
    """
    if world_size() == 1:
        return torch.ones((), device=count.device)
    with purpose("divisors of the losses"):
        mean = mean_over_ranks(count.to(torch.float32))
    return count / mean.clamp(min=torch.finfo(torch.float32).tiny)


class _GatherRows(torch.autograd.Function):
    """Forward: the rows of all. Backward: the sum over the processes, of which each keeps its own rows."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.first, context.rows = first_row(tensor), len(tensor)
        return gather_rows(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # in fp32 at least: gloo adds no bf16
        (gradient,) = gradients
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        total = mean_over_ranks(wide) * world_size()
        return total[context.first : context.first + context.rows].to(gradient.dtype)


def _device(tensor: Tensor) -> torch.device:
    """Where the backend can send a tensor from: gloo gathers on the CPU only, nccl on a GPU only."""
    backend = dist.get_backend()
    if backend == "gloo":
        return torch.device("cpu")
    if backend == "nccl" and tensor.device.type != "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with _together("all_gather", tensor.numel() * tensor.element_size()):
        dist.all_gather(parts, tensor)
    return parts
