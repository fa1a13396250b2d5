"""Options of BYOL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import AtLeast, Between
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class BYOLOptions(MethodOptions):
    """BYOL (Grill et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.byol:BYOL"

    name: str = "byol"
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (section 3.3: 256)."""
    hidden_dim: Annotated[int, AtLeast(1)] = 512
    """Width of the hidden layer of projector and predictor (section 3.3: 4096)."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.999
    """m in teacher = m * teacher + (1 - m) * student, where its cosine to 1 starts (paper: 0.996)."""
