"""Options of the maximum-logit method. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.methods.options import MethodOptions
from openworld.runtime.options import Above, Below, PositiveInt, check


@dataclass(kw_only=True)
class MaxLogitOptions(MethodOptions):
    """A closed detector whose unknowns are found after training, by objectness and the largest known logit."""

    METHOD: ClassVar[str] = "openworld.methods.max_logit.method:MaxLogit"

    name: str = "max_logit"
    known_rejection_rate: Annotated[float, Above(0), Below(1)] = 0.05
    """Share of held-out known regions that may look less than fully known: a region whose largest known logit is above
    that of this share has no unknown score (own choice)."""
    min_samples: PositiveInt = 20
    """Smallest number of held-out known regions to calibrate with; with fewer, familiarity is the softmax score (own
    guard)."""

    def __post_init__(self) -> None:
        check(self)

    def before_calibration(self) -> MaxLogitOptions:
        """See :class:`MethodOptions`: everything acts after the training."""
        return MaxLogitOptions()
