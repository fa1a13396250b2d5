"""Backbones and anchors of this project as detectron2 builds them.

detectron2's own builders make a ResNet-18 or -34 in the original width only, and pad the pool of the stem in one way.
These builders read the same keys and make any width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ANCHOR_GENERATOR_REGISTRY, BACKBONE_REGISTRY, GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, Backbone, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.anchor_utils import AnchorGenerator

from openworld.engines.detectron2.names import detectron2_name
from openworld.errors import HandoverError
from ssl_backbones.backbones.resnet_options import BLOCKS


class EndPaddedStem(BasicStem):
    """The stem with a pool that is padded right and bottom only (Caffe, TensorFlow on even sides)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, C, H/4, W/4)."""
        return functional.max_pool2d(functional.relu_(self.conv1(x)), kernel_size=3, stride=2, ceil_mode=True)


def stage(cfg: CfgNode, number: int) -> list[BasicBlock | BottleneckBlock]:
    """The blocks of res2 … res5, as ``MODEL.RESNETS`` says."""
    options = cfg.MODEL.RESNETS
    _, counts = BLOCKS[f"resnet{options.DEPTH}"]
    count, factor = counts[number - 2], 2 ** (number - 2)
    outside = options.RES2_OUT_CHANNELS * factor
    shared = {
        "num_blocks": count,
        "stride_per_block": [1 if number == 2 else 2, *[1] * (count - 1)],
        "in_channels": options.STEM_OUT_CHANNELS if number == 2 else outside // 2,
        "out_channels": outside,
        "norm": options.NORM,
    }
    if options.DEPTH < 50:
        return ResNet.make_stage(BasicBlock, **shared)  # type: ignore[no-any-return]
    return ResNet.make_stage(  # type: ignore[no-any-return]
        BottleneckBlock,
        bottleneck_channels=options.WIDTH_PER_GROUP * factor,
        stride_in_1x1=options.STRIDE_IN_1X1,
        **shared,
    )


@BACKBONE_REGISTRY.register()
def build_openworld_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """A ResNet of any width."""
    options = cfg.MODEL.RESNETS
    stem = (EndPaddedStem if cfg.OPENWORLD.POOL_PADDING == "end" else BasicStem)(
        in_channels=input_shape.channels, out_channels=options.STEM_OUT_CHANNELS, norm=options.NORM
    )
    last = max(int(name.removeprefix("res")) for name in options.OUT_FEATURES)
    stages = [stage(cfg, number) for number in range(2, last + 1)]
    return ResNet(stem, stages, out_features=options.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


@BACKBONE_REGISTRY.register()
def build_openworld_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """A ResNet of any width below a feature pyramid (P2 … P6, as in detectron2)."""
    return FPN(
        bottom_up=build_openworld_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def load_trunk(model: GeneralizedRCNN, tensors: Mapping[str, Tensor]) -> None:
    """Copy the weights of a ResNet into a detector of detectron2.

    Args:
        model: a ``GeneralizedRCNN``, C4 or FPN.
        tensors: by torchvision's names; the first convolution reads the colours in the order of the model's input.

    Raises:
        HandoverError: a tensor of the detector's trunk is missing or has another shape.
    """
    neck: Literal["c4", "fpn"] = "c4" if hasattr(model.roi_heads, "res5") else "fpn"
    named = {detectron2_name(f"features.body.{name}", neck): value for name, value in tensors.items()}
    state = model.state_dict()
    trunk = ("backbone.stem.", "backbone.res", "backbone.bottom_up.", "roi_heads.res5.")
    for name, value in state.items():
        if not name.startswith(trunk) or name.endswith("num_batches_tracked"):
            continue
        if name not in named or named[name].shape != value.shape:
            found = f"is {tuple(named[name].shape)}" if name in named else "is missing"
            raise HandoverError(
                f"{name} of the backbone {found}, the detector has {tuple(value.shape)}",
                where="backbone handover",
                remedy="build the detector for the backbone's architecture",
            )
    model.load_state_dict({name: value for name, value in named.items() if name in state}, strict=False)


@torch.no_grad()
def backbone_stages(model: GeneralizedRCNN, image: Tensor) -> dict[str, Tensor]:
    """Compute ``c2``…``c5`` (1, C, h, w) of one image (3, H, W) as it enters a detector of detectron2."""
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    x, stages = trunk.stem(model.preprocess_image([{"image": image}]).tensor), {}
    for name in trunk.stage_names:
        x = stages[name.replace("res", "c")] = trunk.get_submodule(name)(x)
    if "c5" not in stages:
        stages["c5"] = model.roi_heads.res5(x)
    return stages


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors as torchvision makes them: rounded to whole pixels, ordered by ratio, then by size. Both engines thus
    have the same anchors."""

    def generate_cell_anchors(self, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
        """Return the anchors of one cell, (sizes · ratios, 4) float32 around 0."""
        anchors: Tensor = AnchorGenerator().generate_anchors(list(sizes), list(aspect_ratios))  # type: ignore[arg-type]
        return anchors
