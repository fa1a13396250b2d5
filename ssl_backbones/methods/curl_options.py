"""Options of CURL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import AtLeast, Between
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class CURLOptions(MethodOptions):
    """CURL (Laskin et al. 2020), its representation: no reinforcement learning."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.curl:CURL"

    name: str = "curl"
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the code (reference code: 50)."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.999
    """m in teacher = m * teacher + (1 - m) * student (reference code: 0.95)."""
    frames: Annotated[int, AtLeast(1)] = 3
    """Frames of a stack: an image and those just before it (reference code)."""
