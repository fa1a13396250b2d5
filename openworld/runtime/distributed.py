"""Communication between the processes of one training, as ``torchrun`` starts them.

Without a process group there is one process, and every function returns what it is given. Unless stated otherwise the
functions are collective: every process calls them, in the same order. Only :func:`gather_rows_with_gradient` carries a
gradient. They work with gloo and nccl, with tensors on the CPU or on a GPU.

R rows, the number of which may differ between processes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from openworld.errors import ConfigError, EnvironmentProblem

TIMEOUT = timedelta(hours=12)
"""Timeout of collectives; long, because rank 0 may evaluate or write alone. A dead process is detected by torchrun, not
by this timeout."""

Value = TypeVar("Value")


# -- the processes ----------------------------------------------------------------------------------------------------


@contextmanager
def session(device: str) -> Iterator[None]:
    """Join the process group that ``torchrun`` describes in the environment, for the duration of the block.

    The backend is nccl for ``device`` ``cuda``, with each process on the GPU of its local rank, and gloo otherwise.
    No group is made if ``torchrun`` did not start this process, or started it alone.

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
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"the processes cannot reach each other ({error})",
            remedy="start all of them with torchrun, on several machines with the same --rdzv-endpoint",
        ) from error
    yield
    dist.destroy_process_group()


def _take_gpu(device: str, local_rank: int) -> None:
    """Make the GPU of the local rank the current one; ``cuda`` then means this GPU."""
    if device != "cuda":
        raise ConfigError(
            f"device {device!r} for {os.environ['WORLD_SIZE']} processes",
            remedy="set model.device to cuda: each process takes the GPU of its local rank",
        )
    if local_rank >= torch.cuda.device_count():
        raise EnvironmentProblem(
            f"no GPU for process {local_rank} of this machine, which has {torch.cuda.device_count()} GPUs",
            remedy="start as many processes as there are GPUs: torchrun --nproc-per-node gpu",
        )
    torch.cuda.set_device(local_rank)


def is_initialised() -> bool:
    """Return whether a process group exists. Not collective."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0. Not collective."""
    return dist.get_rank() if is_initialised() else 0


def is_first() -> bool:
    """Return whether this is rank 0, which writes and logs for all. Not collective."""
    return rank() == 0


def world_size() -> int:
    """Return the number of processes, 1 without a process group. Not collective."""
    return dist.get_world_size() if is_initialised() else 1


def local_range(count: int) -> range:
    """Return the contiguous slice of ``range(count)`` that belongs to this rank. Not collective.

    The slices of all ranks, in their order, are ``range(count)``; their lengths differ by at most 1.
    """
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        _all_reduce(torch.zeros(1, device=message_device(torch.zeros(0))))


def on_first(function: Callable[[], Value]) -> Value:
    """Call a function in rank 0 and return its value in every process.

    The other processes wait. Use it for decisions that depend on files, and for work that one process does for all.

    Args:
        function: returns something that can be pickled.
    """
    if world_size() == 1:
        return function()
    holder: list[Any] = [function() if is_first() else None]
    with explain_lost_process():
        dist.broadcast_object_list(holder, src=0)
    value: Value = holder[0]
    return value


def gather_objects(value: Value) -> list[Value]:
    """Return the value of every process, in the order of the ranks.

    Args:
        value: can be pickled.
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with explain_lost_process():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def first_goes_ahead() -> Iterator[None]:
    """Run the block in rank 0 first, then in the others, which may read the files that rank 0 wrote."""
    if not is_first():
        barrier()
    yield
    if is_first():
        barrier()


@contextmanager
def explain_lost_process() -> Iterator[None]:
    """Turn the error of a failed collective into one that explains it. Not collective.

    Raises:
        EnvironmentProblem: the block raised a RuntimeError: another process ended, or the network failed.
    """
    try:
        yield
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"another process of this run ended or cannot be reached ({str(error).strip().splitlines()[-1]})",
            remedy="read the message of that process; remove its cause, then start again with --resume",
        ) from error


# -- tensors ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gather_rows(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all processes, those of rank 0 first.

    Args:
        tensor: (R, …) of any dtype; R may be 0, the other dimensions must be equal in all processes.

    Returns:
        (sum of R, …), on the device of ``tensor``, detached, equal in all processes. In a single process ``tensor``
        itself, detached.

    Raises:
        ConfigError: the rows of the processes have different sizes; raised in every process.
    """
    if world_size() == 1:
        return tensor.detach()
    here = tensor.detach().to(message_device(tensor)).contiguous()
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
    # As bytes, because not every backend supports every dtype.
    padded = torch.zeros(max(counts), row_bytes, dtype=torch.uint8, device=here.device)
    padded[: len(here)] = here.reshape(-1, 1).view(torch.uint8).reshape(-1, row_bytes)
    parts = [part[:count] for part, count in zip(_all_gather(padded), counts)]
    return torch.cat(parts).view(tensor.dtype).reshape(sum(counts), *tensor.shape[1:]).to(tensor.device)


