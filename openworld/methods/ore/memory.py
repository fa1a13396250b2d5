"""Feature memory: the latest Q region features of every class (ORE, section 4.1, F_store).

C classes (rows), Q places per class, D feature dimension, R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureMemory(nn.Module):
    """One first-in-first-out queue per class, as ring buffers that are saved with the model.

    Buffers:
        features: (C, Q, D) float32.
        counts: (C,) int64, filled places.
        pointers: (C,) int64, the place that the next feature takes.
    """

    features: Tensor
    counts: Tensor
    pointers: Tensor

    def __init__(self, num_classes: int, items_per_class: int, feature_dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_classes, items_per_class, feature_dim))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("pointers", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, labels: Tensor) -> None:
        """Append features in their order; in a full class they replace the oldest.

        Args:
            features: (R, D), any floating dtype; detached here.
            labels: (R,) int64; features with a label outside 0…C-1 are not stored.
        """
        num_classes, places, _ = self.features.shape
        labels_R1 = labels[:, None]
        member_RC = labels_R1 == torch.arange(num_classes, device=labels.device)
        arrivals_C = member_RC.sum(0)
        # The region's number among those of its class in this push; a push may hold more of a class than fit.
        number_R = (member_RC.cumsum(0) * member_RC).sum(1) - 1
        safe_R = labels.clamp(0, num_classes - 1)
        newest_R = member_RC.any(1) & (number_R >= arrivals_C[safe_R] - places)
        rows = safe_R[newest_R]
        slots = (self.pointers[rows] + number_R[newest_R]) % places
        self.features[rows, slots] = features.detach()[newest_R].to(self.features.dtype)
        self.pointers.copy_((self.pointers + arrivals_C) % places)
        self.counts.copy_((self.counts + arrivals_C).clamp(max=places))

    @torch.no_grad()
    def means(self) -> tuple[Tensor, Tensor]:
        """Return the class means (C, D) float32, zero for an empty class, and (C,) bool: the class has features."""
        filled_CQ = torch.arange(self.features.shape[1], device=self.counts.device) < self.counts[:, None]
        total_CD = (self.features * filled_CQ[..., None]).sum(1)
        return total_CD / self.counts.clamp(min=1)[:, None], self.counts > 0

    def grow(self, num_classes: int, kept: Sequence[tuple[int, int]]) -> None:
        """Make room for ``num_classes`` rows; ``kept`` are (old row, new row) pairs, all other rows are empty."""
        self.features = moved_rows(self.features, num_classes, kept)
        self.counts = moved_rows(self.counts, num_classes, kept)
        self.pointers = moved_rows(self.pointers, num_classes, kept)


def moved_rows(rows: Tensor, num_rows: int, kept: Sequence[tuple[int, int]]) -> Tensor:
    moved = rows.new_zeros((num_rows, *rows.shape[1:]))
    for old, new in kept:
        moved[new] = rows[old]
    return moved
