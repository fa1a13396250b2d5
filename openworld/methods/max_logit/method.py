"""Objectness times the lack of a high known logit: a closed detector finds unknowns without labels or losses for them.

The largest logit of the known classes tells familiar from unfamiliar inputs (Vaze et al., *Open-Set Recognition: A Good
Closed-Set Classifier Is All You Need*, ICLR 2022). Background is unfamiliar too, so a detector also has to know whether
a region is an object at all: the region proposal network, which does not distinguish classes, tells this.

R regions, K head rows, M held-out regions, Q levels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor

from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.methods.max_logit.options import MaxLogitOptions
from openworld.structures import Regions, RegionScores

LEVELS = 256
"""Q, number of quantiles of the held-out regions' logits to keep."""

logger = logging.getLogger(__name__)


class MaxLogit(OpenWorldMethod):
    """A closed detector that gives every region a score of unknown: ``sigmoid(objectness) * (1 - familiarity)``.

    Familiarity is the share of the lowest ``known_rejection_rate`` of held-out known regions whose largest known logit
    is at most that of the region: 0 below all of them, 1 above the lowest ``known_rejection_rate``. Before the
    calibration, and where it has too few samples, it is the largest softmax score of a known class.

    Buffers:
        levels: (Q,) float64, rising: the quantiles of held-out known regions' largest logits up to
            ``known_rejection_rate``; NaN before the calibration and after a fallback.
    """

    samples = ("known",)
    extras = ("objectness", "familiarity")
    levels: Tensor

    def __init__(self, space: LabelSpace, options: MaxLogitOptions) -> None:
        super().__init__(space)
        self.options = options
        self.register_buffer("levels", torch.full((LEVELS,), torch.nan, dtype=torch.float64))

    @classmethod
    def of(cls, options: MaxLogitOptions, space: LabelSpace, feature_dim: int) -> Self:
        """See :class:`OpenWorldMethod`."""
        return cls(space, options)

    @property
    def unused_rows(self) -> tuple[int, ...]:
        """See :class:`OpenWorldMethod`: the row of unknown, which nothing trains."""
        return (self.space.unknown,)

    @property
    def calibrates_on(self) -> Literal["nothing", "known", "with_unknown"]:
        """See :class:`OpenWorldMethod`."""
        return "known"

    def familiarity(self, logits: Tensor) -> Tensor:
        """Compute how much each region looks like any known class, from 0 to 1.

        Args:
            logits: (R, K) floating.

        Returns:
            (R,), same dtype.
        """
        known_RK = logits[:, : self.space.num_known]
        if bool(self.levels.isnan().any()):
            return logits.softmax(dim=1)[:, : self.space.num_known].amax(1)
        below_R = torch.searchsorted(self.levels, known_RK.amax(1).double(), right=True)
        return (below_R / LEVELS).to(logits.dtype)

    @torch.no_grad()
    def score(self, regions: Regions) -> RegionScores:
        """See :class:`OpenWorldMethod`: the softmax of the known classes, and the score of unknown in its row."""
        assert regions.logits is not None
        objectness_R, familiarity_R = regions.objectness.sigmoid(), self.familiarity(regions.logits)
        scores_RK = regions.logits.softmax(dim=1)
        scores_RK[:, self.space.unknown] = objectness_R * (1 - familiarity_R)
        return RegionScores(scores_RK, {"objectness": objectness_R, "familiarity": familiarity_R})

    @torch.no_grad()
    def collect(self, regions: Regions, image_sizes: Tensor) -> dict[str, Tensor]:
        """See :class:`OpenWorldMethod`: ``known`` (M,), the largest known logit of each region of a known object."""
        assert regions.logits is not None
        known = self.space.is_known(regions.labels)
        return {"known": regions.logits[known, : self.space.num_known].amax(1)}

    def calibrate(self, samples: Mapping[str, Tensor]) -> dict[str, Any]:
        """See :class:`OpenWorldMethod`: keep the lowest quantiles of the held-out known regions' logits."""
        known = samples["known"].double()
        known = known[torch.isfinite(known)]
        rate, least = self.options.known_rejection_rate, self.options.min_samples
        record: dict[str, Any] = {
            "status": "fitted",
            "reason": None,
            "known_samples": len(known),
            "known_rejection_rate": rate,
        }
        if len(known) < least:
            self.levels.fill_(torch.nan)
            reason = f"{len(known)} held-out known regions, method.min_samples is {least}"
            logger.warning("max_logit was not calibrated: %s", reason)
            return {**record, "status": "fallback", "reason": reason}
        shares = torch.linspace(0, rate, LEVELS, dtype=torch.float64)
        self.levels.copy_(known.quantile(shares))
        lowest, highest = float(self.levels[0]), float(self.levels[-1])
        return {**record, "unknown_below": lowest, "known_above": highest}

    def grow(self, space: LabelSpace) -> None:
        """See :class:`OpenWorldMethod`; with more classes the logits need a new calibration."""
        super().grow(space)
        self.levels.fill_(torch.nan)
