"""Region proposal network (Faster R-CNN, section 3.1) made of torchvision's parts; it keeps the objectness.

B images, A anchors per image over all levels, P proposals or positive anchors, S sampled anchors of all images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import boxes as box_ops

from openworld.engines.kernels.sampled_rpn_head import is_shallow, sampled_rpn_head
from openworld.engines.options import RpnOptions
from openworld.engines.sampling import sample_anchors
from openworld.runtime import distributed
from openworld.structures import Target


class ProposalNetwork(nn.Module):
    """RPN head, anchors, matching, loss and proposal selection.

    Args:
        channels: channels of each feature level.
        anchor_sizes: per level, the anchor side lengths in pixels.
        strides_px: per level, the distance between cells in pixels.
        options: anchors, matching, sampling and selection.
    """

    def __init__(
        self, channels: int, anchor_sizes: Sequence[Sequence[float]], strides_px: Sequence[int], options: RpnOptions
    ) -> None:
        super().__init__()
        self.strides_px = tuple(strides_px)
        self.options = options
        ratios = tuple(tuple(options.anchor_ratios) for _ in anchor_sizes)
        self.anchors = AnchorGenerator(tuple(tuple(sizes) for sizes in anchor_sizes), ratios)  # type: ignore[arg-type]
        self.head = RPNHead(channels, self.anchors.num_anchors_per_location()[0])
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(options.foreground_iou, options.background_iou, allow_low_quality_matches=True)

    def forward(
        self, images: ImageList, levels: list[Tensor], targets: Sequence[Target] | None
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Propose regions in each image, and compute the losses where targets are given.

        Args:
            images: padded batch with the true sizes.
            levels: feature maps (B, C, h, w) floating, finest first. Under autocast the head computes in its dtype, and
                everything behind it in float32. The losses have a gradient, the proposals do not.
            targets: annotated boxes, or None at test.

        Returns:
            boxes: per image (P, 4) float32, clipped to the image, sorted by falling objectness.
            objectness: per image (P,) float32 logits.
            losses: ``objectness`` and ``rpn_box``; empty at test.
        """
        # A shallow head runs again on the few anchors of the losses; this pass then needs no gradient.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not is_shallow(self.head)):
            objectness_maps, delta_maps = self.head(levels)
            with torch.autocast(levels[0].device.type, enabled=False):
                objectness_BA = torch.cat([_flatten(scores, 1)[..., 0] for scores in objectness_maps], dim=1).float()
                deltas_BA4 = torch.cat([_flatten(deltas, 4) for deltas in delta_maps], dim=1).float()
        with torch.no_grad(), torch.autocast(levels[0].device.type, enabled=False):
            per_level = [scores[0].numel() for scores in objectness_maps]
            anchors_A4 = self._anchors(levels)
            proposals = [
                self._select(anchors_A4, deltas_A4, scores_A, per_level, size)
                for deltas_A4, scores_A, size in zip(deltas_BA4, objectness_BA, images.image_sizes, strict=True)
            ]
        losses = {} if targets is None else self._losses(levels, objectness_BA, deltas_BA4, anchors_A4, targets)
        return [boxes for boxes, _ in proposals], [scores for _, scores in proposals], losses

    def _anchors(self, levels: list[Tensor]) -> Tensor:
        """Anchors of all levels, (A, 4) float32 in pixels.

        torchvision's forward derives the strides from the image size, which is wrong where the size is not a multiple
        of them.
        """
        self.anchors.set_cell_anchors(torch.float32, levels[0].device)
        grids = [list(level.shape[-2:]) for level in levels]
        strides = [[stride] * 2 for stride in self.strides_px]  # as numbers: a tensor would wait for the GPU
        return torch.cat(self.anchors.grid_anchors(grids, strides))  # type: ignore[arg-type]

    def _select(
        self, anchors_A4: Tensor, deltas_A4: Tensor, scores_A: Tensor, per_level: list[int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Select proposals: the best candidates per level, decoded and clipped; NMS within each level; the best of all.

        Returns:
            (P, 4) boxes and (P,) scores, sorted by falling score.
        """
        candidates = self.options.train_candidates if self.training else self.options.test_candidates
        keep_most = self.options.train_proposals if self.training else self.options.test_proposals
        chosen, level_of, start = [], [], 0
        for level, count in enumerate(per_level):
            best = scores_A[start : start + count].topk(min(candidates, count)).indices + start
            chosen.append(best)
            level_of.append(torch.full_like(best, level))
            start += count
        index, level_index = torch.cat(chosen), torch.cat(level_of)
        boxes = box_ops.clip_boxes_to_image(self.coder.decode_single(deltas_A4[index], anchors_A4[index]), size)
        scores = scores_A[index]
        least = max(self.options.min_side_px, torch.finfo(boxes.dtype).tiny)  # an empty box is never a proposal
        usable = box_ops.remove_small_boxes(boxes, least)
        boxes, scores, level_index = boxes[usable], scores[usable], level_index[usable]
        kept = box_ops.batched_nms(boxes, scores, level_index, self.options.nms_iou)[:keep_most]
        return boxes[kept], scores[kept]

    def _losses(
        self,
        levels: list[Tensor],
        objectness_BA: Tensor,
        deltas_BA4: Tensor,
        anchors_A4: Tensor,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and smooth L1 over the sampled anchors (Faster R-CNN, eq. 1)."""
        with torch.autocast(levels[0].device.type, enabled=False):
            labels_BA, matched_BA = self._match(anchors_A4, targets)
        positive_BA, negative_BA = sample_anchors(labels_BA, self.options.sampled_anchors)
        image_S, anchor_S = torch.where(positive_BA | negative_BA)
        weight = distributed.mean_weight(torch.full((), len(image_S), device=anchors_A4.device))
        sampled = max(len(image_S), 1)
        objectness_S, deltas_S4 = objectness_BA[image_S, anchor_S], deltas_BA4[image_S, anchor_S]
        if is_shallow(self.head):  # the same numbers, with a gradient that touches the sampled cells only
            objectness_S, deltas_S4 = sampled_rpn_head(self.head, levels, image_S, anchor_S)
        with torch.autocast(levels[0].device.type, enabled=False):
            labels_S = labels_BA[image_S, anchor_S]
            positive = torch.where(labels_S == 1)[0]
            image_P, anchor_P = image_S[positive], anchor_S[positive]
            boxes_P4 = torch.cat([target.boxes for target in targets])[matched_BA[image_P, anchor_P]]
            goals_P4 = self.coder.encode_single(boxes_P4, anchors_A4[anchor_P])
            beta = self.options.smooth_l1_beta
            box = functional.smooth_l1_loss(deltas_S4[positive].float(), goals_P4, beta=beta, reduction="sum")
            objectness = functional.binary_cross_entropy_with_logits(objectness_S.float(), labels_S, reduction="sum")
        return {"objectness": weight * (objectness / sampled), "rpn_box": weight * (box / sampled)}

    def _match(self, anchors_A4: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Match the anchors of each image to its annotated boxes.

        Returns:
            labels: (B, A) float32, 1 positive, 0 negative, -1 in between.
            matched: (B, A) int64, the box of each positive anchor, counted over the boxes of all images. Values of
                other anchors have no meaning.
        """
        labels_B, matched_B, first = [], [], 0
        for target in targets:
            if len(target) == 0:
                labels_B.append(torch.zeros(len(anchors_A4), device=anchors_A4.device))
                matched_B.append(torch.zeros(len(anchors_A4), dtype=torch.int64, device=anchors_A4.device))
                continue
            matched_A = self.matcher(box_ops.box_iou(target.boxes, anchors_A4))
            labels = (matched_A >= 0).float()
            labels[matched_A == Matcher.BETWEEN_THRESHOLDS] = -1.0
            labels_B.append(labels)
            matched_B.append(matched_A + first)
            first += len(target)
        return torch.stack(labels_B), torch.stack(matched_B)


def _flatten(maps: Tensor, channels: int) -> Tensor:
    """(B, anchors·channels, h, w) → (B, h·w·anchors, channels), in the order of the anchor generator."""
    batch, _, height, width = maps.shape
    return maps.reshape(batch, -1, channels, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, channels)
