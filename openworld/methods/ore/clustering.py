"""Contrastive clustering loss (ORE, eq. 1): a feature is drawn to its prototype and pushed from the others.

N regions, C prototypes (rows), D feature dimension, P pairs of a region and a prototype.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Differences held at once: on a CPU few enough for its caches, elsewhere enough to keep the device busy."""

LEAST_SUM, LARGEST_SUM = 1e-20, 1e30
"""Between these a sum of powers needs no scaling: the loss below float32's 1e-38 is less than its rounding."""


def minkowski_distances(features: Tensor, prototypes: Tensor, order: float) -> Tensor:
    """Compute the distances ``(sum_d |f_d - p_d|^order)^(1/order)``.

    Every difference is formed, in blocks: |f|^2 + |p|^2 - 2 f.p and its like for higher orders lose small distances to
    cancellation. Above order 2, where the powers would leave the range of float32, a pair's differences are divided
    by the largest of them first, so that distance and gradient are right whatever the scale. Memory grows with N C and
    (N + C) D.

    Args:
        features: (N, D) float32 or float64.
        prototypes: (C, D), same dtype; constants without a gradient.
        order: 1 or more, infinity included; 2 is Euclidean.

    Returns:
        (N, C), dtype of the features. Its gradient is the subgradient 0 where a distance is 0.

    Raises:
        RuntimeError: in a backward pass with ``create_graph`` at an order above 2, for the second derivative is not
            implemented.
    """
    prototypes = prototypes.detach()
    if order > 2:
        distances: Tensor = _ScaledDistances.apply(features, prototypes, order)  # type: ignore[no-untyped-call]
        return distances
    # On a GPU the gradient of cdist takes memory for all N C D differences of a block.
    rows = max(1, BLOCK_ELEMENTS["cuda"] // max(1, prototypes.numel()))
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(part, prototypes, p=order, compute_mode=mode) for part in features.split(rows)])


