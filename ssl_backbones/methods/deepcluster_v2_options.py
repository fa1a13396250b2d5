"""Options of DeepCluster-v2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast, Items
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class DeepClusterV2Options(MethodOptions):
    """DeepCluster-v2 (Caron et al. 2020, appendix)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.deepcluster_v2:DeepClusterV2"

    name: str = "deepcluster_v2"
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the predictions (paper: 0.1)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space that is clustered (paper: 128)."""
    clusters: Annotated[list[Annotated[int, AtLeast(2)]], Items(1)] = field(default_factory=lambda: [32, 32, 32])
    """Numbers of clusters, one head each (paper: three times 3000)."""
    iterations: Annotated[int, AtLeast(0)] = 10
    """Updates of k-means before each epoch (reference code)."""
