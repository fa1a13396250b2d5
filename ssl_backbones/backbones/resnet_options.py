"""Options of the ResNets (He et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from openworld.errors import CheckpointError, HandoverError
from openworld.runtime.options import AtLeast, refuse
from ssl_backbones.backbones.options import STAGES, BackboneOptions

BLOCKS: dict[str, tuple[Literal["basic", "bottleneck"], tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}
"""Kind of the blocks, and their number in each stage."""


@dataclass(kw_only=True)
class ResNetOptions(BackboneOptions):
    """A ResNet with torchvision's key names, and the details that its tensors do not show."""

    NETWORK: ClassVar[str] = "ssl_backbones.backbones.resnet:ResNet"
    first_convolution: ClassVar[str] = "conv1"
    keys: ClassVar[str] = r"(conv[1-3]|bn[1-3]|layer[1-4])\."
    telling_keys: ClassVar[tuple[str, ...]] = ("conv1.weight", "layer1.0.conv1.weight")

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """Depth and block type."""
    width: Annotated[float, AtLeast(1 / 64)] = 0.5
    """Multiplier on all channels; 1.0 is the original."""
    stem_width: Annotated[int, AtLeast(1)] | None = None
    """Output channels of the stem; None means 64 * width, rounded."""
    stem: Literal["imagenet7x7", "cifar3x3", "clip"] = "imagenet7x7"
    """7x7 stride 2 with max pool (stride 4), 3x3 stride 1 without pool (stride 1), or CLIP's: three 3x3, the first of
    stride 2, an average pool, and strides in average pools in the stages too (stride 4)."""
    stride_in_1x1: bool = False
    """Bottlenecks stride in their first 1x1 (Caffe, MSRA) instead of their 3x3 (torchvision, most SSL)."""
    pool_padding: Literal["both", "end"] = "both"
    """Stem max pool padded on both sides (torchvision) or right and bottom only (Caffe, TensorFlow on even sides)."""
    conv_padding: Literal["both", "end"] = "both"
    """Strided convolutions padded on both sides (torchvision), or more at the end, as SAME of TensorFlow and JAX has it
    on even sides (BYOL's code)."""
    zero_init_residual: bool = False
    """Start each residual branch at zero."""
    norm: Literal["batch", "frozen", "layer"] = "batch"
    """Trainable batch norm; one with fixed statistics and affine parameters; or layer norm (CPC v2): over channels and
    positions of each image, with one scale and shift per channel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem == "clip" and self.name != "resnet50":
            refuse(self, "stem", f"is 'clip' and name {self.name!r}", remedy="CLIP's stem goes with resnet50")

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, Sequence[int]], where: str) -> Self:
        """See :class:`BackboneOptions`."""
        counts = tuple(len({key.split(".")[1] for key in shapes if key.startswith(f"layer{i}.")}) for i in range(1, 5))
        kind = "bottleneck" if "layer1.0.conv3.weight" in shapes else "basic"
        first, clip = shapes["conv1.weight"], "conv3.weight" in shapes
        for name, blocks in BLOCKS.items():
            if blocks == (kind, counts):
                return cls(
                    name=name,  # type: ignore[arg-type]
                    width=shapes["layer1.0.conv1.weight"][0] / 64,
                    stem_width=shapes["conv3.weight"][0] if clip else first[0],
                    stem="clip" if clip else "imagenet7x7" if first[2] == 7 else "cifar3x3",
                )
        raise CheckpointError(
            f"{kind} blocks {counts} are of no supported architecture",
            where=where,
            remedy=f"use one of {', '.join(BLOCKS)}",
        )

    @property
    def strides(self) -> dict[str, int]:
        """See :class:`BackboneOptions`."""
        first = 1 if self.stem == "cifar3x3" else 4
        return {stage: first * 2**number for number, stage in enumerate(STAGES)}

    def in_detector(self, norm: Literal["batch", "frozen"]) -> Self:
        """See :class:`BackboneOptions`."""
        if self.norm == "layer":
            raise HandoverError(
                "the backbone has layer norm, as of CPC v2, and the detector batch norm",
                where="model.weights",
                remedy="pretrain with arch.norm: batch",
            )
        return replace(self, norm=norm)

    def without_initialisation(self) -> Self:
        """See :class:`BackboneOptions`."""
        return replace(self, zero_init_residual=False)

    def alternatives(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """See :class:`BackboneOptions`."""
        if self.name == "resnet50" and self.stem != "clip":
            place = "3x3" if self.stride_in_1x1 else "1x1"
            change = {"stride_in_1x1": not self.stride_in_1x1}
            yield f"the stride is in the {place} (stride_in_1x1, STRIDE_IN_1X1)", change
        paddings = {"pool_padding": "the pool padding", "conv_padding": "the padding of strided convolutions"}
        for name, what in paddings.items():
            if self.stem == "imagenet7x7" or (name == "conv_padding" and self.stem != "clip"):
                other = "both" if getattr(self, name) == "end" else "end"
                sides = "on both sides" if other == "both" else "at the end alone"
                yield f"{what} is {sides} ({name})", {name: other}

    def __str__(self) -> str:
        return f"{self.name} of width {self.width:g}"
