"""Options of CPC and CPC v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from openworld.runtime.options import Above, AtLeast
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class CPCOptions(MethodOptions):
    """Contrastive predictive coding (van den Oord et al. 2018), and version 2 (Henaff et al. 2020)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.cpc:CPC"

    name: str = "cpc"
    temperature: Annotated[float, Above(0)] = 0.2
    """The bilinear scores are divided by it (CPC: 1; CPC v2: 10)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the space in which patches are compared (CPC v2, pseudo-code: 64)."""
    context: Literal["pixelcnn", "gru"] = "pixelcnn"
    """What sums up the rows read so far: masked convolutions (papers, for images), or a GRU down each column."""
    context_dim: Annotated[int, AtLeast(1)] = 256
    """Width of the masked convolutions (CPC v2, pseudo-code), or of the GRU's state."""
    skipped_rows: Annotated[int, AtLeast(0)] = 0
    """Rows between the last one read and the first one predicted (CPC v2, pseudo-code: 2)."""
    predicted_rows: Annotated[int, AtLeast(1)] = 3
    """Rows predicted, each by its own matrix W_k (CPC: 5; CPC v2: 1, the range(2, 3) of its pseudo-code)."""
    directions: Literal[1, 4] = 1
    """1: rows are predicted from those above (CPC). 4: from below, left and right as well (CPC v2)."""
