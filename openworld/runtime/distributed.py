"""Several processes of one training, as ``torchrun`` starts them: who am I, and what do the others have?

Without a process group there is one process, and every function returns what it is given. The functions are
collective: every process calls them, in the same order. None of them is a barrier beyond that, and none carries a
gradient. They work with gloo and nccl, and with tensors on the CPU or on a GPU whichever of the two it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch import distributed as dist

from openworld.errors import ConfigError


def is_initialised() -> bool:
    """A process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_initialised() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_initialised() else 1


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
    dist.all_reduce(total)
    return (total / world_size()).to(tensor.device)


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
    dist.all_gather(parts, tensor)
    return parts
