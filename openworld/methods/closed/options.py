"""Options of the closed detector. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openworld.methods.options import MethodOptions
from openworld.runtime.options import check


@dataclass(kw_only=True)
class ClosedOptions(MethodOptions):
    """Plain Faster R-CNN: the reference for known mAP that an open-world method is compared with."""

    METHOD: ClassVar[str] = "openworld.methods.closed.method:Closed"

    name: str = "closed"

    def __post_init__(self) -> None:
        check(self)
