"""Weighted k-nearest-neighbour probe (InstDisc, Wu et al. 2018, section 3.4).

Shapes: M queries, N samples with labels, D dimensions, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.probes.labelled import LabelledSet

QUERIES = 2048
"""Queries compared with all samples together: memory grows with this times N."""


def knn_predict(
    queries_MD: Tensor,
    bank_ND: Tensor,
    labels_N: Tensor,
    *,
    k: int,
    temperature: float,
    leave_one_out: bool = False,
) -> Tensor:
    """Classify each query by the votes exp(cosine / T) of its ``k`` nearest samples.

    Args:
        queries_MD: (M, D) features, not normalised.
        bank_ND: (N, D) features with labels, not normalised; N >= 1 (>= 2 with ``leave_one_out``).
        labels_N: (N,) int64 classes from 0.
        k: number of neighbours; with fewer samples, all of them vote.
        leave_one_out: the queries are the bank, and no sample votes for itself.

    Returns:
        (M,) int64.
    """
    queries, bank = F.normalize(queries_MD.float(), dim=1), F.normalize(bank_ND.float(), dim=1)
    classes, found = int(labels_N.max()) + 1, []
    for start in range(0, len(queries), QUERIES):
        similarity = queries[start : start + QUERIES] @ bank.T
        if leave_one_out:
            similarity.diagonal(offset=start).fill_(-torch.inf)
        nearest, rows = similarity.topk(min(k, len(bank) - 1 if leave_one_out else len(bank)), dim=1)
        weights = ((nearest - 1) / temperature).exp()  # the same factor for every vote, and no overflow at small T
        votes = weights.new_zeros(len(similarity), classes)
        votes.scatter_add_(1, labels_N[rows], weights)
        found.append(votes.argmax(dim=1))
    return torch.cat(found) if found else labels_N.new_empty(0)


def knn_accuracy(features_ND: Tensor, labels_N: Tensor, *, k: int, temperature: float) -> float:
    """Measure the leave-one-out accuracy of the probe over N >= 2 samples, as a fraction."""
    found = knn_predict(features_ND, features_ND, labels_N, k=k, temperature=temperature, leave_one_out=True)
    return float((found == labels_N).double().mean())


def majority_share(labels_N: Tensor) -> float:
    """Accuracy of always choosing the most frequent class, which the probe must beat."""
    return float(labels_N.bincount().max()) / len(labels_N)


def knn_of_set(features_ND: Tensor, data: LabelledSet, *, k: int, temperature: float) -> float:
    """Measure the accuracy on held-out images by the votes of the others, or of each image by all others.

    Args:
        features_ND: (N, D) of ``data.known``.
        k, temperature: as of :func:`knn_predict`.
    """
    if data.leave_one_out:
        return knn_accuracy(features_ND, data.labels[data.known], k=k, temperature=temperature)
    train, test = data.parts(features_ND)
    found = knn_predict(test, train, data.labels[data.train], k=k, temperature=temperature)
    return float((found == data.labels[data.test]).double().mean())
