"""Losses in two parts, also used as measures: positives lie together, and all features follow a distribution.

Shapes: N pairs, D dimensions, P directions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.losses.numerics import full_precision, mean


@full_precision
def alignment(x_ND: Tensor, y_ND: Tensor, alpha: float = 2.0) -> Tensor:
    """How near positives lie on the sphere (Wang and Isola 2020, section 4.1): mean ||x - y||^alpha.

    Args:
        x_ND: (N, D) features of the first views, any float dtype, not normalised.
        y_ND: (N, D) of the second views.

    Returns:
        Scalar, 0 is best; 0 for an empty batch.
    """
    squared = (F.normalize(x_ND, dim=1) - F.normalize(y_ND, dim=1)).square().sum(dim=1)
    if alpha == 2:
        return mean(squared)
    return mean(squared.clamp(min=torch.finfo(squared.dtype).tiny).pow(alpha / 2))  # no infinite slope at 0


@full_precision
def uniformity(x_ND: Tensor, t: float = 2.0) -> Tensor:
    """How evenly features cover the sphere (Wang and Isola 2020, section 4.1): log mean_{i<j} exp(-t ||x_i - x_j||^2).

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


@full_precision
def sliced_wasserstein(x_ND: Tensor, prior_ND: Tensor, directions_DP: Tensor) -> Tensor:
    """Squared sliced Wasserstein distance of two sets of N points (Chen et al. 2021, algorithm 1).

    Both are projected on each direction and sorted; the mean of the squared differences is returned. With one
    direction of length 1 it is the squared Wasserstein-2 distance on the line.

    Args:
        x_ND: (N, D) features, any float dtype.
        prior_ND: (N, D) draws from the distribution that they shall follow.
        directions_DP: (D, P) with orthonormal columns.

    Returns:
        Scalar; 0 for an empty batch.
    """
    ours, theirs = ((points @ directions_DP).sort(dim=0).values for points in (x_ND, prior_ND))
    return mean((ours - theirs).square())


@full_precision
def generalised_contrastive(
    z1_ND: Tensor,
    z2_ND: Tensor,
    *,
    distribution: Literal["logsumexp", "normal", "hypersphere", "hypercube"],
    distribution_weight: float = 1.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Alignment and a distribution apart (Intriguing Properties of Contrastive Losses, Chen et al. 2021, section 2).

    The alignment is half the mean squared difference of the positives, over all N * D numbers. To it are added
    ``distribution_weight`` times

    * ``logsumexp``: mean_i log sum_j exp(z_i . z_j / temperature) - ln D over the sphere: NT-Xent, decoupled. As in the
      authors' code j = i is in the sum and ln D a mere constant.
    * ``normal``, ``hypersphere``, ``hypercube``: :func:`sliced_wasserstein` to N(0, 1) in all dimensions, to uniform
      points on the sphere, to uniform points in [-1, 1]^D, along D random orthogonal directions.

    Features are normalised for ``logsumexp`` and ``hypersphere``, and not for the others.

    Args:
        z1_ND: (N, D) projections of the first views, any float dtype, not normalised.
        z2_ND: (N, D) of the second views.
        temperature: of ``logsumexp`` only.
        generator: of the prior and the directions, on the CPU; None is the global one.

    Returns:
        Scalar; 0 for an empty batch.
    """
    if distribution in ("logsumexp", "hypersphere"):
        z1_ND, z2_ND = F.normalize(z1_ND, dim=1), F.normalize(z2_ND, dim=1)
    z = torch.cat([z1_ND, z2_ND])
    if len(z) == 0:
        return z.sum()
    aligned = (z1_ND - z2_ND).square().mean() / 2
    if distribution == "logsumexp":
        spread = (z @ z.T / temperature).logsumexp(dim=1).mean() - math.log(z.shape[1])
    else:
        prior, directions = (draw.to(z) for draw in _prior_and_directions(z.shape, distribution, generator))
        spread = sliced_wasserstein(z, prior, directions)
    return aligned + distribution_weight * spread


def _prior_and_directions(
    shape: torch.Size, distribution: str, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draws (N, D) from the prior, and a random orthogonal (D, D) matrix, both float64 on the CPU."""
    if distribution == "hypercube":
        prior = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    else:
        prior = torch.randn(shape, generator=generator, dtype=torch.float64)
    if distribution == "hypersphere":
        prior = F.normalize(prior, dim=1)
    directions, triangle = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64))
    return prior, directions * triangle.diagonal().sign()  # with these signs the matrix is uniform (Haar)
