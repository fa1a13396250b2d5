"""Options of the closed detector. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openworld.methods.options import MethodOptions
from openworld.runtime.options import check

if TYPE_CHECKING:
    from openworld.labels import LabelSpace
    from openworld.methods.closed.method import Closed


@dataclass(kw_only=True)
class ClosedOptions(MethodOptions):
    """Plain Faster R-CNN: the upper bound of known mAP that an open-world method is compared with."""

    name: str = "closed"

    def __post_init__(self) -> None:
        check(self)

    def build(self, space: LabelSpace, feature_dim: int) -> Closed:
        """See :class:`MethodOptions`."""
        from openworld.methods.closed.method import Closed

        return Closed(space)
