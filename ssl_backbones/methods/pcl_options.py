"""Options of PCL v1 and v2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from openworld.runtime.options import AtLeast, Items
from ssl_backbones.methods.moco_options import MoCoV1Options


@dataclass(kw_only=True)
class PCLV1Options(MoCoV1Options):
    """Prototypical contrast (Li et al. 2021), on MoCo v1."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.pcl:PCLV1"

    name: str = "pcl_v1"
    clusters: Annotated[list[Annotated[int, AtLeast(2)]], Items(1)] = field(default_factory=lambda: [8, 16, 32])
    """Numbers of clusters, one clustering each (paper: 25000, 50000 and 100000 of 1.28 million images)."""
    warmup_epochs: Annotated[int, AtLeast(0)] = 1
    """Epochs of InfoNCE alone before the first clustering (paper: 20)."""
    negatives: Annotated[int, AtLeast(1)] = 16384
    """r: negative prototypes per query, or all where there are fewer (``--pcl-r`` of the reference code)."""
    candidates: Literal["reference", "paper"] = "reference"
    """Prototypes among which a query's own is found, see losses.proto_nce. ``reference``: those of the batch, some of
    which may be its own, and r more (the authors' code). ``paper``: its own and r others (equation 11)."""
    iterations: Annotated[int, AtLeast(0)] = 20
    """Updates of k-means (reference code)."""
    restarts: Annotated[int, AtLeast(1)] = 5
    """Runs of k-means; the best one counts (reference code)."""
    spherical: bool = False
    """k-means on the sphere; the reference code puts only the final centroids there."""


@dataclass(kw_only=True)
class PCLV2Options(PCLV1Options):
    """Prototypical contrast (Li et al. 2021), on MoCo v2."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.pcl:PCLV2"

    name: str = "pcl_v2"
