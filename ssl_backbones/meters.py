"""Collapse meters: whether the features of a batch still differ. They need no forward pass of their own.

Shapes: N features, D dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from openworld.runtime.distributed import gather_rows
from ssl_backbones.method import spread

logger = logging.getLogger(__name__)

ROWS = 256
"""Largest number of features measured per step, so that the cost does not grow with the batch."""
LEAST_SHARE = 1 / 6
"""Features count as collapsed if they fill less than this share of the directions that they filled at first. SimSiam
without its stop-gradient falls from 45 to 6 directions in 100 steps of 32 images; with it 28 remain. Methods that learn
well fall to a fifth or more (docs/pretraining.md)."""
LEAST_RANK = 1.2
"""Features count as collapsed below this effective rank, whatever it was at first."""
LEAST_SPREAD = 0.01
"""Features, or a method's own outputs, count as collapsed below this spread (1 isotropic, 0 constant)."""
PATIENCE = 3
"""Number of consecutive measurements that must agree."""


@torch.no_grad()
def effective_rank(features_ND: Tensor) -> float:
    """Measure how many directions the features fill: exp of the entropy of the singular values' shares.

    Roy and Vetterli (2007), definition 1; as a meter of self-supervised features RankMe (Garrido et al. 2023), whose
    1e-7 inside the logarithm is not needed here. Features are neither centred nor normalised, so constant ones have 1.

    Returns:
        From 1 to min(N, D); 0 for features that are all zero, or none.
    """
    x_ND = features_ND.double()
    gram = x_ND @ x_ND.T if len(x_ND) < x_ND.shape[1] else x_ND.T @ x_ND
    if not gram.numel():
        return 0.0
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = values.sum()
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else 0.0


@contextmanager
def watched(network: nn.Module, *, on: bool = True) -> Iterator[list[Tensor]]:
    """Collect what ``network`` returns inside the block, detached: features (N, D), one tensor per call."""
    seen: list[Tensor] = []
    if not on:
        yield seen
        return

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 2:
            seen.append(output.detach())

    handle = network.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


class CollapseMeter:
    """Measures the features of logged steps and says once when they have collapsed.

    Attributes:
        last: ``feature_std`` (standard deviation of normalised features times sqrt(D): 1 where they point everywhere
            alike, 0 where all are the same) and ``effective_rank``, of the last measurement; empty before.
        first_rank: effective rank at the first measurement, or None.
        collapsed_at: step at which the features were found collapsed, or None.
    """

    def __init__(self, *, judging: bool = True) -> None:
        """``judging``: whether to detect collapse; features that are taught classes may fill few directions."""
        self.judging = judging
        self.last: dict[str, float] = {}
        self.first_rank: float | None = None
        self.collapsed_at: int | None = None
        self._suspect = 0

    def measure(self, features: Sequence[Tensor]) -> dict[str, float]:
        """Measure one step. Collective: with several processes, over the features of all.

        Args:
            features: (N, D) each, in the order of the forward passes. Without any, no numbers are returned.
        """
        rows: list[Tensor] = []
        for part in features:
            if sum(map(len, rows)) < ROWS:
                rows.append(gather_rows(part[:ROWS]).float())
        if not rows:
            return {}
        joined = torch.cat(rows)[:ROWS].cpu()
        self.last = {"feature_std": spread(joined), "effective_rank": effective_rank(joined)}
        if self.first_rank is None:
            self.first_rank = self.last["effective_rank"]
        return dict(self.last)

    def judge(self, step: int, numbers: Mapping[str, float]) -> bool:
        """Tell whether the features are found collapsed now. True once, with a warning in the log of the program.

        Args:
            step: steps done.
            numbers: of :meth:`measure`, and ``spread`` where the method measures its own outputs.
        """
        floor = max(LEAST_RANK, LEAST_SHARE * (self.first_rank or 0.0))
        low = numbers.get("effective_rank", math.inf) < floor
        low = low or min(numbers.get(name, math.inf) for name in ("feature_std", "spread")) < LEAST_SPREAD
        self._suspect = self._suspect + 1 if low and self.judging else 0
        if self._suspect < PATIENCE or self.collapsed_at is not None:
            return False
        self.collapsed_at = step
        names = ("feature_std", "effective_rank", "spread")
        measured = ", ".join(f"{name} {numbers[name]:.3g}" for name in names if name in numbers)
        logger.warning(
            "the features have collapsed at step %d (%s; effective rank %.3g at first): images look alike to the "
            "network. What to do: lower lr, lengthen warmup, take a larger batch, and look at the views",
            step,
            measured,
            self.first_rank or math.nan,
        )
        return True

    def summary(self) -> dict[str, Any]:
        """Return the summary for the card."""
        return {"collapsed_at": self.collapsed_at, "first_rank": self.first_rank, **self.last}

    def state(self) -> dict[str, Any]:
        """Return the state for the checkpoint."""
        return {"last": dict(self.last), "first_rank": self.first_rank, "at": self.collapsed_at, "row": self._suspect}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of :meth:`state`."""
        self.last, self.first_rank = dict(state["last"]), state["first_rank"]
        self.collapsed_at, self._suspect = state["at"], state["row"]
