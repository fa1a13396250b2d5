"""Options of CMC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ssl_backbones.methods.instdisc_options import BankOptions


@dataclass(kw_only=True)
class CMCOptions(BankOptions):
    """Contrastive multiview coding (Tian et al. 2020). Paper: 16384 negatives."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.cmc:CMC"

    name: str = "cmc"
