"""torchvision's own Faster R-CNN as a :class:`openworld.detector.Detector`, on the trunk of one of ours.

Trunk, pyramid and the first weights of the RPN are those of our detector; anchors and numbers of proposals are as its
options say. Everything else is torchvision's default: its RPN, its two-layer box head of 1,024, box deltas per class,
512 regions per image, and its weights at the start. Images come resized; only normalising and padding are left to its
transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from openworld.data.transforms import as_float
from openworld.detector import Detector
from openworld.engines.backbone import FpnFeatures
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.structures import Detections, Target

LOSSES = {
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "classification": "loss_classifier",
    "box": "loss_box_reg",
}


class StockDetector(Detector):
    """Trained and asked like ours; its class k + 1 is our row k, and its class 0 our background."""

    engine: Any

    def __init__(self, ours: Detector) -> None:
        engine: Any = StockEngine(cast(OpenWorldRCNN, ours.engine))
        super().__init__(engine, ours.method)

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], step: int, *, replay: bool = False
    ) -> dict[str, Tensor]:
        """See :class:`Detector`."""
        device = self.engine.pixel_mean.device
        wanted = [{"boxes": each.boxes.to(device), "labels": each.labels.to(device) + 1} for each in targets]
        losses = self.engine.model([as_float(image.to(device)) for image in images], wanted)
        return {ours: losses[theirs] for ours, theirs in LOSSES.items()}

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """See :class:`Detector`."""
        found = self.engine.model([as_float(image.to(self.engine.pixel_mean.device)) for image in images])
        return [Detections(each["boxes"], each["scores"], each["labels"] - 1, each["labels"] - 1) for each in found]


class StockEngine(nn.Module):
    """Holds torchvision's model, and names what the training loop asks of an engine."""

    def __init__(self, ours: OpenWorldRCNN) -> None:
        super().__init__()
        options, features = ours.options, ours.features
        assert isinstance(features, FpnFeatures)
        rpn, bf16 = options.rpn, options.precision == "bf16"
        sizes = tuple((size,) for size in rpn.anchor_sizes)
        self.space, self.options, self.backbone = ours.space, options, ours.backbone
        names = [f"c{stage}" for stage in range(2, 6)]
        self.model = FasterRCNN(
            _Pyramid(features, bf16),
            num_classes=ours.space.num_known + 1,
            rpn_anchor_generator=AnchorGenerator(sizes, (tuple(rpn.anchor_ratios),) * len(sizes)),
            rpn_pre_nms_top_n_train=rpn.train_candidates,
            rpn_pre_nms_top_n_test=rpn.test_candidates,
            rpn_post_nms_top_n_train=rpn.train_proposals,
            rpn_post_nms_top_n_test=rpn.test_proposals,
            box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        )
        self.model.transform = _Prepared(
            0, 0, ours.pixel_mean.flatten().tolist(), ours.pixel_std.flatten().tolist(), features.grid.padding_px
        )
        self.model.rpn.head.load_state_dict(ours.rpn.head.state_dict())
        self.model.rpn.head = _Autocast(self.model.rpn.head, bf16)
        self.model.roi_heads.box_head = _Autocast(self.model.roi_heads.box_head, bf16)
        self.register_buffer("pixel_mean", ours.pixel_mean.clone())
        self.to(ours.pixel_mean.device).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> StockEngine:
        """Set the mode; as in ours, the BatchNorm of frozen stages keeps its statistics."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self


class _Pyramid(nn.Module):
    """Our trunk and pyramid, as torchvision's model calls its backbone."""

    def __init__(self, features: FpnFeatures, bf16: bool) -> None:
        super().__init__()
        self.body, self.fpn = features.body, features.fpn
        self.out_channels, self.bf16 = features.channels, bf16

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            levels = self.fpn(self.body.forward_stages(images))
        return {name: level.float() for name, level in levels.items()}


class _Autocast(nn.Module):
    """A part whose layers compute in bf16, if asked to, and whose results are float32, as in our detector."""

    def __init__(self, part: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.part, self.bf16 = part, bf16

    def forward(self, given: Tensor | list[Tensor]) -> Tensor | tuple[list[Tensor], ...]:
        device = given.device if isinstance(given, Tensor) else given[0].device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            found = self.part(given)
        if isinstance(found, Tensor):
            return found.float()
        return tuple([each.float() for each in maps] for maps in found)


class _Prepared(GeneralizedRCNNTransform):
    """torchvision's transform for images that are resized already."""

    def __init__(self, min_size: int, max_size: int, mean: list[float], std: list[float], multiple: int) -> None:
        super().__init__(min_size, max_size, mean, std, size_divisible=multiple)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target
