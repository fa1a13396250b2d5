"""Suppression after the decision or before it, with decisions that relabel, drop and rescore."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from openworld.detector import Detector
from openworld.engines.options import ModelOptions, RoiOptions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.engines.weights import build_engine
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.structures import Candidates, Decision, Detections
from ssl_backbones.backbones import ResNetOptions

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)  # cat 0, dog 1, unknown 2
ROI = RoiOptions(hidden_dim=24, score_threshold=0.05, nms_iou=0.4, cross_nms_iou=1.0, detections_per_image=1000)


def engine() -> OpenWorldRCNN:
    torch.manual_seed(0)
    options = ModelOptions(arch=ResNetOptions(name="resnet18", width=0.125), fpn_channels=16, roi=ROI)
    return build_engine(SPACE, options, None).eval()


class Kept(OpenWorldMethod):
    """Every candidate stays what it is, before the suppression or after it."""

    def __init__(self, *, after: bool) -> None:
        super().__init__(SPACE)
        self.after = after

    @property
    def nms_after_decision(self) -> bool:
        return self.after


class AllUnknown(Kept):
    def decide(self, candidates: Candidates) -> Decision:
        return replace(super().decide(candidates), labels=torch.full_like(candidates.rows, SPACE.unknown))


class TurnedRound(Kept):
    """The weakest becomes the best, and cats go."""

    def decide(self, candidates: Candidates) -> Decision:
        return replace(super().decide(candidates), scores=1 - candidates.scores, kept=candidates.rows != 0)


def detected(method: type[Kept], *, after: bool) -> Detections:
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1))
    return Detector(engine(), method(after=after)).eval().detect([image])[0]


def overlaps(found: Detections) -> Tensor:
    found_NN: Tensor = box_iou(found.boxes, found.boxes)
    return found_NN.triu(1)


def test_order_does_not_matter_if_nothing_changes() -> None:
    after, before = (detected(Kept, after=order) for order in (True, False))
    assert len(set(after.labels.tolist())) == 3
    for name in ("boxes", "scores", "labels", "known_labels"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name


def test_before_the_decision_one_object_may_be_unknown_twice() -> None:
    plain = detected(Kept, after=True)
    before, after = (detected(AllUnknown, after=order) for order in (False, True))
    assert torch.equal(before.boxes, plain.boxes) and (before.labels == SPACE.unknown).all()
    assert (overlaps(before) > ROI.nms_iou).any() and not (overlaps(after) > ROI.nms_iou).any()


def test_dropped_and_rescored_detections() -> None:
    plain = detected(Kept, after=True)
    before, after = (detected(TurnedRound, after=order) for order in (False, True))
    assert len(before) == int((plain.labels != 0).sum()) < len(plain)
    for found in (before, after):
        assert (found.labels != 0).all() and (found.scores.diff() <= 0).all()
    assert torch.allclose(before.scores.flip(0), 1 - plain.scores[plain.labels != 0])
