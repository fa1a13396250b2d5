"""Options of DINO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast, Between
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class DINOOptions(MethodOptions):
    """DINO (Caron et al. 2021) on a convolutional network."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.dino:DINO"

    name: str = "dino"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the student (paper: 0.1)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Width of the bottleneck before the last layer (paper: 256)."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.999
    """m in teacher = m * teacher + (1 - m) * student, where its cosine to 1 starts (paper: 0.996)."""
    outputs: Annotated[int, AtLeast(2)] = 512
    """K, width of the last layer (paper: 65536)."""
    head_norm: bool = False
    """Batch norm in the head."""
    norm_last_layer: bool = True
    """Whether the last layer's weights keep norm 1 (reference code); otherwise their norms are learned."""
    frozen_steps: Annotated[int, AtLeast(0)] = 10
    """First steps in which the last layer does not move (reference code: one epoch)."""
    teacher_temperature: Annotated[float, Above(0)] = 0.04
    """Temperature of the teacher after its warm-up."""
    teacher_temperature_start: Annotated[float, Above(0)] = 0.04
    """Temperature of the teacher at the first step."""
    teacher_temperature_warmup: Annotated[int, AtLeast(0)] = 0
    """Steps in which the teacher's temperature goes from one to the other, linearly."""
    center_momentum: Annotated[float, Between(0, 1)] = 0.9
    """Share of the old centre in the new one (equation 4)."""
    clip_gradient: Annotated[float, AtLeast(0)] = 3.0
    """Largest norm of the gradient of each parameter by itself (reference code); 0 turns clipping off."""
