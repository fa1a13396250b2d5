"""Options of SeLa-v2."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from openworld.runtime.options import Above, AtLeast, Items
from ssl_backbones.methods.deepcluster_v2_options import DeepClusterV2Options


@dataclass(kw_only=True)
class SeLaV2Options(DeepClusterV2Options):
    """SeLa-v2 (Caron et al. 2020, appendix D): SeLa (Asano et al. 2020) with what SwAV added. It has no official code;
    the appendix gives it SwAV's hyperparameters."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.sela_v2:SeLaV2"

    name: str = "sela_v2"
    clusters: Annotated[list[Annotated[int, AtLeast(2)]], Items(1)] = field(default_factory=lambda: [32, 32, 32])
    """Numbers of prototypes, one head each (SwAV's paper: three times 3000)."""
    iterations: Annotated[int, AtLeast(1)] = 20
    """Rounds of Sinkhorn-Knopp over the whole set (our choice; SeLa's code iterates until the scales converge)."""
    epsilon: Annotated[float, Above(0)] = 0.05
    """Entropy regularisation of the assignment (SwAV's). SeLa's code raises the probabilities to lambda = 25, which at
    a temperature of 0.1 is 0.1 / 25 = 0.004 here; which of them SeLa-v2 had is not published."""
