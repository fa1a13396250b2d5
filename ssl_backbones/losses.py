"""Contrastive losses as pure functions of projected features.

Shapes: N pairs, D dimensions, K negatives. Features are normalised here, visibly, and not in the heads. Everything is
computed in fp32 (float64 stays float64), also under autocast: a softmax over thousands of similarities divided by a
small temperature needs the digits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    with torch.autocast(z1_ND.device.type, enabled=False):
        z = F.normalize(_full(torch.cat([z1_ND, z2_ND])), dim=1)
        if count == 0:
            return z.sum()
        logits = z @ z.T / temperature
        logits.fill_diagonal_(-torch.inf)
        positive = torch.arange(2 * count, device=z.device).roll(count)
        return F.cross_entropy(logits, positive)


def info_nce(q_ND: Tensor, k_ND: Tensor, negatives_KD: Tensor, temperature: float) -> Tensor:
    """InfoNCE with a bank of negatives (MoCo, He et al. 2020, eq. 1), mean over the N queries.

    Args:
        q_ND: (N, D) queries, any float dtype, not normalised.
        k_ND: (N, D) positive keys; detached by the caller where no gradient shall reach them.
        negatives_KD: (K, D) negatives shared by all queries. K may be 0.

    Returns:
        Scalar. ln(K + 1) where all similarities are equal; 0 for an empty batch.
    """
    with torch.autocast(q_ND.device.type, enabled=False):
        q, k, negatives = (F.normalize(_full(x), dim=1) for x in (q_ND, k_ND, negatives_KD))
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ negatives.T], dim=1) / temperature
        if len(q) == 0:
            return logits.sum()
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def _full(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
