"""State of methods between steps, as modules whose state is in ``state_dict`` and so in every checkpoint.

Each module owns its collectives: with several processes, what is written is gathered from all of them, in the order of
the ranks, so that the state is equal on every rank.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from openworld.runtime.distributed import broadcast, gather_rows

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class ModulesOf(nn.ModuleList, Generic[ModuleT]):
    """A ``nn.ModuleList`` whose modules are all of one class."""

    def __init__(self, modules: Iterable[ModuleT]) -> None:
        super().__init__(modules)

    def __iter__(self) -> Iterator[ModuleT]:
        return cast(Iterator[ModuleT], super().__iter__())

    def __getitem__(self, index: int) -> ModuleT:  # type: ignore[override]
        return cast(ModuleT, super().__getitem__(index))


class Teacher(nn.Module):
    """A copy of consecutive networks that follows them slowly: t = m t + (1 - m) s.

    Only parameters follow. In training mode the teacher's batch norms see the teacher's activations and keep their
    statistics, as in the code of MoCo and BYOL.
    """

    def __init__(self, *students: nn.Module) -> None:
        super().__init__()
        self.network = nn.Sequential(*copy.deepcopy(students))
        self.network.requires_grad_(False)

    @torch.no_grad()
    def follow(self, *students: nn.Module, momentum: float) -> None:
        """Move every parameter to m t + (1 - m) s, as t + (1 - m) (s - t): one pass over the memory, and t = s stays.

        Args:
            students: the networks that the teacher was made from, in the same order.
            momentum: m, from 0 to 1.
        """
        mine: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = [parameter for student in students for parameter in student.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - momentum)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the networks without a gradient."""
        return cast(Tensor, self.network(*inputs))


class Queue(nn.Module):
    """The K newest features, first in, first out (MoCo, section 3.2).

    It starts with random unit vectors, as in the authors' code, so that a loss has K negatives from the first step.

    Buffers:
        features: (K, D) float32, rows normalised.
        pointer: scalar int64, row of the next feature.
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
        """Whether all rows hold real features."""
        return int(self.filled) == len(self.features)

    def negatives(self) -> Tensor:
        """Return a (K, D) snapshot, which does not change when features are enqueued before the backward pass."""
        return self.features.clone()

    @torch.no_grad()
    def nearest(self, z_ND: Tensor) -> Tensor:
        """Find the row with the largest cosine to each row of ``z_ND``: (N, D) copy without a gradient."""
        with torch.autocast(z_ND.device.type, enabled=False):
            return self.features[(F.normalize(z_ND.float(), dim=1) @ self.features.T).argmax(dim=1)]

    @torch.no_grad()
    def enqueue(self, keys_ND: Tensor) -> None:
        """Overwrite the oldest rows by ``keys_ND``, normalised. N need not divide K; if N > K, the last K are kept."""
        size = len(self.features)
        keys = F.normalize(gather_rows(keys_ND).float(), dim=1)
        start = self.pointer + max(0, len(keys) - size)
        keys = keys[-size:]
        rows = (start + torch.arange(len(keys), device=self.features.device)) % size
        self.features[rows] = keys.to(self.features.dtype)
        self.pointer.copy_((start + len(keys)) % size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))


class Bank(nn.Module):
    """One feature per image, overwritten when the image is visited (InstDisc, Wu et al. 2018, section 3.1).

    Buffers:
        features: (N, D) float32, rows normalised; random until they are written.
        filled: (N,) bool, which rows were written.
    """

    features: Tensor
    filled: Tensor

    def __init__(self, images: int, dim: int, momentum: float = 0.0) -> None:
        """Make the bank; ``momentum`` is the share of the old row in the new one (0: a write replaces the row)."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("features", F.normalize(torch.randn(images, dim), dim=1))
        self.register_buffer("filled", torch.zeros(images, dtype=torch.bool))

    @torch.no_grad()
    def write(self, index_N: Tensor, features_ND: Tensor) -> None:
        """Set row = normalise(m row + (1 - m) normalise(feature)) for the images ``index_N``, all different."""
        index, new = gather_rows(index_N), F.normalize(gather_rows(features_ND).float(), dim=1)
        self.features[index] = F.normalize(self.momentum * self.features[index] + (1 - self.momentum) * new, dim=1)
        self.filled[index] = True


class Prototypes(nn.Module):
    """K learned directions in the space of the projections: a linear layer without bias (SwAV, section 3.1).

    Parameters:
        weight: (K, D) float32, unit rows after each :meth:`normalise`.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, dim))
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Project the prototypes onto the unit sphere, after the optimiser has moved them."""
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def forward(self, z_ND: Tensor) -> Tensor:
        """Compute (N, K) scores in fp32, also under autocast; cosines if the rows of ``z_ND`` are normalised."""
        with torch.autocast(z_ND.device.type, enabled=False):
            return F.linear(z_ND.float(), self.weight)


class Center(nn.Module):
    """Running mean of a teacher's outputs (DINO, section 3.1, eq. 4).

    Buffers:
        mean: (K,) float32, zero at the start.
    """

    mean: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))

    @torch.no_grad()
    def update(self, outputs_NK: Tensor) -> None:
        """Set mean = m mean + (1 - m) (mean of the rows); without rows it does not change."""
        count = gather_rows(torch.tensor([len(outputs_NK)], device=self.mean.device)).sum()
        total_K = gather_rows(outputs_NK.float().sum(dim=0, keepdim=True)).sum(dim=0)
        if count:
            self.mean.copy_(self.momentum * self.mean + (1 - self.momentum) * total_K / count)


class Clusters(nn.Module):
    """One clustering of the whole set, made before an epoch and used during it.

    Buffers:
        centroids: (K, D) float32, unit rows; zero before the first clustering.
        concentrations: (K,) float32, temperature of each cluster (PCL); 1 if a method has none.
        assignments: (N,) int64, cluster of each image; ``UNASSIGNED`` if it has none.
    """

    UNASSIGNED = -1

    centroids: Tensor
    concentrations: Tensor
    assignments: Tensor

    def __init__(self, count: int, dim: int, images: int) -> None:
        """Raise ConfigError if there are more clusters than images, before and not after the warm-up."""
        super().__init__()
        if count > images:
            raise ConfigError(f"{count} clusters of {images} images", remedy="choose fewer clusters, or more images")
        self.register_buffer("centroids", torch.zeros(count, dim))
        self.register_buffer("concentrations", torch.ones(count))
        self.register_buffer("assignments", torch.full((images,), self.UNASSIGNED))

    @torch.no_grad()
    def assign(
        self, index_N: Tensor, assignments_N: Tensor, centroids_KD: Tensor, concentrations_K: Tensor | None = None
    ) -> None:
        """Store a clustering of the images ``index_N``: that of rank 0, since rounding may differ between ranks."""
        self.assignments[index_N] = broadcast(assignments_N)
        self.centroids.copy_(broadcast(centroids_KD))
        if concentrations_K is not None:
            self.concentrations.copy_(broadcast(concentrations_K))

    @property
    def fitted(self) -> bool:
        """Whether a clustering is stored."""
        return bool((self.assignments != self.UNASSIGNED).any())
