"""Options of MoCo v1, v2 and v3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast, Between
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class MoCoV1Options(MethodOptions):
    """MoCo (He et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.moco:MoCoV1"

    name: str = "moco_v1"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (MoCo v1: 0.07; v2: 0.2)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (paper: 128)."""
    queue_size: Annotated[int, AtLeast(1)] = 4096
    """Keys of earlier batches that serve as negatives (paper: 65536)."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.999
    """m in teacher = m * teacher + (1 - m) * student."""
    shuffle_groups: Annotated[int, AtLeast(1)] = 1
    """Groups with batch-norm statistics of their own, one per device in the paper (8); 1 turns shuffling off."""

    @property
    def stored_negatives(self) -> int:
        return self.queue_size


@dataclass(kw_only=True)
class MoCoV2Options(MoCoV1Options):
    """MoCo v2 (Chen et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.moco:MoCoV2"

    name: str = "moco_v2"


@dataclass(kw_only=True)
class MoCoV3Options(MethodOptions):
    """MoCo v3 (Chen et al. 2021)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.moco:MoCoV3"

    name: str = "moco_v3"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the softmax (reference code: 1.0)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which views are compared (reference code: 256)."""
    hidden_dim: Annotated[int, AtLeast(1)] = 512
    """Width of the hidden layer of projector and predictor (reference code: 4096)."""
    teacher_momentum: Annotated[float, Between(0, 1)] = 0.999
    """m in teacher = m * teacher + (1 - m) * student, where its cosine to 1 starts."""
