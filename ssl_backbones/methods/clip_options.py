"""Options of CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from openworld.runtime.options import Above, AtLeast, refuse
from ssl_backbones.methods.options import CaptionOptions


@dataclass(kw_only=True)
class CLIPOptions(CaptionOptions):
    """CLIP (Radford et al. 2021)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.clip:CLIP"

    name: str = "clip"
    temperature: Annotated[float, Above(0)] = 0.2
    """Where the temperature starts, which is learned (section 2.5: 0.07)."""
    projection_dim: Annotated[int, AtLeast(1)] = 128
    """Dimensions of the common space of images and captions (RN50: 1024)."""
    text_width: Annotated[int, AtLeast(1)] = 64
    """Width of the text Transformer (RN50: 512)."""
    text_layers: Annotated[int, AtLeast(1)] = 2
    """Blocks of the text Transformer (RN50: 12)."""
    text_heads: Annotated[int, AtLeast(1)] = 2
    """Heads of its attention (RN50: 8)."""
    pooling: Literal["attention", "average"] = "attention"
    """How the cells of a feature map become one vector: by a query of their mean (authors' ResNets), or their mean."""
    largest_scale: Annotated[float, AtLeast(1)] = 100.0
    """Upper bound of the learned factor of the cosines, 1 over the temperature (section 2.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_width % self.text_heads:
            refuse(
                self,
                "text_width",
                f"is {self.text_width}, which the {self.text_heads} heads of text_heads do not divide",
                remedy="choose a multiple of text_heads",
            )
