"""Losses against prototypes: ProtoNCE, and the swapped prediction of assignments that Sinkhorn balances.

Shapes: B or N samples, D dimensions, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses.numerics import cross_entropy_or_zero, full_precision, soft_cross_entropy


@full_precision
def proto_nce(
    z_ND: Tensor,
    prototypes: Sequence[Tensor],
    assignments: Sequence[Tensor],
    concentrations: Sequence[Tensor],
    *,
    negatives: int | None = None,
    candidates: Literal["paper", "reference"] = "paper",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The prototypes' part of ProtoNCE (PCL, Li et al. 2021, eq. 11): -log softmax(z . c / phi), over M clusterings.

    The whole loss adds :func:`info_nce` of the instances. ``candidates`` says what the softmax runs over:

    * ``paper``: for each anchor its own prototype and r others, drawn without replacement. (Eq. 11 sums from 0 to r;
      the positive is one of the r + 1.)
    * ``reference``, as the released code: the prototypes of the whole batch, one column per anchor, and r of those to
      which no anchor belongs. Two anchors of one cluster are then a negative of each other.

    Args:
        z_ND: (N, D) projections, any float dtype, not normalised.
        prototypes: M tensors (K_m, D), not normalised.
        assignments: M tensors (N,) int64: row of ``prototypes[m]`` that each anchor belongs to.
        concentrations: M tensors (K_m,), phi > 0 of each prototype, in place of a temperature.
        negatives: r; None, or more than there are, takes all.
        generator: of the draws, on the CPU; None is the global one.

    Returns:
        Scalar. With ``paper``, equal phi and equal similarities: ln(r + 1). 0 for an empty batch or M = 0.
    """
    z = F.normalize(z_ND, dim=1)
    total = z.sum() * 0
    if len(z) == 0 or not prototypes:
        return total
    for centres_KD, own_N, phi_K in zip(prototypes, assignments, concentrations, strict=True):
        if candidates == "paper":
            columns_NC, target_N = _own_and_others(own_N, len(centres_KD), negatives, generator)
        else:
            columns_NC, target_N = _batch_and_absent(own_N, len(centres_KD), negatives, generator)
        logits_NK = z @ F.normalize(centres_KD, dim=1).T / phi_K
        total = total + cross_entropy_or_zero(logits_NK.gather(1, columns_NC), target_N)
    return total / len(prototypes)


@torch.no_grad()
@full_precision
def sinkhorn(scores_BK: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignments of B samples to K prototypes that share the samples evenly (SwAV, Caron et al. 2020, eq. 3).

    Q = exp(scores / epsilon), then alternately each prototype's mass becomes 1 / K and each sample's 1 / B, as in the
    authors' code; the result is B * Q. Computed with logarithms: exp(0.9 / 0.05) alone overflows fp16. After the last
    turn the samples' masses are exact and the prototypes' only nearly equal. With several processes, or a queue, give
    the scores of all and take your own rows.

    Args:
        scores_BK: (B, K) similarities to the prototypes, any float dtype.
        epsilon: smoothness; smaller is nearer to a hard assignment.
        iterations: at least 1.

    Returns:
        (B, K), rows sum to 1, without gradient, float32 (float64 for float64).
    """
    log_q = scores_BK / epsilon
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(dim=0, keepdim=True)
        log_q = log_q - log_q.logsumexp(dim=1, keepdim=True)
    return log_q.exp()


@torch.no_grad()
@full_precision
def sinkhorn_labels(
    features_ND: Tensor, prototypes_KD: Tensor, epsilon: float = 0.05, iterations: int = 20, block: int = 2**25
) -> Tensor:
    """Assign each sample of a whole set by :func:`sinkhorn`; the (N, K) scores need not fit in memory.

    The optimal transport of SeLa (Asano et al. 2020, section 3.1), hard as there: the largest entry of each row. Only
    the K column potentials of Q are kept; the scores are computed again, block by block, in every round.

    Args:
        features_ND: (N, D), any float dtype, not normalised here; the scores are the dot products.
        prototypes_KD: (K, D).
        epsilon: smoothness.
        iterations: at least 1.
        block: number of scores in memory.

    Returns:
        (N,) int64, ``sinkhorn(features @ prototypes.T, epsilon, iterations).argmax(1)``.
    """
    blocks = features_ND.split(max(1, block // len(prototypes_KD)))
    potential_K = torch.zeros_like(prototypes_KD[:, 0])
    for iteration in range(iterations):
        masses = []
        for rows_BD in blocks:
            scores_BK = rows_BD @ prototypes_KD.T / epsilon
            if iteration:
                scores_BK = scores_BK - (scores_BK - potential_K).logsumexp(dim=1, keepdim=True)
            masses.append(scores_BK.logsumexp(dim=0))
        potential_K = torch.stack(masses).logsumexp(dim=0)
    return torch.cat([(rows_BD @ prototypes_KD.T / epsilon - potential_K).argmax(dim=1) for rows_BD in blocks])


@full_precision
def swapped_prediction(
    scores: Sequence[Tensor],
    assigned_views: Sequence[int] = (0, 1),
    temperature: float = 0.1,
    epsilon: float = 0.05,
    iterations: int = 3,
    queue_scores: Sequence[Tensor] | None = None,
) -> Tensor:
    """Each view predicts the assignment of the others (SwAV, eq. 2; multi-crop: eq. 6).

    There are no negatives: the balance of :func:`sinkhorn` keeps the assignments from collapsing.

    Args:
        scores: V tensors (B, K), cosines of each view's features and the prototypes, any float dtype.
        assigned_views: the views whose assignments are predicted; with multi-crop the large ones.
        queue_scores: one tensor (Q, K) for each assigned view: samples that take part in the balance only, from
            earlier batches or from other processes.

    Returns:
        Scalar, mean over assigned views, over the V - 1 other views and over B. ln K where all scores are equal; 0 for
        an empty batch.
    """
    if len(scores[0]) == 0 or len(scores) < 2:
        return torch.stack([view.sum() * 0 for view in scores]).sum()
    losses = []
    for place, assigned in enumerate(assigned_views):
        balanced = scores[assigned].detach()
        if queue_scores is not None:
            balanced = torch.cat([balanced, queue_scores[place].detach()])
        assignment_BK = sinkhorn(balanced, epsilon, iterations)[: len(scores[assigned])]
        losses += [soft_cross_entropy(s / temperature, assignment_BK) for v, s in enumerate(scores) if v != assigned]
    return torch.stack(losses).mean()


def _own_and_others(
    own_N: Tensor, count: int, negatives: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Columns (N, C), the own prototype and r others drawn for each anchor, or all; and the place of the own one."""
    if negatives is None or negatives >= count - 1:
        return torch.arange(count, device=own_N.device).expand(len(own_N), -1), own_N
    priority_NK = torch.rand(len(own_N), count, generator=generator).to(own_N.device)
    priority_NK.scatter_(1, own_N[:, None], 2.0)
    return priority_NK.topk(1 + negatives, dim=1).indices, torch.zeros_like(own_N)


def _batch_and_absent(
    own_N: Tensor, count: int, negatives: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Columns (N, N + r) and targets: the prototypes of the whole batch, then r to which no anchor belongs."""
    absent = torch.ones(count, dtype=torch.bool, device=own_N.device).index_fill_(0, own_N, False).nonzero()[:, 0]
    drawn = absent[torch.randperm(len(absent), generator=generator).to(own_N.device)[:negatives]]
    return torch.cat([own_N, drawn]).expand(len(own_N), -1), torch.arange(len(own_N), device=own_N.device)
