"""Free energy of a region's logits (ORE, eq. 4): low where a known class fits, high where none does.

R regions, K head rows, of which the first are the known classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def negative_energy(logits: Tensor, num_known: int, temperature: float = 1.0) -> Tensor:
    """Compute ``T logsumexp(g / T)`` over the logits ``g`` of the known classes; high means known.

    Args:
        logits: (R, K) floating; unknown, background and classes not yet taught, in rows from ``num_known`` on, are
            left out.
        num_known: number of known classes.
        temperature: T, above 0.

    Returns:
        (R,) float32, or float64 for float64 logits; finite for every logit that is finite in float32.
    """
    known = logits[:, :num_known]
    known = known if known.dtype == torch.float64 else known.float()
    return temperature * torch.logsumexp(known / temperature, dim=1)


def free_energy(logits: Tensor, num_known: int, temperature: float = 1.0) -> Tensor:
    """Compute ``-T logsumexp(g / T)`` (ORE, eq. 4); arguments and result as in :func:`negative_energy`."""
    return -negative_energy(logits, num_known, temperature)
