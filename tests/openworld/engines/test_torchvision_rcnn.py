"""The engine: its losses against slow loops and stock torchvision, its proposals, its growth, its handover."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import boxes as box_ops

from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.rpn import MIN_SIDE_PX
from openworld.engines.torchvision_rcnn import OpenWorldRCNN, _suppress_across
from openworld.engines.weights import build_engine
from openworld.errors import CheckpointError, HandoverError
from openworld.labels import LabelSpace
from openworld.ore.core import Ore
from openworld.structures import Regions, Target
from ssl_backbones.nets import ResNet
from ssl_backbones.options import ArchOptions

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)
TINY = ArchOptions(arch="resnet18", width=0.125)


def options(**changes: object) -> ModelOptions:
    base = ModelOptions(arch=TINY, fpn_channels=16, roi=RoiOptions(hidden_dim=24, sampled_regions=16))
    return replace(base, **changes)  # type: ignore[arg-type]


def engine(seed: int = 0, **changes: object) -> OpenWorldRCNN:
    torch.manual_seed(seed)
    return build_engine(SPACE, options(**changes), None)


def keep_labels(regions: Regions, sizes: Tensor) -> Tensor:
    return regions.labels.clone()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def target(*boxes: tuple[float, float, float, float], labels: tuple[int, ...] = ()) -> Target:
    return Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64))


ONE = target((8, 8, 40, 44), labels=(1,))
EMPTY = target()


@pytest.mark.parametrize("neck", ["fpn", "c4"])
@pytest.mark.parametrize("targets", [[ONE, ONE], [ONE, EMPTY], [EMPTY, EMPTY]])
def test_losses_are_finite_and_box_losses_are_zero_without_objects(neck: str, targets: list[Target]) -> None:
    model = engine(neck=neck).train()
    losses, regions = model.training_step(images((64, 64), (48, 80)), targets, keep_labels)
    assert set(losses) == {"objectness", "rpn_box", "classification", "box"}
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    if all(len(item) == 0 for item in targets):
        assert float(losses["box"].detach()) == 0.0
        assert float(losses["rpn_box"].detach()) == 0.0
        assert bool((regions.labels == SPACE.background).all())
    assert regions.features is not None and regions.features.shape == (len(regions), model.feature_dim)
    assert regions.logits is not None and regions.logits.shape == (len(regions), SPACE.num_rows)


def test_proposal_losses_equal_a_slow_loop() -> None:
    annotated = target((7, 9, 41, 44), labels=(1,))  # no IoU with an anchor lies on a threshold
    model = engine(rpn=RpnOptions(sampled_anchors=10**6)).train()  # every negative is sampled: nothing is random
    batch = model.normalise(images((64, 64)))
    levels = list(model.features(batch.tensors).values())
    _, _, losses = model.rpn(batch, levels, [annotated])

    anchors = model.rpn.anchors(batch, levels)[0]
    with torch.no_grad():
        scores, deltas = model.rpn.head(levels)
    flat_scores = torch.cat([s[0].permute(1, 2, 0).reshape(-1) for s in scores])
    flat_deltas = torch.cat([d[0].permute(1, 2, 0).reshape(-1, 4) for d in deltas])
    iou = box_ops.box_iou(annotated.boxes, anchors)[0]
    best = float(iou.max())
    objectness, box, count = 0.0, 0.0, 0
    for index in range(len(anchors)):
        overlap = float(iou[index])
        if 0.3 <= overlap < 0.7 and overlap != best:
            continue
        positive = overlap >= 0.7 or overlap == best
        count += 1
        objectness += float(
            functional.binary_cross_entropy_with_logits(flat_scores[index], torch.tensor(float(positive)))
        )
        if positive:
            a, g = anchors[index], annotated.boxes[0]
            aw, ah, gw, gh = a[2] - a[0], a[3] - a[1], g[2] - g[0], g[3] - g[1]
            goal = torch.stack(
                [
                    ((g[0] + g[2]) - (a[0] + a[2])) / 2 / aw,
                    ((g[1] + g[3]) - (a[1] + a[3])) / 2 / ah,
                    torch.log(gw / aw),
                    torch.log(gh / ah),
                ]
            )
            box += float(functional.smooth_l1_loss(flat_deltas[index], goal, beta=1 / 9, reduction="sum"))
    assert float(losses["objectness"].detach()) == pytest.approx(objectness / count, rel=1e-4)
    assert float(losses["rpn_box"].detach()) == pytest.approx(box / count, rel=1e-4)


def test_proposals_equal_stock_torchvision() -> None:
    """Same weights, same image: boxes of our RPN are those of torchvision's, in the same order."""
    torch.manual_seed(0)
    stock = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=128, rpn_post_nms_top_n_test=60
    ).eval()
    with torch.no_grad():  # logits that neither tie nor saturate the stock code's sigmoid
        maps, _ = stock.rpn.head(list(stock.backbone(stock.transform(images((128, 128)))[0].tensors).values()))
        stock.rpn.head.cls_logits.weight.mul_(2 / torch.cat([scores.flatten() for scores in maps]).std())
    arch = ArchOptions(arch="resnet50", width=1.0)
    ours = build_engine(
        SPACE,
        ModelOptions(
            arch=arch,
            fpn_channels=256,
            rpn=RpnOptions(anchor_sizes=[32, 64, 128, 256], test_candidates=1000, test_proposals=60),
        ),
        None,
    ).eval()
    body = stock.backbone.body.state_dict()
    ours.features.body.load_state_dict(body)
    ours.features.fpn.load_state_dict(stock.backbone.fpn.state_dict(), strict=False)  # type: ignore[union-attr]
    ours.rpn.head.load_state_dict(stock.rpn.head.state_dict())
    image = images((128, 128))
    with torch.no_grad():
        batch = ours.normalise(image)
        levels = ours.features(batch.tensors)
        boxes, objectness, _ = ours.rpn(batch, list(levels.values()), None)
        transformed, _ = stock.transform(image)
        stock_levels = stock.backbone(transformed.tensors)
        del stock_levels["pool"]
        stock.rpn.anchor_generator.sizes = stock.rpn.anchor_generator.sizes[:4]
        stock.rpn.anchor_generator.aspect_ratios = stock.rpn.anchor_generator.aspect_ratios[:4]
        stock.rpn.anchor_generator.cell_anchors = stock.rpn.anchor_generator.cell_anchors[:4]
        stock.rpn.min_size = MIN_SIDE_PX
        expected, _ = stock.rpn(transformed, stock_levels)
    assert len(boxes[0]) == len(expected[0]) > 10
    torch.testing.assert_close(boxes[0], expected[0], atol=1e-3, rtol=1e-4)
    assert bool((objectness[0].diff() <= 0).all())


