"""The two engines with the same weights, images and random numbers: the same proposals, regions, losses, detections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from openworld.detector import Detector
from openworld.engines.detectron2.names import detectron2_name
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.weights import build_engine
from openworld.errors import EnvironmentProblem, HandoverError
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions
from openworld.structures import Regions, Target
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from tests.regions import training_step

pytest.importorskip("detectron2", reason="detectron2 is not installed")
pytestmark = pytest.mark.detectron2

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)
TINY = ResNetOptions(name="resnet18", width=0.125)
CLOSE = 1e-4

CASES = {
    "fpn": ModelOptions(arch=TINY, neck="fpn", fpn_channels=16),
    "c4": ModelOptions(arch=TINY, neck="c4"),
    "fpn as the reference code": ModelOptions(
        arch=replace(TINY, name="resnet50"),
        fpn_channels=16,
        layout="fixed",
        rpn=RpnOptions(min_side_px=0, smooth_l1_beta=0),
        roi=RoiOptions(
            unknown_share="shared",
            unknown_box_loss="included",
            box_regression="per_class",
            smooth_l1_beta=0,
            sampling_ratio=0,
            aligned=True,
            min_side_px=0,
            cross_nms_iou=1.0,
        ),
    ),
    "c4 as the reference code": ModelOptions(
        arch=replace(TINY, name="resnet50", stride_in_1x1=True, pool_padding="end"),
        neck="c4",
        layout="fixed",
        rpn=RpnOptions(min_side_px=0, smooth_l1_beta=0),
        roi=RoiOptions(box_regression="per_class", smooth_l1_beta=0, sampling_ratio=0, aligned=True, min_side_px=0),
    ),
}


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in ((64, 64), (48, 80))]


def targets() -> list[Target]:
    boxes = torch.tensor([[8.0, 8, 40, 44], [20, 30, 60, 62]])
    return [Target(boxes, torch.tensor([1, 0])), Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))]


def twins(options: ModelOptions, space: LabelSpace = SPACE) -> list[Any]:
    """Both engines with the same random weights, large enough that scores differ."""
    options = replace(
        options,
        rpn=replace(options.rpn, train_proposals=60, test_proposals=30),
        roi=replace(options.roi, hidden_dim=24, sampled_regions=16, score_threshold=0.0),
    )
    torch.manual_seed(0)
    ours: Any = build_engine(replace(space, layout=options.layout), options, None)
    with torch.no_grad():
        for module, spread in (
            (ours.rpn.head.cls_logits, 0.5),
            (ours.rpn.head.bbox_pred, 0.05),
            (ours.cls_score, 0.5),
            (ours.bbox_pred, 0.05),
        ):
            nn.init.normal_(module.weight, std=spread)
    theirs: Any = build_engine(replace(space, layout=options.layout), replace(options, engine="detectron2"), None)
    state = {detectron2_name(name, options.neck): value for name, value in ours.state_dict().items()}
    result = theirs.model.load_state_dict(state, strict=False)
    assert result.unexpected_keys == [] and result.missing_keys == ["roi_heads.box_predictor.num_known"]
    return [ours, theirs]


def step(engine: Any, seed: int = 3) -> tuple[dict[str, float], list[Regions], dict[str, Tensor]]:
    """Losses of a training step, the regions before and after the sampling, and gradients by our names."""
    ore = Ore(engine.space, engine.feature_dim, ClusteringOptions(start_step=0), UnknownLabelOptions(per_image=2))
    torch.manual_seed(seed)
    with (
        patch.object(ore, "relabel", wraps=ore.relabel) as relabel,
        patch.object(ore, "losses", wraps=ore.losses) as own_losses,
    ):
        losses = Detector(engine.train(), ore).losses(images(), targets(), 0)
    seen = [call.args[0] for watched in (relabel, own_losses) for call in watched.call_args_list]
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    named = engine.model if hasattr(engine, "model") else engine
    gradients = {name: value.grad for name, value in named.named_parameters() if value.grad is not None}
    return {name: float(value.detach()) for name, value in losses.items()}, seen, gradients


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_is_the_same(case: str) -> None:
    """Proposals, sampled regions, all losses and all gradients; with C4, which has fewer anchors than are sampled, the
    losses of the proposals are divided by another number."""
    options = CASES[case]
    ours, theirs = twins(options)
    (losses, regions, gradients), (their_losses, their_regions, their_gradients) = step(ours), step(theirs)
    for mine, other in zip(regions, their_regions, strict=True):
        assert torch.equal(mine.labels, other.labels) and torch.equal(mine.image_index, other.image_index)
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=CLOSE, atol=1e-3)
        torch.testing.assert_close(mine.objectness, other.objectness, rtol=CLOSE, atol=1e-5)
        torch.testing.assert_close(mine.iou, other.iou, rtol=CLOSE, atol=1e-5)
    assert len(regions[0]) > len(regions[1]) > 0
    assert bool((regions[1].labels == ours.space.unknown).any()) and bool((regions[1].labels < 2).any())
    anchors = 256 if options.neck == "fpn" else (4 * 4 + 3 * 5) * 12 / 2
    for name, value in losses.items():
        factor = anchors / 256 if name in ("objectness", "rpn_box") and options.neck == "c4" else 1
        if factor == 1:
            assert value > 0 and their_losses[name] == pytest.approx(value, rel=CLOSE), name
    if options.neck == "fpn":
        for name, value in gradients.items():
            other = their_gradients[detectron2_name(name, options.neck)]
            torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-4 * float(value.abs().max()), msg=name)
    assert len(gradients) == len(their_gradients)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("nms_after_decision", [True, False])
def test_detections_are_the_same(case: str, nms_after_decision: bool) -> None:
    ours, theirs = (engine.eval() for engine in twins(CASES[case]))
    ore = Ore(ours.space, ours.feature_dim, energy=EnergyOptions(nms_after_decision=nms_after_decision))
    found, other = (Detector(engine, ore).detect(images()) for engine in (ours, theirs))
    for mine, its in zip(found, other, strict=True):
        assert (
            len(mine) > 3 and torch.equal(mine.labels, its.labels) and torch.equal(mine.known_labels, its.known_labels)
        )
        torch.testing.assert_close(mine.boxes, its.boxes, rtol=CLOSE, atol=1e-3)
        torch.testing.assert_close(mine.scores, its.scores, rtol=CLOSE, atol=1e-6)
        torch.testing.assert_close(mine.extras["energy"], its.extras["energy"], rtol=CLOSE, atol=1e-4)


def test_held_out_regions_are_the_same() -> None:
    ours, theirs = (engine.eval() for engine in twins(CASES["c4"]))
    detectors = [Detector(engine, Ore(SPACE, engine.feature_dim)) for engine in (ours, theirs)]
    (mine, sizes), (its, its_sizes) = (detector.matched_regions(images(), targets()) for detector in detectors)
    assert torch.equal(mine.labels, its.labels) and torch.equal(sizes, its_sizes)
    torch.testing.assert_close(mine.logits, its.logits, rtol=CLOSE, atol=1e-4)
    torch.testing.assert_close(mine.features, its.features, rtol=CLOSE, atol=1e-4)
    samples, its_samples = (detector.calibration_samples(images(), targets()) for detector in detectors)
    assert len(samples["unknown"]) > 0
    torch.testing.assert_close(samples, its_samples, rtol=CLOSE, atol=1e-4)


@pytest.mark.parametrize("case", ["fpn", "c4 as the reference code"])
def test_growth_keeps_both_the_same(case: str) -> None:
    ours, theirs = twins(CASES[case])
    later = ours.space.at(2)
    for engine in (ours, theirs):
        torch.manual_seed(5)
        engine.grow(later)
    state = theirs.model.state_dict()
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        assert torch.equal(state[detectron2_name(name)], ours.state_dict()[name])
    assert theirs.space == later and int(state["roi_heads.box_predictor.num_known"]) == 3
    found = Detector(theirs, Ore(later, theirs.feature_dim)).eval().detect(images())
    assert all(int(each.labels.max()) <= later.unknown for each in found)


def test_no_proposals_give_no_detections() -> None:
    options = replace(CASES["fpn"], engine="detectron2", rpn=RpnOptions(min_side_px=1000))
    engine: Any = build_engine(SPACE, options, None)
    found = Detector(engine, Ore(SPACE, engine.feature_dim)).eval().detect(images())
    assert [len(each) for each in found] == [0, 0]


def test_frozen_stages_and_bf16() -> None:
    options = replace(CASES["fpn"], engine="detectron2", freeze_stages=0, precision="bf16")
    torch.manual_seed(0)
    engine: Any = build_engine(SPACE, options, None)
    losses, regions = training_step(engine.train(), images(), targets())
    assert all(value.dtype == torch.float32 and bool(torch.isfinite(value)) for value in losses.values())
    assert regions.features is not None and regions.features.dtype == torch.float32


# -- backbones --------------------------------------------------------------------------------------------------------


def written_backbone(path: Path, arch: ResNetOptions) -> Path:
    torch.manual_seed(5)
    network = ResNet(arch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    file = path / "weights.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return file


@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_a_backbone_arrives_verified(tmp_path: Path, neck: Any, norm: Any) -> None:
    """The stride in the 1x1 leaves no trace in the file; freezing leaves the right number of parameters to train."""
    arch = replace(TINY, name="resnet50", stride_in_1x1=True)
    options = ModelOptions(engine="detectron2", arch=arch, neck=neck, norm=norm, freeze_stages=3, fpn_channels=16)
    file = written_backbone(tmp_path, arch)
    theirs: Any = build_engine(SPACE, options, file)
    ours: Any = build_engine(SPACE, replace(options, engine="torchvision"), file)
    trained = [sum(value.numel() for value in engine.parameters() if value.requires_grad) for engine in (ours, theirs)]
    assert trained[0] == trained[1] > 0
    own = [sum(value.numel() for value in engine.backbone.parameters()) for engine in (ours, theirs)]
    assert norm == "frozen" or own[0] >= own[1] > 0


def test_a_wrong_stride_is_noticed(tmp_path: Path) -> None:
    from openworld.engines.detectron2.parts import Detectron2RCNN
    from openworld.engines.weights import load_backbone
    from ssl_backbones.handover import load_backbone_file

    arch = replace(TINY, name="resnet50")
    backbone = load_backbone_file(written_backbone(tmp_path, arch), arch=arch)
    wrong = Detectron2RCNN(SPACE, replace(arch, stride_in_1x1=True), ModelOptions(neck="c4"))
    with pytest.raises(HandoverError, match="C3"):
        load_backbone(wrong, backbone)
    with pytest.raises(HandoverError, match="the detector has"):
        wrong.load_backbone(ResNet(TINY).state_dict())


def test_without_detectron2_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    for name in [name for name in sys.modules if name.startswith("openworld.engines.detectron2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"docs/detectron2\.md"):
        importlib.import_module("openworld.engines.detectron2.parts")
