"""Softmax over one positive and many negatives: InfoNCE and its relatives.

Shapes: N anchors, D dimensions, K negatives. Features are normalised here, visibly, and not in the heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses.numerics import cross_entropy_or_zero, full_precision, mean_or_zero


@full_precision
def nt_xent(z1_ND: Tensor, z2_ND: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (SimCLR, Chen et al. 2020, eq. 1), mean over all 2N anchors.

    Each view has one positive, the other view of its image, and 2N - 2 negatives. The authors' TensorFlow code returns
    the sum over the two directions, which is twice this value.

    Args:
        z1_ND: (N, D) projections of the first views, any float dtype, not normalised.
        z2_ND: (N, D) of the second views; row i is of the same image as row i of ``z1_ND``.

    Returns:
        Scalar. ln(2N - 1) where all similarities are equal; 0 for an empty batch.
    """
    count = len(z1_ND)
    z = F.normalize(torch.cat([z1_ND, z2_ND]), dim=1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(-torch.inf)
    positive = torch.arange(2 * count, device=z.device).roll(count)
    return cross_entropy_or_zero(logits, positive)


@full_precision
def info_nce(q_ND: Tensor, k_ND: Tensor, negatives_KD: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a bank of negatives (MoCo, He et al. 2020, eq. 1), mean over the N queries.

    The loss is -log of the positive's probability, with one minus sign; van den Oord et al. 2018, eq. 4, have the same.

    Args:
        q_ND: (N, D) queries, any float dtype, not normalised.
        k_ND: (N, D) positive keys; detached by the caller where no gradient should reach them.
        negatives_KD: (K, D) negatives shared by all queries, or (N, K, D) of each query. K may be 0.

    Returns:
        Scalar. ln(K + 1) where all similarities are equal; 0 for an empty batch.
    """
    q, k, negatives = (F.normalize(x, dim=-1) for x in (q_ND, k_ND, negatives_KD))
    if negatives.ndim == 3:
        logits = _bank_logits(q, k, negatives, temperature)
    else:
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ negatives.T], dim=1) / temperature
    return cross_entropy_or_zero(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


@full_precision
def info_nce_batch(q_ND: Tensor, k_ND: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE whose negatives are the other keys of the batch, one direction: CE(q k^T / temperature, diagonal).

    MoCo v3 (Chen et al. 2021) multiplies it by 2 * temperature and adds both directions; CLIP (Radford et al. 2021)
    takes the mean of both. It is NNCLR's loss (Dwibedi et al. 2021) where ``q_ND`` are the neighbours, found by
    the caller, and ``k_ND`` the *predictions* p+ = g(z+) of the other view. Accounts of it that have z+ there leave out
    the predictor. The nearest by Euclidean distance is the nearest by cosine on the sphere only, so look neighbours up
    among normalised features.

    Args:
        q_ND: (N, D) queries, any float dtype, not normalised.
        k_ND: (N, D) keys; row i is the positive of query i. Detached by the caller where no gradient should reach them.
        temperature: a number, or a scalar tensor that is learned (CLIP).

    Returns:
        Scalar. ln N where all similarities are equal; 0 for an empty batch.
    """
    logits = F.normalize(q_ND, dim=1) @ F.normalize(k_ND, dim=1).T / temperature
    return cross_entropy_or_zero(logits, torch.arange(len(q_ND), device=q_ND.device))


@full_precision
def sup_con(z_ND: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out: the mean over positives is outside the log).

    An anchor without a positive is left out of the mean. The authors' code counts it as 0, and multiplies the loss by
    temperature / 0.07. Where each label occurs twice this is :func:`nt_xent`.

    Args:
        z_ND: (N, D) projections of all views together, any float dtype, not normalised.
        labels_N: (N,) integers; two views of an image have the same one.

    Returns:
        Scalar, mean over the anchors that have a positive. ln(N - 1) where all similarities are equal; 0 where no
        anchor has a positive.
    """
    z = F.normalize(z_ND, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels_N[:, None] == labels_N) & ~itself
    log_p = F.log_softmax((z @ z.T / temperature).masked_fill(itself, -torch.inf), dim=1)
    positives = positive.sum(dim=1)
    per_anchor = -log_p.masked_fill(~positive, 0).sum(dim=1)[positives > 0] / positives[positives > 0]
    return mean_or_zero(per_anchor)


@full_precision
def nce(
    z_ND: Tensor,
    positives_ND: Tensor,
    negatives_NKD: Tensor,
    *,
    temperature: float,
    samples: int,
    log_normaliser: float | Tensor,
    proximal_weight: float = 0.0,
) -> Tensor:
    """Noise-contrastive estimation against a memory bank (InstDisc, Wu et al. 2018, eqs. 4 to 10).

    Each of K + 1 bank rows is told apart from uniform noise: h = P / (P + K / n) with P = exp(z . v / temperature) / Z,
    and the loss of an anchor is -log h(positive) - sum over negatives of log(1 - h). Computed as log-sigmoids, without
    the 1e-7 that the released code adds to the denominators. The proximal term of eq. 10 is in the paper only; the
    code has a slowly moving bank instead. A row of the bank changes when its image is seen, once per epoch, and holds
    an embedding, not a view.

    Args:
        z_ND: (N, D) embeddings, any float dtype, not normalised.
        positives_ND: (N, D) bank rows of the same images.
        negatives_NKD: (N, K, D) bank rows drawn uniformly for each anchor, or (K, D) shared by all anchors; K >= 1.
        samples: n, rows of the bank.
        log_normaliser: ln Z, a constant: :func:`nce_log_normaliser` of the first batch, kept with the bank.
        proximal_weight: factor of ||z - positive||^2 (eq. 10); the released code has 0.

    Returns:
        Scalar, mean over anchors; 0 for an empty batch.
    """
    logits = _bank_logits(z_ND, positives_ND, negatives_NKD, temperature)
    margin = logits - log_normaliser - math.log((logits.shape[1] - 1) / samples)  # ln P - ln(K / n)
    per_anchor = -F.logsigmoid(margin[:, 0]) - F.logsigmoid(-margin[:, 1:]).sum(dim=1)
    if proximal_weight:
        moved = F.normalize(z_ND, dim=1) - F.normalize(positives_ND, dim=1)
        per_anchor = per_anchor + proximal_weight * moved.square().sum(dim=1)
    return mean_or_zero(per_anchor)


@torch.no_grad()
@full_precision
def nce_log_normaliser(
    z_ND: Tensor, positives_ND: Tensor, negatives_NKD: Tensor, *, temperature: float, samples: int
) -> Tensor:
    """ln Z of :func:`nce` by Monte Carlo (InstDisc, eq. 8): Z = n * mean exp(z . v / temperature), from one batch.

    The authors' code estimates it once, from the first batch, over positives and negatives alike.

    Args:
        z_ND, positives_ND, negatives_NKD, temperature, samples: as in :func:`nce`; N >= 1.

    Returns:
        Scalar without gradient.
    """
    logits = _bank_logits(z_ND, positives_ND, negatives_NKD, temperature)
    return logits.logsumexp(dim=(0, 1)) - math.log(logits.numel()) + math.log(samples)


@full_precision
def curl_bilinear(q_ND: Tensor, weight_DD: Tensor, k_ND: Tensor) -> Tensor:
    """InfoNCE with a learned bilinear similarity (CURL, Laskin et al. 2020): CE(q W k^T, diagonal).

    Nothing is normalised and there is no temperature, as in the authors' code. Its subtraction of the row's largest
    logit changes no value; the cross entropy here does that itself.

    Args:
        q_ND: (N, D) queries, any float dtype.
        weight_DD: (D, D) parameter W, uniform in [0, 1) at the start in the authors' code.
        k_ND: (N, D) keys, detached by the caller.

    Returns:
        Scalar, mean over queries. ln N where all similarities are equal; 0 for an empty batch.
    """
    return cross_entropy_or_zero(q_ND @ weight_DD @ k_ND.T, torch.arange(len(q_ND), device=q_ND.device))


def _bank_logits(z_ND: Tensor, positives_ND: Tensor, negatives_NKD: Tensor, temperature: float) -> Tensor:
    """(N, 1 + K) cosines over the temperature, the positive first."""
    z, positives, negatives = (F.normalize(x, dim=-1) for x in (z_ND, positives_ND, negatives_NKD))
    to_negatives = (negatives @ z[:, :, None]).squeeze(2)
    return torch.cat([(z * positives).sum(dim=1, keepdim=True), to_negatives], dim=1) / temperature
