"""Options of the ConvNeXts (Liu et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, Self

from openworld.errors import ConfigError
from openworld.runtime.options import AtLeast, Items
from ssl_backbones.backbones.options import STAGES, BackboneOptions

NETWORKS: dict[str, tuple[int, tuple[int, int, int, int]]] = {
    "convnext_tiny": (96, (3, 3, 9, 3)),
    "convnext_small": (96, (3, 3, 27, 3)),
    "convnext_base": (128, (3, 3, 27, 3)),
    "convnext_large": (192, (3, 3, 27, 3)),
}
"""Channels of the first stage, and the number of blocks in each."""

LAYER_SCALE = 1e-6


@dataclass(kw_only=True)
class ConvNeXtOptions(BackboneOptions):
    """A ConvNeXt with torchvision's key names."""

    NETWORK: ClassVar[str] = "ssl_backbones.backbones.convnext:ConvNeXt"
    first_convolution: ClassVar[str] = "features.0.0"
    keys: ClassVar[str] = r"features\."
    telling_keys: ClassVar[tuple[str, ...]] = ("features.0.0.weight", "features.1.0.layer_scale")

    name: Literal["convnext_tiny", "convnext_small", "convnext_base", "convnext_large"] = "convnext_tiny"
    """Widths and depths."""
    width: Annotated[float, AtLeast(1 / 64)] = 1.0
    """Multiplier on all channels; 1.0 is the original."""
    depths: Annotated[list[Annotated[int, AtLeast(1)]], Items(4, 4)] | None = None
    """Blocks of each of the four stages; None means those of ``name``."""
    layer_scale: Annotated[float, AtLeast(0)] = LAYER_SCALE
    """Initial value of the scale of each residual branch."""

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Sequence[int]], where: str) -> Self:
        """See :class:`BackboneOptions`. Depths and widths of no published network are taken for a modified tiny."""
        first = shapes["features.0.0.weight"][0]
        depths = tuple(
            len({key.split(".")[2] for key in shapes if key.startswith(f"features.{2 * stage + 1}.")})
            for stage in range(4)
        )
        for name, published in NETWORKS.items():
            if published == (first, depths):
                return cls(name=name)  # type: ignore[arg-type]
        return cls(width=first / NETWORKS["convnext_tiny"][0], depths=list(depths))

    @property
    def strides(self) -> dict[str, int]:
        """See :class:`BackboneOptions`."""
        return {stage: 4 * 2**number for number, stage in enumerate(STAGES)}

    def in_detector(self, norm: Literal["batch", "frozen"]) -> Self:
        """See :class:`BackboneOptions`. Its layer norms have no statistics to freeze."""
        if norm == "frozen":
            raise ConfigError(
                f"model.norm is 'frozen', and the layer norms of model.arch.name {self.name!r} have no statistics",
                remedy="leave model.norm at batch; model.freeze_stages keeps the weights of whole stages",
            )
        return self

    def without_initialisation(self) -> Self:
        """See :class:`BackboneOptions`."""
        return replace(self, layer_scale=LAYER_SCALE)

    def __str__(self) -> str:
        return f"{self.name} of width {self.width:g}" + (f" and depths {self.depths}" if self.depths else "")
