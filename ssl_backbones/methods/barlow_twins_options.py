"""Options of Barlow Twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class BarlowTwinsOptions(MethodOptions):
    """Barlow Twins (Zbontar et al. 2021)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.barlow_twins:BarlowTwins"

    name: str = "barlow_twins"
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions whose correlations are compared (paper: 8192)."""
    hidden_dim: Annotated[int, AtLeast(1)] = 512
    """Width of the projector's two hidden layers (paper: 8192)."""
    offdiagonal_weight: Annotated[float, AtLeast(0)] = 0.0051
    """Weight of the redundancy term (reference code; lambda = 0.005 in the paper)."""
    bias_lr_scale: Annotated[float, AtLeast(0)] = 0.024
    """Learning rate of biases and norms as a share of ``lr``: 0.0048 / 0.2 in the reference code."""