def gather_rows_with_gradient(tensor: Tensor) -> Tensor:
    """:func:`gather_rows` with a gradient: that of a row is the sum of its gradients in all processes.

    This is the adjoint of the gathering. If every process computes a loss from all rows, and the gradients of the
    parameters are then *averaged* over the processes, the result is the gradient of one process with the joined batch.

    Args:
        tensor: (R, …) floating; R may be 0, the other dimensions must be equal in all processes.

    Returns:
        (sum of R, …), with equal values in all processes. In a single process ``tensor`` itself.
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _GatherRows.apply(tensor)
    return gathered


def first_row(tensor: Tensor) -> int:
    """Return the position of this process's first row in the result of :func:`gather_rows`."""
    return int(gather_rows(torch.tensor([len(tensor)], device=tensor.device))[: rank()].sum())


@torch.no_grad()
def rows_of_others(tensor: Tensor) -> Tensor:
    """:func:`gather_rows` without the rows of this process.

    Returns:
        (sum of R of the other processes, …), detached. In a single process it has no rows.
    """
    if world_size() == 1:
        return tensor.detach()[:0]
    everything, first = gather_rows(tensor), first_row(tensor)
    return torch.cat([everything[:first], everything[first + len(tensor) :]])


@torch.no_grad()
def broadcast(tensor: Tensor) -> Tensor:
    """Return the tensor of rank 0 in every process.

    Use it for a value that every process computes, where rounding might make a difference between them.

    Args:
        tensor: of the same shape and dtype in every process; it is not changed.

    Returns:
        The same shape, dtype and device, detached.
    """
    if world_size() == 1:
        return tensor.detach()
    here = tensor.detach().to(message_device(tensor)).contiguous()
    bytes_here = here.reshape(-1, 1).view(torch.uint8).clone()  # because not every backend supports every dtype
    with explain_lost_process():
        dist.broadcast(bytes_here, src=0)
    return bytes_here.view(tensor.dtype).reshape(tensor.shape).to(tensor.device)


@torch.no_grad()
def mean_over_ranks(tensor: Tensor) -> Tensor:
    """Compute the mean over the processes, element by element.

    Args:
        tensor: floating, of the same shape in every process; it is not changed.

    Returns:
        The same shape, dtype and device, detached, equal in all processes.
    """
    if world_size() == 1:
        return tensor.detach()
    total = tensor.detach().to(message_device(tensor), copy=True)
    _all_reduce(total)
    return (total / world_size()).to(tensor.device)


def max_over_ranks(values: Sequence[int]) -> list[int]:
    """Compute the elementwise maximum over the processes; every process passes the same number of values."""
    if world_size() == 1:
        return list(values)
    here = torch.tensor(values, device=message_device(torch.zeros(0)))
    _all_reduce(here, dist.ReduceOp.MAX)
    return [int(value) for value in here.tolist()]


def permutations(sizes: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
    """Draw random permutations that do not depend on the number of processes.

    Every process draws the permutations of all ranks from the global generator of the device, in the order in which a
    single process would, and keeps its own. The generators of all processes stay equal.

    Args:
        sizes: lengths of the permutations that this process needs; their number may differ between processes.
        device: where to draw.

    Returns:
        Per size a permutation of ``range(size)``, (size,) int64.
    """
    if world_size() == 1:
        return [torch.randperm(size, device=device) for size in sizes]
    mine, own = rank(), []
    asked = gather_rows(torch.tensor([[mine, size] for size in sizes], dtype=torch.int64).reshape(-1, 2))
    for owner, size in asked.tolist():
        order = torch.randperm(size, device=device)
        if owner == mine:
            own.append(order)
    return own


@torch.no_grad()
def mean_weight(count: Tensor) -> Tensor:
    """Compute the weight that makes a mean of per-rank means the global mean.

    Multiply a loss that is averaged over ``count`` local items by it before averaging over the ranks.

    Args:
        count: number of local items, () of any dtype, 0 or more.

    Returns:
        ``count`` divided by its mean over the processes, () float32; 1 in a single process, 0 if all counts are 0.
    """
    if world_size() == 1:
        return torch.ones((), device=count.device)
    mean = mean_over_ranks(count.to(torch.float32))
    return count / mean.clamp(min=torch.finfo(torch.float32).tiny)


class _GatherRows(torch.autograd.Function):
    """Gather rows; backward, sum the gradients over the processes and keep those of the local rows."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        context.first, context.rows = first_row(tensor), len(tensor)
        return gather_rows(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:  # in float32 at least: gloo does not add up bfloat16
        (gradient,) = gradients
        wide = gradient if gradient.dtype == torch.float64 else gradient.float()
        total = mean_over_ranks(wide) * world_size()
        return total[context.first : context.first + context.rows].to(gradient.dtype)


def message_device(tensor: Tensor) -> torch.device:
    """Return the device from which the backend can send a tensor: gloo the CPU, nccl a GPU. Not collective."""
    backend = dist.get_backend()
    if backend == "gloo":
        return torch.device("cpu")
    if backend == "nccl" and tensor.device.type != "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return tensor.device


def _all_reduce(tensor: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    with explain_lost_process():
        dist.all_reduce(tensor, operation)


def _all_gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    with explain_lost_process():
        dist.all_gather(parts, tensor)
    return parts
