"""Options of SimCLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class SimCLROptions(MethodOptions):
    """SimCLR (Chen et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.simclr:SimCLR"

    name: str = "simclr"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (paper: 0.1 for long training)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (paper: 128)."""
