"""The convolutional half of the detector: a ResNet whose features an RPN and a box head can use.

Two forms. FPN (Lin et al., CVPR 2017): levels P2…P5, two fully connected layers as box head. C4 (ORE's): one level at
stride 16, the last stage of the ResNet as box head, its mean-pooled output as the region's feature.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from openworld.engines.options import ModelOptions
from ssl_backbones.nets import ResNet

STRIDE_PX = 32
"""Images are padded to a multiple of it."""

_STAGES = ("c2", "c3", "c4", "c5")


class FpnFeatures(nn.Module):
    """Pyramid levels and the two-layer box head. ``feature_dim`` is the width of the box head."""

    def __init__(self, body: ResNet, options: ModelOptions) -> None:
        super().__init__()
        self.body = body
        self.channels = options.fpn_channels
        self.feature_dim = options.roi.hidden_dim
        self.anchor_sizes = [[size] for size in options.rpn.anchor_sizes]
        self.fpn = FeaturePyramidNetwork([body.channels[stage] for stage in _STAGES], self.channels)
        self.roi_align = MultiScaleRoIAlign(list(_STAGES), output_size=7, sampling_ratio=options.roi.sampling_ratio)
        self.head = TwoMLPHead(self.channels * 7 * 7, self.feature_dim)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) → levels by stage name, each (B, channels, H/stride, W/stride), finest first."""
        return self.fpn(self.body.forward_stages(images))

    def region_features(
        self, levels: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Features (R, feature_dim) of the boxes of all images, in their order."""
        return self.head(self.roi_align(levels, boxes, image_sizes))


class C4Features(nn.Module):
    """One level at stride 16; res5 as box head. ``feature_dim`` is C5's channels: 2048 in a ResNet-50."""

    def __init__(self, body: ResNet, options: ModelOptions) -> None:
        super().__init__()
        self.body = body
        self.channels = body.channels["c4"]
        self.feature_dim = body.channels["c5"]
        self.anchor_sizes = [list(options.rpn.anchor_sizes)]
        self.roi_align = MultiScaleRoIAlign(["c4"], output_size=14, sampling_ratio=options.roi.sampling_ratio)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) → the single level ``c4`` (B, channels, H/16, W/16)."""
        return {"c4": self.body.forward_stages(images, last="c4")["c4"]}

    def region_features(
        self, levels: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> Tensor:
        """Features (R, feature_dim) of the boxes of all images: res5 of the aligned regions, averaged over space."""
        return self.body.layer4(self.roi_align(levels, boxes, image_sizes)).mean(dim=(2, 3))


def build_features(body: ResNet, options: ModelOptions) -> FpnFeatures | C4Features:
    """The form that ``options.neck`` names, with the first ``freeze_stages`` stages frozen."""
    stages = [[body.conv1, body.bn1], [body.layer1], [body.layer2], [body.layer3], [body.layer4]]
    for stage in stages[: options.freeze_stages]:
        for module in stage:
            module.requires_grad_(False)
    return FpnFeatures(body, options) if options.neck == "fpn" else C4Features(body, options)
