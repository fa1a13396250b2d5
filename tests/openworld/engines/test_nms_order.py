"""Suppression after the decision or before it, with decisions that relabel, drop and rescore."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from openworld.engines.options import ModelOptions, RoiOptions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.engines.weights import build_engine
from openworld.labels import LabelSpace
from openworld.structures import Decision, Detections
from ssl_backbones.backbones import ResNetOptions

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)  # cat 0, dog 1, unknown 2
ROI = RoiOptions(hidden_dim=24, score_threshold=0.05, nms_iou=0.4, cross_nms_iou=1.0, detections_per_image=1000)


def engine() -> OpenWorldRCNN:
    torch.manual_seed(0)
    options = ModelOptions(arch=ResNetOptions(name="resnet18", width=0.125), fpn_channels=16, roi=ROI)
    return build_engine(SPACE, options, None).eval()


def kept_as_they_are(logits: Tensor, rows: Tensor, scores: Tensor) -> Decision:
    return Decision(rows, scores, -logits[:, :2].logsumexp(1), logits[:, :2].argmax(1), torch.ones_like(rows) > 0)


def all_unknown(logits: Tensor, rows: Tensor, scores: Tensor) -> Decision:
    return replace(kept_as_they_are(logits, rows, scores), labels=torch.full_like(rows, SPACE.unknown))


def turned_round(logits: Tensor, rows: Tensor, scores: Tensor) -> Decision:
    """The weakest becomes the best, and cats go."""
    return replace(kept_as_they_are(logits, rows, scores), scores=1 - scores, kept=rows != 0)


def detected(decide: object, *, after: bool) -> Detections:
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1))
    return engine().detect([image], decide, nms_after_decision=after)[0]  # type: ignore[arg-type]


def overlaps(found: Detections) -> Tensor:
    found_NN: Tensor = box_iou(found.boxes, found.boxes)
    return found_NN.triu(1)


def test_order_does_not_matter_if_nothing_changes() -> None:
    after, before = (detected(kept_as_they_are, after=order) for order in (True, False))
    assert len(set(after.labels.tolist())) == 3
    for name in ("boxes", "scores", "labels", "energies", "known_labels"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name


def test_before_the_decision_one_object_may_be_unknown_twice() -> None:
    plain = detected(kept_as_they_are, after=True)
    before, after = (detected(all_unknown, after=order) for order in (False, True))
    assert torch.equal(before.boxes, plain.boxes) and (before.labels == SPACE.unknown).all()
    assert (overlaps(before) > ROI.nms_iou).any() and not (overlaps(after) > ROI.nms_iou).any()


def test_dropped_and_rescored_detections() -> None:
    plain = detected(kept_as_they_are, after=True)
    before, after = (detected(turned_round, after=order) for order in (False, True))
    assert len(before) == int((plain.labels != 0).sum()) < len(plain)
    for found in (before, after):
        assert (found.labels != 0).all() and (found.scores.diff() <= 0).all()
    assert torch.allclose(before.scores.flip(0), 1 - plain.scores[plain.labels != 0])
