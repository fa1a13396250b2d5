"""Options of PIRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from openworld.runtime.options import Between
from ssl_backbones.methods.instdisc_options import BankOptions


@dataclass(kw_only=True)
class PIRLOptions(BankOptions):
    """PIRL (Misra and van der Maaten 2020). Paper: 32000 negatives."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.pirl:PIRL"

    name: str = "pirl"
    jigsaw_weight: Annotated[float, Between(0, 1)] = 0.5
    """lambda: share of the jigsaw's loss; the image's loss has the rest."""
