"""Options of SimSiam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class SimSiamOptions(MethodOptions):
    """SimSiam (Chen and He 2021)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.simsiam:SimSiam"

    name: str = "simsiam"
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (paper: 2048)."""
    predictor_dim: Annotated[int, AtLeast(1)] = 32
    """Width of the predictor's hidden layer (paper: 512, a quarter of ``projection_dim``)."""
    predictor_lr_decays: bool = False
    """Whether the predictor's learning rate follows the schedule too; constant does a little better (table 1, c)."""
