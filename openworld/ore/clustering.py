"""Contrastive clustering loss (ORE, eq. 1): a feature is drawn to its prototype and pushed from the others.

N regions, C prototypes (rows), D feature dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def minkowski_distances(features: Tensor, prototypes: Tensor, order: float) -> Tensor:
    """Distances ``(sum_d |f_d - p_d|^order)^(1/order)``, with gradient 0 where they are 0.

    Args:
        features: (N, D) float32 or float64.
        prototypes: (C, D), same dtype.
        order: 1 or more; 2 is Euclidean.

    Returns:
        (N, C), dtype of the features. Orders above 2 are computed in float64: their gradient divides by
        ``distance^(order-1)``, which leaves the float32 range for distances below 1e-4 at order 10.
    """
    dtype = features.dtype
    if order > 2:
        features, prototypes = features.double(), prototypes.double()
    # The matrix-product form of order 2 loses small distances to cancellation.
    distances = torch.cdist(features, prototypes, p=order, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.to(dtype)


def clustering_loss(
    features: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    present: Tensor,
    *,
    margin: float = 10.0,
    order: float = 2.0,
    absent: Literal["masked", "zero"] = "masked",
    reduction: Literal["region", "all"] = "region",
    background: int | None = None,
) -> Tensor:
    """Hinge embedding loss between region features and class prototypes.

    A region with label y and a prototype i at distance d contribute ``d`` if ``i = y``, else ``max(0, margin - d)``.

    Args:
        features: (N, D) floating; float64 is kept, everything else is computed in float32 outside autocast.
        labels: (N,) int64; regions of ``background`` and of labels outside 0…C-1 take no part.
        prototypes: (C, D), taken as constants.
        present: (C,) bool.
        margin: hinge margin, in units of the distance (paper: 10; reference code: 2).
        order: of the Minkowski distance (paper: 2; reference code: 10).
        absent: ``masked`` leaves prototypes that are not present out (paper); ``zero`` counts each as a zero vector
            (reference code).
        reduction: ``region`` sums over prototypes and averages over regions (paper); ``all`` averages over both
            (reference code).
        background: row of background, or None if no label can be background.

    Returns:
        Scalar, float32 or float64, without the weight of the loss. Where no region takes part or no prototype is
        present it is exactly 0, with zero gradient (the reference code gives NaN, or fails).
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        prototypes = prototypes.detach().to(features.dtype)
        num_columns = prototypes.shape[0]
        takes_part = (labels >= 0) & (labels < num_columns)
        if background is not None:
            takes_part &= labels != background
        features_ND, labels_N = features[takes_part], labels[takes_part]
        if len(labels_N) == 0 or not bool(present.any()):
            return features[:0].sum()

        # All absent prototypes are one and the same zero vector: one distance serves them all.
        vectors = prototypes[present]
        if absent == "zero" and not bool(present.all()):
            vectors = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
            column_of = torch.where(present, present.cumsum(0) - 1, len(vectors) - 1)
            rows = torch.arange(num_columns, device=labels.device)
            distances_NC = minkowski_distances(features_ND, vectors, order)[:, column_of]
        else:
            rows = present.nonzero()[:, 0]
            distances_NC = minkowski_distances(features_ND, vectors, order)
        own_NC = labels_N[:, None] == rows
        terms_NC = torch.where(own_NC, distances_NC, (margin - distances_NC).clamp(min=0))
        return terms_NC.mean() if reduction == "all" else terms_NC.sum(1).mean()
