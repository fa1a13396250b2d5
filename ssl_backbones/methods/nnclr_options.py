"""Options of NNCLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class NNCLROptions(MethodOptions):
    """Nearest-neighbour contrast (Dwibedi et al. 2021)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.nnclr:NNCLR"

    name: str = "nnclr"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (paper: 0.1)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (section 4.1: 256)."""
    hidden_dim: Annotated[int, AtLeast(1)] = 4096
    """Width of the predictor's hidden layer (section 4.1)."""
    queue_size: Annotated[int, AtLeast(1)] = 4096
    """Features of earlier images among which neighbours are found (paper: 98304)."""
