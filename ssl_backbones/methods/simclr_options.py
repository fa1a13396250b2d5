"""Options of SimCLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions

if TYPE_CHECKING:
    from ssl_backbones.methods.simclr import SimCLR


@dataclass(kw_only=True)
class SimCLROptions(MethodOptions):
    """SimCLR (Chen et al. 2020)."""

    name: str = "simclr"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (paper: 0.1 for long training)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (paper: 128)."""

    @classmethod
    def implementation(cls) -> type[SimCLR]:
        from ssl_backbones.methods.simclr import SimCLR

        return SimCLR
