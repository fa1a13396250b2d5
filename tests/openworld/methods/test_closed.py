"""The closed detector: a softmax over known classes and background, and no word of unknown."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from openworld.detector import Detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.weights import build_engine
from openworld.labels import LabelSpace
from openworld.methods.closed.options import ClosedOptions
from openworld.structures import Target
from ssl_backbones.backbones import ResNetOptions
from tests.regions import training_step

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)  # cat 0, dog 1, unknown 2, background 3
ROI = RoiOptions(hidden_dim=24, sampled_regions=16, score_threshold=0.0)


def closed_detector() -> Detector:
    torch.manual_seed(0)
    options = ModelOptions(
        arch=ResNetOptions(name="resnet18", width=0.125), fpn_channels=16, roi=ROI, rpn=RpnOptions(test_proposals=30)
    )
    engine = build_engine(SPACE, options, None)
    return Detector(engine, ClosedOptions().build(SPACE, engine.feature_dim))


def image() -> torch.Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_a_head_without_the_row_of_unknown() -> None:
    detector = closed_detector().train()
    targets = [Target(torch.tensor([[8.0, 8, 40, 44]]), torch.tensor([1]))]
    losses, regions = training_step(detector.engine, [image()], targets, detector.method)
    assert regions.logits is not None and set(regions.labels.tolist()) <= {0, 1, SPACE.background}
    without = regions.logits[:, [0, 1, SPACE.background]]
    labels = regions.labels.masked_fill(regions.labels == SPACE.background, 2)
    wanted = functional.cross_entropy(without, labels)
    torch.testing.assert_close(losses["classification"], wanted)
    losses["classification"].backward()  # type: ignore[no-untyped-call]
    gradient = detector.engine.cls_score.weight.grad  # type: ignore[attr-defined]
    assert not gradient[SPACE.unknown].any() and bool(gradient[[0, 1, 3]].any(dim=1).all())


@torch.no_grad()
def test_nothing_is_unknown_at_any_threshold() -> None:
    detector = closed_detector().eval()
    detector.engine.cls_score.bias[SPACE.unknown] = 50.0  # type: ignore[attr-defined]
    (found,) = detector.detect([image()])
    assert len(found) > 10 and set(found.labels.tolist()) == {0, 1} and dict(found.extras) == {}
    logits = torch.tensor([[2.0, 1.0, 50.0, 0.0]])
    logits[:, list(detector.method.unused_rows)] = -torch.inf
    assert float(logits.softmax(1)[0, 0]) == pytest.approx(float(torch.tensor([2.0, 1.0, 0.0]).softmax(0)[0]))


def test_growth_gives_the_new_class_a_row_and_unknown_stays_out() -> None:
    detector = closed_detector()
    assert detector.method.unused_rows == (2,)
    detector.grow(SPACE.at(2))
    assert detector.method.unused_rows == (3,)
    assert detector.method.calibrate({})["status"] == "none" and detector.method.calibrates_on == "nothing"
