"""Weighted k-nearest-neighbour probe (InstDisc, Wu et al. 2018, section 3.4).

Shapes: M queries, N samples with labels, D dimensions, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def knn_predict(
    queries_MD: Tensor,
    bank_ND: Tensor,
    labels_N: Tensor,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> Tensor:
    """Class of each query by the votes exp(cosine / T) of its ``k`` nearest samples.

    Args:
        queries_MD: (M, D) features, not normalised.
        bank_ND: (N, D) features with labels, not normalised; N >= 1 (>= 2 with ``leave_one_out``).
        labels_N: (N,) int64 classes from 0.
        k: neighbours; where there are fewer samples, all of them vote.
        leave_one_out: the queries are the bank, and no sample votes for itself.

    Returns:
        (M,) int64.
    """
    similarity_MN = F.normalize(queries_MD.float(), dim=1) @ F.normalize(bank_ND.float(), dim=1).T
    if leave_one_out:
        similarity_MN.fill_diagonal_(-torch.inf)
    nearest, rows = similarity_MN.topk(min(k, len(bank_ND) - leave_one_out), dim=1)
    weights = ((nearest - 1) / temperature).exp()  # the same factor for every vote, and no overflow at small T
    votes_MC = weights.new_zeros(len(queries_MD), int(labels_N.max()) + 1)
    votes_MC.scatter_add_(1, labels_N[rows], weights)
    return votes_MC.argmax(dim=1)


def knn_accuracy(features_ND: Tensor, labels_N: Tensor, *, k: int, temperature: float) -> float:
    """Leave-one-out accuracy of the probe over N >= 2 samples, a fraction."""
    found = knn_predict(features_ND, features_ND, labels_N, k=k, temperature=temperature, leave_one_out=True)
    return float((found == labels_N).double().mean())


def majority_share(labels_N: Tensor) -> float:
    """Accuracy of always saying the commonest class: what the probe must beat."""
    return float(labels_N.bincount().max()) / len(labels_N)
