"""The closed detector as a method: the row of unknown takes no part, and nothing is added to the detector's losses."""

from __future__ import annotations

from openworld.methods.base import OpenWorldMethod


class Closed(OpenWorldMethod):
    """Faster R-CNN over the known classes and background.

    The head keeps its row of unknown, so that a checkpoint fits every method, but the softmax leaves it out in training
    and at test. Its score is exactly 0, and nothing is ever detected as unknown.
    """

    @property
    def unused_rows(self) -> tuple[int, ...]:
        """See :class:`OpenWorldMethod`: the row of unknown."""
        return (self.space.unknown,)
