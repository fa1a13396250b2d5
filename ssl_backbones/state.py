"""What a method remembers between steps, as modules whose state is in ``state_dict`` and so in every checkpoint."""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


class Teacher(nn.Module):
    """A copy of a network that follows it slowly: t = m t + (1 - m) s over the parameters.

    Buffers are the teacher's own: in training mode its batch norms see the teacher's activations and keep the
    statistics of those, as in the code of MoCo and BYOL.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(student)
        self.network.requires_grad_(False)

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """One exact step t = m t + (1 - m) s; at t = s it may move by a rounding error, as the formula does."""
        for mine, other in zip(self.network.parameters(), student.parameters(), strict=True):
            mine.copy_(mine * momentum + other * (1 - momentum))

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output, without a gradient."""
        return cast(Tensor, self.network(*inputs))


class Queue(nn.Module):
    """The K newest features, first in, first out (MoCo, section 3.2).

    It starts with random unit vectors, as the authors' code does, so that a loss has K negatives from the first step.

    Buffers:
        features: (K, D) float32, rows normalised.
        pointer: scalar int64, row that the next feature goes to.
        filled: scalar int64, rows that hold real features, at most K.
    """

    features: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @property
    def full(self) -> bool:
        """Whether no random row is left."""
        return int(self.filled) == len(self.features)

    def negatives(self) -> Tensor:
        """(K, D) snapshot: it stays what it is when the queue moves on before the backward pass."""
        return self.features.clone()

    @torch.no_grad()
    def enqueue(self, keys_ND: Tensor) -> None:
        """Overwrite the oldest rows by ``keys_ND``, normalised. N need not divide K; of more than K the last K stay."""
        size = len(self.features)
        keys = F.normalize(keys_ND.detach().float(), dim=1)
        start = self.pointer + max(0, len(keys) - size)
        keys = keys[-size:]
        rows = (start + torch.arange(len(keys), device=self.features.device)) % size
        self.features[rows] = keys.to(self.features.dtype)
        self.pointer.copy_((start + len(keys)) % size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))
