"""Options of CMC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssl_backbones.methods.instdisc_options import BankOptions

if TYPE_CHECKING:
    from ssl_backbones.methods.cmc import CMC


@dataclass(kw_only=True)
class CMCOptions(BankOptions):
    """Contrastive multiview coding (Tian et al. 2020). Paper: 16384 negatives."""

    name: str = "cmc"

    @classmethod
    def implementation(cls) -> type[CMC]:
        from ssl_backbones.methods.cmc import CMC

        return CMC