class _ScaledDistances(torch.autograd.Function):
    """Distances of an order q above 2 with their gradient in closed form.

    With the differences x, any scale m, u = x / m and s = sum |u|^q: d = m s^(1/q), and the derivative of d by x_d is
    sign(u_d) |u_d|^(q-1) / s^(1-1/q), in which the scale has gone. m is 1 where s is then well inside the range of
    float32, else max |x|.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, order: float) -> Tensor:
        scales_NC = features.new_ones(len(features), len(prototypes))
        sums_NC = torch.empty_like(scales_NC)
        rows, columns, first, second = _scratch(features, len(prototypes))
        for row in range(0, len(features), rows):
            for column in range(0, len(prototypes), columns):
                block = slice(row, row + rows), slice(column, column + columns)
                left, right = features[block[0], None], prototypes[block[1]]
                shape = (len(left), len(right), features.shape[1])
                scaled = torch.sub(left, right, out=first[: len(left) * len(right)].view(shape))
                other = second[: len(left) * len(right)].view(shape)
                sums = torch.linalg.vecdot(_signed_power(scaled, order - 1, out=other), scaled)
                if order == math.inf or not bool(((sums > LEAST_SUM) & (sums < LARGEST_SUM)).all()):
                    largest = torch.amax(torch.abs(scaled, out=other), -1)
                    scales_NC[block] = torch.where(largest > 0, largest, 1)
                    scaled.div_(scales_NC[block][..., None])
                    sums = torch.linalg.vecdot(_signed_power(scaled, order - 1, out=other), scaled)
                sums_NC[block] = sums
        ctx.save_for_backward(features, prototypes, scales_NC, sums_NC)
        ctx.order = order
        return torch.where(sums_NC != 0, scales_NC * sums_NC.pow(1 / order), 0)

    @staticmethod
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"the gradient of a distance of order {ctx.order:g} cannot be differentiated again; leave create_graph "
                "out, or use an order up to 2"
            )
        features, prototypes, scales_NC, sums_NC = ctx.saved_tensors
        weights_NC = torch.where(sums_NC != 0, grad_NC / sums_NC.pow(1 - 1 / ctx.order), 0)
        grad_ND = torch.zeros_like(features)
        rows, columns, first, second = _scratch(features, len(prototypes))
        for row in range(0, len(features), rows):
            block = slice(row, row + rows)
            # The hinge leaves most pairs without gradient.
            for used in weights_NC[block].any(0).nonzero()[:, 0].split(columns):
                left = features[block, None]
                right = torch.index_select(prototypes, 0, used, out=second[: len(used)])
                shape = (len(left), len(right), features.shape[1])
                scaled = torch.sub(left, right, out=first[: len(left) * len(right)].view(shape))
                scales = scales_NC[block, used]
                if bool((scales != 1).any()):
                    scaled.div_(scales[..., None])
                powers = _signed_power(scaled, ctx.order - 1, out=second[: len(left) * len(right)].view(shape))
                grad_ND[block] += torch.bmm(weights_NC[block, None, used], powers)[:, 0]
        return grad_ND, None, None


def _scratch(features: Tensor, num_columns: int) -> tuple[int, int, Tensor, Tensor]:
    """Return the rows and columns of the distance matrix per block, and two work spaces (rows · columns, D).

    Every block uses the same work spaces: on a CPU fresh memory costs more than the arithmetic on it.
    """
    pairs = BLOCK_ELEMENTS.get(features.device.type, BLOCK_ELEMENTS["cuda"]) // max(1, features.shape[1])
    columns = max(1, min(pairs, num_columns))
    rows = max(1, min(pairs // columns, len(features)))
    space = features.new_empty(2, rows * columns, features.shape[1])
    return rows, columns, space[0], space[1]


def _signed_power(base: Tensor, exponent: float, out: Tensor) -> Tensor:
    """Compute ``sign(x) |x|^exponent``, exponent above 1; whole exponents by repeated squaring.

    An infinite exponent is valid for numbers from -1 to 1.
    """
    if exponent == math.inf:
        return torch.mul(base, base.abs() == 1, out=out)
    if exponent != int(exponent):
        return torch.abs(base, out=out).pow_(exponent).copysign_(base)
    # An even power has lost the sign: raise |x| to the odd one below it, and multiply with x.
    even = int(exponent) % 2 == 0
    factor = base.abs() if even else base
    bits = f"{int(exponent) - even:b}"
    power = out.copy_(factor) if bits == "1" else torch.mul(factor, factor, out=out)
    for index, bit in enumerate(bits[1:]):
        if index:
            power.mul_(power)
        if bit == "1":
            power.mul_(factor)
    return power.mul_(base) if even else power


def takes_part(labels: Tensor, num_columns: int, background: int | None) -> Tensor:
    """Return (N,) bool: the labels that take part in the loss, 0…C-1 except background."""
    inside = (labels >= 0) & (labels < num_columns)
    return inside if background is None else inside & (labels != background)


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
    num_regions: Tensor | None = None,
) -> Tensor:
    """Compute the hinge embedding loss between region features and class prototypes.

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
        num_regions: scalar, the divisor of the sum; by default the number of regions that take part. If processes
            average their gradients, pass the mean of this number over the processes: the average of the losses, and of
            the gradients, is then that of one process with all the regions.

    Returns:
        Scalar, float32 or float64, without the weight of the loss. If no region takes part or no prototype is present,
        it is exactly 0, with zero gradient (the reference code gives NaN, or fails). At a distance of 0 the gradient is
        the subgradient 0.

    Raises:
        RuntimeError: in a backward pass with ``create_graph`` at an order above 2, for the second derivative is not
            implemented.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        prototypes = prototypes.detach().to(features.dtype)
        num_columns = prototypes.shape[0]
        chosen = takes_part(labels, num_columns, background)
        features_ND, labels_N = features[chosen], labels[chosen]
        if len(labels_N) == 0 or not bool(present.any()):
            return features[:0].sum()

        # All zero vectors are one prototype: one distance serves them all.
        filled = present & prototypes.any(1) if absent == "zero" else present
        vectors = prototypes[filled]
        if absent == "zero" and not bool(filled.all()):
            vectors = torch.cat([vectors, vectors.new_zeros(1, vectors.shape[1])])
            column_of = torch.where(filled, filled.cumsum(0) - 1, len(vectors) - 1)
            rows = torch.arange(num_columns, device=labels.device)
            distances_NC = minkowski_distances(features_ND, vectors, order)[:, column_of]
        else:
            rows = present.nonzero()[:, 0]
            distances_NC = minkowski_distances(features_ND, vectors, order)
        own_NC = labels_N[:, None] == rows
        terms_NC = torch.where(own_NC, distances_NC, (margin - distances_NC).clamp(min=0))
        loss = terms_NC.mean() if reduction == "all" else terms_NC.sum(1).mean()
        return loss if num_regions is None else loss * (len(labels_N) / num_regions.to(loss.dtype))
