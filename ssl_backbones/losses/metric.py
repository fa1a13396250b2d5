"""Metric learning on pairs and triplets: margins, N-pairs, and the logistic and margin forms of SimCLR's table 2.

Shapes: N pairs or triplets, D dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses.numerics import cross_entropy, full_precision, mean

Reduction = Literal["mean", "sum", "nonzero"]
"""How the N values become one: mean over all, sum, or mean over those above 0 (the usual default of libraries)."""


@full_precision
def max_margin_contrastive(
    x1_ND: Tensor,
    x2_ND: Tensor,
    same_N: Tensor,
    margin: float,
    *,
    form: Literal["squared", "hadsell"] = "hadsell",
    reduction: Reduction = "mean",
) -> Tensor:
    """Max-margin contrastive loss: d^2 for pairs that belong together, a hinge on the distance for the others.

    ``hadsell`` is max(0, margin - d)^2 (Hadsell et al. 2006, eq. 4, without its factor 1/2). ``squared`` is
    max(0, margin - d^2), the hinge on the squared distance that is often printed. They differ much: at d = 1 and
    margin 20 they are 361 and 19, and the same margin lies at d = 20 in the one and at d = 4.5 in the other.

    Args:
        x1_ND: (N, D) features, any float dtype, not normalised here.
        x2_ND: (N, D) features of the other half of each pair.
        same_N: (N,) bool, whether a pair belongs together.
        margin: in units of distance (``hadsell``) or of squared distance (``squared``).

    Returns:
        Scalar; 0 without pairs.
    """
    squared = (x1_ND - x2_ND).square().sum(dim=1)
    if form == "hadsell":
        # The root's slope is infinite at 0: equal features of different classes get the gradient 0 and not NaN.
        distance = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()
        apart = (margin - distance).clamp(min=0).square()
    else:
        apart = (margin - squared).clamp(min=0)
    return _reduce(torch.where(same_N, squared, apart), reduction)


@full_precision
def triplet(
    anchors_ND: Tensor, positives_ND: Tensor, negatives_ND: Tensor, margin: float, *, reduction: Reduction = "mean"
) -> Tensor:
    """Triplet loss on squared distances (FaceNet, Schroff et al. 2015): max(0, d2(a, p) - d2(a, n) + margin).

    The paper sums; libraries tend to average over the triplets above 0. These are ``sum`` and ``nonzero``.

    Args:
        anchors_ND, positives_ND, negatives_ND: (N, D) features, any float dtype, not normalised here.

    Returns:
        Scalar; 0 without triplets.
    """
    to_positive = (anchors_ND - positives_ND).square().sum(dim=1)
    to_negative = (anchors_ND - negatives_ND).square().sum(dim=1)
    return _reduce((to_positive - to_negative + margin).clamp(min=0), reduction)


@full_precision
def n_pair(anchors_ND: Tensor, positives_ND: Tensor) -> Tensor:
    """Multi-class N-pair loss (Sohn 2016): CE(a p^T, diagonal), neither normalised nor scaled.

    Args:
        anchors_ND: (N, D), one of each of N classes, any float dtype.
        positives_ND: (N, D), another of each class; those of other classes are the negatives.

    Returns:
        Scalar, mean over anchors. ln N where all products are equal; 0 for an empty batch.
    """
    return cross_entropy(anchors_ND @ positives_ND.T, torch.arange(len(anchors_ND), device=anchors_ND.device))


@full_precision
def nt_logistic(u_ND: Tensor, positives_ND: Tensor, negatives_ND: Tensor, temperature: float) -> Tensor:
    """NT-Logistic (SimCLR, table 2, with the sign of a loss): -log sigmoid(u v+ / t) - log sigmoid(-u v- / t).

    Args:
        u_ND: (N, D) anchors, any float dtype, not normalised.
        positives_ND: (N, D) one positive each.
        negatives_ND: (N, D) one negative each; which one is the caller's choice (the paper also tries semi-hard ones).

    Returns:
        Scalar, mean over anchors. 2 ln 2 where both similarities are 0; 0 for an empty batch.
    """
    to_positive, to_negative = _cosines(u_ND, positives_ND, negatives_ND)
    return mean(-F.logsigmoid(to_positive / temperature) - F.logsigmoid(-to_negative / temperature))


@full_precision
def margin_triplet(u_ND: Tensor, positives_ND: Tensor, negatives_ND: Tensor, margin: float) -> Tensor:
    """Margin triplet on cosine similarities (SimCLR, table 2, with the sign of a loss): max(0, u v- - u v+ + margin).

    Args:
        u_ND, positives_ND, negatives_ND: (N, D) as in :func:`nt_logistic`.

    Returns:
        Scalar, mean over anchors; 0 for an empty batch.
    """
    to_positive, to_negative = _cosines(u_ND, positives_ND, negatives_ND)
    return mean((to_negative - to_positive + margin).clamp(min=0))


def _cosines(u_ND: Tensor, positives_ND: Tensor, negatives_ND: Tensor) -> tuple[Tensor, Tensor]:
    u, positives, negatives = (F.normalize(x, dim=1) for x in (u_ND, positives_ND, negatives_ND))
    return (u * positives).sum(dim=1), (u * negatives).sum(dim=1)


def _reduce(values_N: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "mean":
        return mean(values_N)
    total = values_N.sum()
    return total if reduction == "sum" else total / (values_N > 0).sum().clamp(min=1)
