"""Options of PIRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from openworld.runtime.options import Between
from ssl_backbones.methods.instdisc_options import BankOptions

if TYPE_CHECKING:
    from ssl_backbones.methods.pirl import PIRL


@dataclass(kw_only=True)
class PIRLOptions(BankOptions):
    """PIRL (Misra and van der Maaten 2020). Paper: 32000 negatives."""

    name: str = "pirl"
    jigsaw_weight: Annotated[float, Between(0, 1)] = 0.5
    """lambda: share of the jigsaw's loss; the image's loss has the rest."""

    @classmethod
    def implementation(cls) -> type[PIRL]:
        from ssl_backbones.methods.pirl import PIRL

        return PIRL