def test_unknown_regions_stay_out_of_the_box_loss() -> None:
    model = engine().train()

    def all_background_unknown(regions: Regions, sizes: Tensor) -> Tensor:
        return regions.labels.masked_fill(regions.labels == SPACE.background, SPACE.unknown)

    torch.manual_seed(0)
    losses, regions = model.training_step(images((64, 64)), [EMPTY], all_background_unknown)
    assert bool((regions.labels == SPACE.unknown).all()) and len(regions) > 0
    assert float(losses["box"].detach()) == 0.0


def test_every_unknown_region_is_sampled() -> None:
    model = engine().train()
    space = model.labels
    count = 60
    labels = torch.full((count,), space.background)
    labels[[3, 50, 59]] = space.unknown
    labels[:3] = 0
    regions = Regions(
        torch.rand(count, 4), torch.zeros(count, dtype=torch.int64), torch.zeros(count), torch.zeros(count), labels
    )
    chosen = model._sample(regions)
    assert {3, 50, 59, 0, 1, 2} <= set(chosen.tolist())
    assert len(chosen) == model.options.roi.sampled_regions
    assert len(set(chosen.tolist())) == len(chosen)


def test_growth_keeps_old_rows_bit_for_bit() -> None:
    model = engine()
    weight, bias = model.classify.weight.clone(), model.classify.bias.clone()
    later = SPACE.at(2)
    model.grow(later)
    assert model.classify.weight.shape[0] == later.num_rows == 5
    for old, new in [(0, 0), (1, 1), (SPACE.unknown, later.unknown), (SPACE.background, later.background)]:
        assert torch.equal(model.classify.weight[new], weight[old])
        assert torch.equal(model.classify.bias[new], bias[old])
    model.train().training_step(images((64, 64)), [target((8, 8, 40, 44), labels=(2,))], keep_labels)


