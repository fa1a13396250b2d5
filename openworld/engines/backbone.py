"""The convolutional half of the detector: a backbone whose features an RPN and a box head can use.

Two forms. FPN (Lin et al., CVPR 2017): levels P2…P5, two fully connected layers as box head. C4 (ORE's): one level at
stride 16, the last stage of a ResNet as box head, its mean-pooled output as the region's feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork

from openworld.engines.kernels.frozen_norm import fold_frozen_norms
from openworld.engines.kernels.roi_align import RoIAlign
from openworld.engines.options import ModelOptions
from openworld.errors import ConfigError
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.backbones.options import STAGES


class LevelGrid(NamedTuple):
    """Positions of the cells of the feature levels, finest level first."""

    strides_px: tuple[int, ...]
    padding_px: int
    """Images are padded to a multiple of this."""


def level_grid(options: ModelOptions, arch: BackboneOptions) -> LevelGrid:
    """Return the grid of a detector on a backbone.

    FPN pads, so that each level has half the cells of the one before. With C4 a single image is not padded, as in
    detectron2.
    """
    strides = arch.strides
    if options.neck == "fpn":
        return LevelGrid(tuple(strides.values()), max(strides.values()))
    return LevelGrid((strides["c4"],), 1)


def anchor_sizes(neck: Literal["fpn", "c4"], sizes: Sequence[float]) -> list[list[float]]:
    """Return the anchor sizes of each level in pixels: one per level of an FPN, or all on the single level of C4."""
    return [[size] for size in sizes] if neck == "fpn" else [list(sizes)]


class FpnFeatures(nn.Module):
    """Pyramid levels and the two-layer box head. ``feature_dim`` is the width of the box head.

    The first weights of the box head are Caffe2's "Xavier" (uniform, variance 1 / inputs, zero bias), as in Detectron,
    detectron2 and ORE.
    """

    def __init__(self, body: Backbone, options: ModelOptions) -> None:
        super().__init__()
        self.body = body
        self.grid = level_grid(options, body.options)
        self.channels = options.fpn_channels
        self.feature_dim = options.roi.hidden_dim
        self.fpn = FeaturePyramidNetwork([body.channels[stage] for stage in STAGES], self.channels)
        self.roi_align = RoIAlign(
            self.grid.strides_px,
            output_size=7,
            sampling_ratio=options.roi.sampling_ratio,
            canonical_size_px=options.roi.canonical_size_px,
            aligned=options.roi.aligned,
        )
        self.head = TwoMLPHead(self.channels * 7 * 7, self.feature_dim)
        for layer in (self.head.fc6, self.head.fc7):  # torchvision leaves torch's default, a third of this variance
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) → levels by stage name, each (B, channels, H/stride, W/stride), finest first."""
        levels: dict[str, Tensor] = self.fpn(self.body.forward_stages(images))
        return levels

    def region_features(self, levels: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Features (R, feature_dim) of the boxes of all images, in their order."""
        features: Tensor = self.head(self.roi_align(list(levels.values()), boxes))
        return features


class C4Features(nn.Module):
    """One level at stride 16; res5 as box head. ``feature_dim`` is C5's channels: 2048 in a ResNet-50."""

    def __init__(self, body: Backbone, options: ModelOptions) -> None:
        super().__init__()
        self.body = body
        self.grid = level_grid(options, body.options)
        if body.c4_head is None:
            raise ConfigError(
                f"model.neck is 'c4', and model.arch.name {body.options.name!r} has no stage that serves as box head",
                remedy="set model.neck: fpn, or choose a ResNet",
            )
        self.channels = body.channels["c4"]
        self.feature_dim = body.channels["c5"]
        self.roi_align = RoIAlign(
            self.grid.strides_px,
            output_size=14,
            sampling_ratio=options.roi.sampling_ratio,
            canonical_size_px=224,
            aligned=options.roi.aligned,
        )

    @property
    def head(self) -> nn.Module:
        """The last stage of the backbone."""
        head = self.body.c4_head
        assert head is not None  # see the constructor
        return head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) → the single level ``c4`` (B, channels, H/16, W/16)."""
        return {"c4": self.body.forward_stages(images, last="c4")["c4"]}

    def region_features(self, levels: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """Features (R, feature_dim) of the boxes of all images: res5 of the aligned regions, averaged over space."""
        regions: Tensor = self.head(self.roi_align(list(levels.values()), boxes))
        return regions.mean(dim=(2, 3))


def build_features(body: Backbone, options: ModelOptions) -> FpnFeatures | C4Features:
    """Build the form that ``options.neck`` names; freeze the first ``freeze_stages`` stages and fold frozen norms."""
    body.freeze(options.freeze_stages)
    fold_frozen_norms(body)
    return FpnFeatures(body, options) if options.neck == "fpn" else C4Features(body, options)
