"""Options of SwAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class SwAVOptions(MethodOptions):
    """SwAV (Caron et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.swav:SwAV"

    name: str = "swav"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the predictions (paper: 0.1)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space of the prototypes (paper: 128)."""
    prototypes: Annotated[int, AtLeast(2)] = 64
    """K (paper: 3000)."""
    epsilon: Annotated[float, Above(0)] = 0.05
    """Entropy regularisation of the assignments; 0.03 where the loss stays at ln K (reference code, common issues)."""
    iterations: Annotated[int, AtLeast(1)] = 3
    """Rounds of Sinkhorn-Knopp."""
    frozen_steps: Annotated[int, AtLeast(0)] = 10
    """First steps in which the prototypes do not move (reference code: one epoch)."""
    queue_length: Annotated[int, AtLeast(0)] = 0
    """Earlier features of each large view with which small batches are assigned; 0 for none (paper: 3840 at batch
    256)."""
    queue_start: Annotated[int, AtLeast(0)] = 0
    """Step from which the queue is filled; it is used once it is full (reference code: epoch 15)."""