def test_batched_detection_equals_one_image_at_a_time() -> None:
    model = engine(roi=RoiOptions(hidden_dim=24, score_threshold=0.0)).eval()
    ore = Ore(SPACE, model.feature_dim)
    pictures = images((64, 64), (64, 64), (64, 64))
    together = model.detect(pictures, ore.decide)
    for picture, found in zip(pictures, together, strict=True):
        alone = model.detect([picture], ore.decide)[0]
        assert len(alone) == len(found) > 0
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.scores, found.scores, atol=1e-4, rtol=1e-4)
        assert bool((found.scores.diff() <= 0).all())
        assert bool((found.labels != SPACE.background).all())


def test_no_proposals_gives_no_detections() -> None:
    model = engine(rpn=RpnOptions(test_proposals=0)).eval()
    found = model.detect(images((64, 64)), Ore(SPACE, model.feature_dim).decide)
    assert [len(item) for item in found] == [0]


def test_suppression_across_known_and_unknown_by_hand() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60]], dtype=torch.float32)
    side = torch.tensor([0, 1, 0, 1])  # the second gives way to the first; the third is of the first's side
    assert _suppress_across(boxes, side, 0.5).tolist() == [0, 2, 3]
    assert _suppress_across(boxes[:0], side[:0], 0.5).tolist() == []


def test_bf16_losses_are_close_to_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model = engine(precision=precision).train()
        torch.manual_seed(0)
        result, _ = model.training_step(images((64, 64)), [ONE], keep_labels)
        assert all(value.dtype == torch.float32 for value in result.values())
        losses.append(float(sum(result.values()).detach()))  # type: ignore[union-attr]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_frozen_stages_do_not_move() -> None:
    path_free = engine()
    body = path_free.features.body
    torch.manual_seed(0)
    frozen = OpenWorldRCNN(SPACE, ResNet(TINY), options(freeze_stages=2)).train()
    frozen.features.body.load_state_dict(body.state_dict())
    before = {key: value.clone() for key, value in frozen.features.body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1)
    losses, _ = frozen.training_step(images((64, 64)), [ONE], keep_labels)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    after = frozen.features.body.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert not any(key.startswith(("conv1", "bn1", "layer1")) for key in moved)
    assert any(key.startswith("layer4") for key in moved)


# -- handover ---------------------------------------------------------------------------------------------------------


def written_backbone(path: Path, arch: ArchOptions = TINY) -> Path:
    torch.manual_seed(5)
    network = ResNet(arch)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    file = path / "weights.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
    return file


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_a_backbone_arrives_in_the_detector(tmp_path: Path, norm: str, neck: str) -> None:
    file = written_backbone(tmp_path)
    model = build_engine(SPACE, options(norm=norm, neck=neck, arch=None), file)
    tensors = safetensors.torch.load_file(file)
    body = model.features.body.state_dict()
    assert all(torch.equal(body[key], tensors[key]) for key in body)


def test_a_stride_in_the_other_convolution_is_noticed(tmp_path: Path) -> None:
    """The keys and shapes are the same; only the features tell."""
    arch = ArchOptions(arch="resnet50", width=0.125)
    file = written_backbone(tmp_path, arch)
    from openworld.engines.weights import load_backbone
    from ssl_backbones.handover import load_backbone_file

    backbone = load_backbone_file(file, arch=arch)
    wrong = OpenWorldRCNN(SPACE, ResNet(replace(arch, stride_in_1x1=True)), options(arch=arch))
    with pytest.raises(HandoverError, match="C3"):
        load_backbone(wrong, backbone)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        build_engine(SPACE, options(arch=ArchOptions(arch="resnet50", width=0.125)), written_backbone(tmp_path))


def test_frozen_norm_on_random_weights_is_refused() -> None:
    with pytest.raises(HandoverError, match="random weights"):
        engine(norm="frozen")
