"""Options of NNCLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions

if TYPE_CHECKING:
    from ssl_backbones.methods.nnclr import NNCLR


@dataclass(kw_only=True)
class NNCLROptions(MethodOptions):
    """Nearest-neighbour contrast (Dwibedi et al. 2021)."""

    name: str = "nnclr"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (paper: 0.1)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (section 4.1: 256)."""
    hidden_dim: Annotated[int, AtLeast(1)] = 4096
    """Width of the predictor's hidden layer (section 4.1)."""
    queue_size: Annotated[int, AtLeast(1)] = 4096
    """Features of earlier images among which neighbours are found (paper: 98304)."""

    @classmethod
    def implementation(cls) -> type[NNCLR]:
        from ssl_backbones.methods.nnclr import NNCLR

        return NNCLR
