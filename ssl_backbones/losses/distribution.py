"""Alignment and uniformity of features on the sphere (Wang and Isola 2020): measures of a pretrained backbone.

Shapes: N pairs, D dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses.numerics import full_precision, mean_or_zero


@full_precision
def alignment(x_ND: Tensor, y_ND: Tensor, alpha: float = 2.0) -> Tensor:
    """Measure how near positives lie on the sphere (Wang and Isola 2020, section 4.1): mean ||x - y||^alpha.

    Args:
        x_ND: (N, D) features of the first views, any float dtype, not normalised.
        y_ND: (N, D) of the second views.

    Returns:
        Scalar, 0 is best; 0 for an empty batch.
    """
    squared = (F.normalize(x_ND, dim=1) - F.normalize(y_ND, dim=1)).square().sum(dim=1)
    if alpha == 2:
        return mean_or_zero(squared)
    return mean_or_zero(squared.clamp(min=torch.finfo(squared.dtype).tiny).pow(alpha / 2))  # no infinite slope at 0


@full_precision
def uniformity(x_ND: Tensor, t: float = 2.0) -> Tensor:
    """Measure how evenly features cover the sphere (Wang and Isola 2020, section 4.1).

    The value is log mean_{i<j} exp(-t ||x_i - x_j||^2).

    Args:
        x_ND: (N, D) features, any float dtype, not normalised. Memory grows with N^2.

    Returns:
        Scalar from about -2t (even) to 0 (collapsed); 0 with fewer than two samples.
    """
    x = F.normalize(x_ND, dim=1)
    if len(x) < 2:
        return x.sum() * 0
    exponents = -t * F.pdist(x).square()
    return exponents.logsumexp(dim=0) - math.log(len(exponents))
