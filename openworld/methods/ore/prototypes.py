"""Class prototypes, to which the clustering loss draws the features of each class (ORE, section 4.1, algorithm 1).

C classes (rows), D feature dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from openworld.methods.ore.memory import moved_rows


def initial_prototypes(
    prototypes: Tensor, present: Tensor, means: Tensor, seen: Tensor, absent: Literal["masked", "zero"]
) -> tuple[Tensor, Tensor]:
    """Return the prototypes at the start of clustering: the class means (algorithm 1, i = I_b).

    Args:
        prototypes, present: (C, D) and (C,) bool, those of an earlier task if there are any.
        means, seen: (C, D) and (C,) bool, class means of the memory and the classes that have one.
        absent: ``masked`` keeps the former prototype of a class without a mean; ``zero`` makes it a zero vector that
            counts as present, unless no class at all has a mean (reference code).

    Returns:
        The new (C, D) prototypes and (C,) bool.
    """
    if absent == "zero":
        return torch.where(seen[:, None], means, torch.zeros_like(means)), seen.any().expand_as(seen).clone()
    return torch.where(seen[:, None], means, prototypes), present | seen


def updated_prototypes(
    prototypes: Tensor, present: Tensor, means: Tensor, seen: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Update the prototypes by momentum (algorithm 1, i mod I_p = 0): ``p <- momentum p + (1 - momentum) mean``.

    A class that has a mean but no prototype takes the mean whole; one without a mean keeps its prototype.

    Returns:
        The new (C, D) prototypes and (C,) bool.
    """
    moved = momentum * prototypes + (1 - momentum) * means
    known = torch.where((seen & present)[:, None], moved, prototypes)
    return torch.where((seen & ~present)[:, None], means, known), present | seen


class Prototypes(nn.Module):
    """Prototypes as buffers, so that a resumed run has them (the reference code keeps them in a list, and loses them).

    Buffers:
        vectors: (C, D) float32.
        present: (C,) bool, the class has a prototype.
    """

    vectors: Tensor
    present: Tensor

    def __init__(self, num_classes: int, feature_dim: int, absent: Literal["masked", "zero"] = "masked") -> None:
        super().__init__()
        self.absent = absent
        self.register_buffer("vectors", torch.zeros(num_classes, feature_dim))
        self.register_buffer("present", torch.zeros(num_classes, dtype=torch.bool))

    @property
    def started(self) -> bool:
        """Whether at least one class has a prototype."""
        return bool(self.present.any())

    @torch.no_grad()
    def start(self, means: Tensor, seen: Tensor) -> None:
        """Set the prototypes to the class means, see :func:`initial_prototypes`."""
        vectors, present = initial_prototypes(self.vectors, self.present, means, seen, self.absent)
        self.vectors.copy_(vectors)
        self.present.copy_(present)

    @torch.no_grad()
    def update(self, means: Tensor, seen: Tensor, momentum: float) -> None:
        """Move the prototypes towards the class means, see :func:`updated_prototypes`."""
        vectors, present = updated_prototypes(self.vectors, self.present, means, seen, momentum)
        self.vectors.copy_(vectors)
        self.present.copy_(present)

    def grow(self, num_classes: int, kept: Sequence[tuple[int, int]]) -> None:
        """Make room for ``num_classes`` rows; ``kept`` are (old row, new row) pairs, all other rows are absent."""
        self.vectors = moved_rows(self.vectors, num_classes, kept)
        self.present = moved_rows(self.present, num_classes, kept)
