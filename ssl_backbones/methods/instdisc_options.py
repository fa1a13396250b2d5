"""Options of instance discrimination, and of its memory bank, which CMC and PIRL have too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from openworld.runtime.options import Above, AtLeast, Below, refuse
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class BankOptions(MethodOptions):
    """What the methods with a memory bank have in common."""

    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the similarities (papers: 0.07)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the bank (papers: 128)."""
    negatives: Annotated[int, AtLeast(1)] = 512
    """Rows of the bank that each image is contrasted with, drawn uniformly, with repetitions, its own row possibly
    among them (reference code)."""
    bank_momentum: Annotated[float, AtLeast(0), Below(1)] = 0.5
    """Share of the old row in the new one (reference code)."""
    form: Literal["nce", "info_nce", "softmax"] = "nce"
    """``nce``: each row is told apart from noise, with a constant normaliser estimated from the first batch (papers).
    ``info_nce``: softmax over the own row and the drawn ones (PyContrast). ``softmax``: over the whole bank, nothing is
    drawn (equation 2 of instance discrimination)."""

    @property
    def stored_negatives(self) -> int:
        return 0 if self.form == "softmax" else self.negatives


@dataclass(kw_only=True)
class InstDiscOptions(BankOptions):
    """Instance discrimination (Wu et al. 2018). Reference code: 4096 negatives."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.instdisc:InstDisc"

    name: str = "instdisc"
    proximal_weight: Annotated[float, AtLeast(0)] = 0.0
    """lambda of equation 10, which holds an embedding to its row; the reference code leaves that term out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proximal_weight and self.form != "nce":
            refuse(
                self,
                "proximal_weight",
                f"is {self.proximal_weight} with form {self.form!r}",
                remedy="set form to nce, or proximal_weight to 0",
            )
