"""Losses without negatives, by which two views, or a student and a teacher, come to agree.

Shapes: N images, D dimensions or classes. Nothing is detached here; the caller stops gradients, visibly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses.numerics import full_precision, mean_or_zero, soft_cross_entropy


@full_precision
def negative_cosine(p_ND: Tensor, z_ND: Tensor) -> Tensor:
    """Negative cosine similarity (SimSiam, Chen and He 2021, eq. 1), mean over N.

    The symmetrised loss (eq. 4) is half of (p1, z2) and half of (p2, z1), with z detached by the caller.

    Args:
        p_ND: (N, D) predictions, any float dtype, not normalised.
        z_ND: (N, D) projections of the other views.

    Returns:
        Scalar from -1 to 1; 0 for an empty batch.
    """
    return mean_or_zero(-(F.normalize(p_ND, dim=1) * F.normalize(z_ND, dim=1)).sum(dim=1))


@full_precision
def byol_regression(p_ND: Tensor, z_ND: Tensor) -> Tensor:
    """Squared distance of normalised vectors, 2 - 2 cos (BYOL, Grill et al. 2020, eq. 2), mean over N.

    The loss of a step is the *sum* of both directions, which starts near 4.

    Args:
        p_ND: (N, D) predictions of the online network, any float dtype, not normalised.
        z_ND: (N, D) projections of the target network.

    Returns:
        Scalar from 0 to 4; 0 for an empty batch.
    """
    return mean_or_zero((F.normalize(p_ND, dim=1) - F.normalize(z_ND, dim=1)).square().sum(dim=1))


@full_precision
def barlow_twins(z1_ND: Tensor, z2_ND: Tensor, offdiagonal_weight: float = 0.0051) -> Tensor:
    """Redundancy reduction (Barlow Twins, Zbontar et al. 2021, eq. 1): the cross-correlation becomes the identity.

    Each dimension is standardised over the batch, as the authors' batch norm without parameters does (biased variance,
    eps 1e-5). With several processes gather the batch of all of them first; standardising each part alone is
    another loss.

    Args:
        z1_ND: (N, D) projections of the first views, any float dtype.
        z2_ND: (N, D) of the second views.
        offdiagonal_weight: lambda.

    Returns:
        Scalar: sum_i (C_ii - 1)^2 + lambda * sum_{i != j} C_ij^2. 0 for an empty batch.
    """
    if len(z1_ND) == 0:
        return z1_ND.sum() + z2_ND.sum()
    correlation_DD = _standardise(z1_ND).T @ _standardise(z2_ND) / len(z1_ND)
    diagonal = correlation_DD.diagonal()
    off_diagonal = correlation_DD - torch.diag(diagonal)
    return (diagonal - 1).square().sum() + offdiagonal_weight * off_diagonal.square().sum()


@full_precision
def dino_cross_entropy(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    student_temperature: float,
    teacher_temperature: float,
    center: Tensor,
) -> Tensor:
    """Cross entropy of teacher and student over different views (DINO, Caron et al. 2021, eq. 3 and algorithm 1).

    The caller moves the centre after the loss.

    Args:
        student: logits (N, K) of each view, the teacher's views first and in the teacher's order; any float dtype.
        teacher: logits (N, K) of the global views, without gradient.
        center: (K,) or (1, K), subtracted from the teacher's logits.

    Returns:
        Scalar: mean over all pairs of a teacher's and another view, and over N. ln K where all student logits are
        equal; 0 for an empty batch, or where there is no such pair.
    """
    targets = [F.softmax((logits - center) / teacher_temperature, dim=1) for logits in teacher]
    losses = [
        soft_cross_entropy(logits / student_temperature, target)
        for t, target in enumerate(targets)
        for s, logits in enumerate(student)
        if s != t
    ]
    return torch.stack(losses).mean() if losses else torch.stack([view.sum() * 0 for view in student]).sum()


@full_precision
def distillation(student_NC: Tensor, teacher_NC: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross entropy of a student with a teacher's softened classes (SimCLR v2, Chen et al. 2020b, eq. 2), mean over N.

    There is no factor temperature^2 (that is Hinton et al. 2015), so the gradient shrinks as the temperature grows.

    Args:
        student_NC: (N, C) logits, any float dtype.
        teacher_NC: (N, C) logits, without gradient.
        temperature: of both softmaxes.

    Returns:
        Scalar, at least the teacher's entropy; 0 for an empty batch.
    """
    return soft_cross_entropy(student_NC / temperature, F.softmax(teacher_NC / temperature, dim=1))


def _standardise(z_ND: Tensor) -> Tensor:
    return (z_ND - z_ND.mean(dim=0)) / (z_ND.var(dim=0, correction=0) + 1e-5).sqrt()
