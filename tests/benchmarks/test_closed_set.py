"""Our closed detector equals torchvision's own Faster R-CNN at torchvision's values; the table of closed_set.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from openworld.config import RunConfig
from openworld.detector import Detector, build_detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.labels import LabelSpace
from openworld.methods.closed.options import ClosedOptions
from openworld.structures import Target
from ssl_backbones.backbones import ResNetOptions

SPACE = LabelSpace.of([["cat", "dog", "car"], ["bus"]], 1)
EVERY = 100_000
AS_TORCHVISION = ModelOptions(
    arch=ResNetOptions(name="resnet18", width=0.125),
    fpn_channels=16,
    rpn=RpnOptions(sampled_anchors=2 * EVERY, min_side_px=1e-3),
    roi=RoiOptions(
        sampled_regions=2 * EVERY,
        positive_fraction=0.5,
        hidden_dim=1024,
        canonical_size_px=224,
        sampling_ratio=2,
        box_regression="per_class",
        min_side_px=1e-2,
    ),
    device="cpu",
)
"""torchvision's values; and every anchor and region is sampled, so that nothing is drawn."""


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts in benchmarks/ be imported."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def stock(benchmarks: None) -> Callable[[Detector], Detector]:
    from stock_rcnn import StockDetector  # type: ignore[import-not-found]

    made: Callable[[Detector], Detector] = StockDetector
    return made


def untrained() -> Detector:
    torch.manual_seed(0)
    return build_detector(RunConfig(pretrain=None, method=ClosedOptions(), model=AS_TORCHVISION), SPACE, None)


@torch.no_grad()
def pair(stock: Callable[[Detector], Detector]) -> tuple[Detector, Detector]:
    """Ours and torchvision's on the same weights; its class k + 1 is our row k, its class 0 our background."""
    detector = untrained()
    peer = stock(detector)
    ours: Any = detector.engine
    theirs: Any = cast(Any, peer).engine.model
    theirs.rpn.fg_bg_sampler.batch_size_per_image = theirs.roi_heads.fg_bg_sampler.batch_size_per_image = 2 * EVERY
    theirs.roi_heads.fg_bg_sampler.positive_fraction = 0.5
    scores, deltas = theirs.roi_heads.box_predictor.cls_score, theirs.roi_heads.box_predictor.bbox_pred
    scores.weight.mul_(20)  # scores that differ, so that something is detected
    ours.features.head.load_state_dict(theirs.roi_heads.box_head.part.state_dict())
    for name in ("weight", "bias"):
        getattr(ours.cls_score, name)[[SPACE.background, 0, 1, 2]] = getattr(scores, name)
        getattr(ours.bbox_pred, name)[:12] = getattr(deltas, name)[4:]
    return detector, peer


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((96, 128), (80, 70))]


TARGETS = [
    Target(torch.tensor([[10.0, 10, 60, 50], [70, 40, 110, 90]]), torch.tensor([0, 2])),
    Target(torch.tensor([[5.0, 20, 40, 70]]), torch.tensor([1])),
]


def test_the_losses_and_their_gradient_are_those_of_torchvision(stock: Callable[[Detector], Detector]) -> None:
    ours, peer = pair(stock)
    found = [detector.train().losses(images(), TARGETS, 0) for detector in (ours, peer)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    weight = ours.engine.backbone.get_submodule("conv1").weight  # the trunk is one and the same module
    gradients = [torch.autograd.grad(torch.stack(list(losses.values())).sum(), weight)[0] for losses in found]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=float(1e-5 * gradients[1].abs().max()))


def test_the_detections_are_those_of_torchvision(stock: Callable[[Detector], Detector]) -> None:
    found = [detector.eval().detect(images()) for detector in pair(stock)]
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) > 10
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-4, atol=1e-5)
        assert ours.labels.tolist() == theirs.labels.tolist()


def test_the_peer_keeps_the_statistics_of_frozen_stages(stock: Callable[[Detector], Detector]) -> None:
    ours = untrained()
    ours.engine.backbone.get_submodule("bn1").requires_grad_(False)
    peer = stock(ours).train()
    assert not peer.engine.backbone.get_submodule("bn1").training
    assert peer.engine.backbone.get_submodule("layer1.0.bn1").training


def test_the_table_pairs_the_seeds(benchmarks: None) -> None:
    from closed_set import table  # type: ignore[import-not-found]

    def result(variant: str, seed: int, ap50: float, ap: float) -> dict[str, object]:
        return {"variant": variant, "seed": seed, "ap50": ap50, "ap": ap, "cpu_seconds_per_step": 0.5}

    results = [result("ours", 0, 0.5, 0.25), result("ours", 1, 0.75, 0.5), result("torchvision", 1, 0.5, 0.25)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(results).splitlines()]
    # ours: mean 62.5, deviation 25/√2 = 17.7, error 12.5; only seed 1 has a peer.
    assert rows[2] == ["torchvision", "", "50.0 / 25.0", "50.0 (1)", "–", "25.0 (1)", "–", "–", "–", "0.500"]
    assert rows[3] == [
        *("ours", "50.0 / 25.0", "75.0 / 50.0"),
        *("62.5 ± 12.5 (2)", "17.7", "37.5 ± 12.5 (2)", "17.7", "+25.0 (1)", "+25.0 (1)", "0.500"),
    ]
