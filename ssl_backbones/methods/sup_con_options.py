"""Options of supervised contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class SupConOptions(MethodOptions):
    """Supervised contrast (Khosla et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.sup_con:SupCon"

    name: str = "sup_con"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (paper: 0.1)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (paper: 128)."""
    base_temperature: Annotated[float, Above(0)] = 0.07
    """The loss is multiplied by ``temperature`` over this (reference code; equation 2 of the paper has no factor)."""
