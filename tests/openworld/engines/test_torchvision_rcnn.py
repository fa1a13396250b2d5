"""The engine: its losses against slow loops and stock torchvision, its proposals, its growth, its handover."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as box_ops

from openworld.detector import Detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.sampling import sample_regions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.engines.weights import build_engine
from openworld.errors import CheckpointError, ConfigError, HandoverError
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.methods.ore import clustering, method
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions, UnknownLabelOptions
from openworld.structures import Regions, Target
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from tests.regions import training_step

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)
FIXED = LabelSpace.of(SPACE.tasks, 1, "fixed")  # cat 0, dog 1, car 2 (not taught yet), unknown 3, background 4
HEADS = pytest.mark.parametrize("head", ["growing", "fixed"])
KINDS = pytest.mark.parametrize("box_regression", ["agnostic", "per_class"])
TINY = ResNetOptions(name="resnet18", width=0.125)


def options(**changes: object) -> ModelOptions:
    base = ModelOptions(arch=TINY, fpn_channels=16, roi=RoiOptions(hidden_dim=24, sampled_regions=16))
    return replace(base, **changes)  # type: ignore[arg-type]


def engine(seed: int = 0, **changes: object) -> OpenWorldRCNN:
    torch.manual_seed(seed)
    chosen = options(**changes)
    return build_engine(SPACE if chosen.head == "growing" else FIXED, chosen, None)


def roi(**changes: object) -> RoiOptions:
    return replace(RoiOptions(hidden_dim=24, sampled_regions=16), **changes)  # type: ignore[arg-type]


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
    losses, regions = training_step(model, images((64, 64), (48, 80)), targets)
    assert set(losses) == {"objectness", "rpn_box", "classification", "box"}
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    if all(len(item) == 0 for item in targets):
        assert float(losses["box"].detach()) == 0.0
        assert float(losses["rpn_box"].detach()) == 0.0
        assert bool((regions.labels == SPACE.background).all())
    assert regions.features is not None and regions.features.shape == (len(regions), model.feature_dim)
    assert regions.logits is not None and regions.logits.shape == (len(regions), SPACE.num_rows)


def test_the_box_head_starts_from_caffe2_xavier() -> None:
    """Uniform, of variance 1 / inputs, without bias: what detectron2's FastRCNNConvFCHead starts from."""
    head = engine().features.head
    for layer in (head.fc6, head.fc7):
        bound = (3 / layer.in_features) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        torch.testing.assert_close(layer.weight.var(), torch.tensor(1 / layer.in_features), rtol=0.15, atol=0)
        assert not layer.bias.any()


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


def test_proposal_losses_teach_their_head_in_bf16() -> None:
    """Autocast keeps the weights that it has cast, and those of the pass that proposes have no gradient."""
    gradients = []
    for precision in ("fp32", "bf16"):
        model = engine(precision=precision, rpn=RpnOptions(sampled_anchors=10**6)).train()
        batch = model.normalise(images((64, 64)))
        with model.autocast():
            losses = model.rpn(batch, list(model.features(batch.tensors).values()), [ONE])[2]
            assert all(loss.dtype == torch.float32 for loss in losses.values())
        gradients.append(torch.autograd.grad(sum(losses.values()), list(model.rpn.parameters())))  # type: ignore[arg-type]
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.15 * exact.norm()


@pytest.mark.parametrize("side", [(64, 64), (50, 70)])
def test_images_as_bytes_are_those_as_fractions(side: tuple[int, int]) -> None:
    """What a float image of so many 255ths gives, bit for bit."""
    pixels = torch.randint(0, 256, (3, *side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = engine()
    found = model.normalise([pixels, pixels.flip(2)])
    expected = model.normalise([pixels.float() / 255, (pixels.float() / 255).flip(2)])
    assert found.image_sizes == expected.image_sizes and torch.equal(found.tensors, expected.tensors)


def test_proposals_equal_stock_torchvision() -> None:
    """Same weights, same image: boxes of our RPN are those of torchvision's, in the same order."""
    torch.manual_seed(0)
    stock = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=128, max_size=128, rpn_post_nms_top_n_test=60
    ).eval()
    with torch.no_grad():  # logits that neither tie nor saturate the stock code's sigmoid
        maps, _ = stock.rpn.head(list(stock.backbone(stock.transform(images((128, 128)))[0].tensors).values()))
        stock.rpn.head.cls_logits.weight.mul_(2 / torch.cat([scores.flatten() for scores in maps]).std())
    arch = ResNetOptions(name="resnet50", width=1.0)
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
        stock.rpn.min_size = ours.options.rpn.min_side_px
        expected, _ = stock.rpn(transformed, stock_levels)
    assert len(boxes[0]) == len(expected[0]) > 10
    torch.testing.assert_close(boxes[0], expected[0], atol=1e-3, rtol=1e-4)
    assert bool((objectness[0].diff() <= 0).all())


def test_unknown_regions_stay_out_of_the_box_loss() -> None:
    model = engine().train()

    class AllBackgroundUnknown(OpenWorldMethod):
        labels_among = "all_proposals"

        def relabel(self, regions: Regions, image_sizes: Tensor) -> Regions:
            return replace(regions, labels=torch.full_like(regions.labels, SPACE.unknown))

    torch.manual_seed(0)
    losses, regions = training_step(model, images((64, 64)), [EMPTY], AllBackgroundUnknown(SPACE))
    assert bool((regions.labels == SPACE.unknown).all()) and len(regions) > 0
    assert float(losses["box"].detach()) == 0.0


def test_every_unknown_region_is_sampled() -> None:
    model = engine().train()
    space = model.space
    count = 60
    labels = torch.full((count,), space.background)
    labels[[3, 50, 59]] = space.unknown
    labels[:3] = 0
    regions = Regions(
        torch.rand(count, 4), torch.zeros(count, dtype=torch.int64), torch.zeros(count), torch.zeros(count), labels
    )
    chosen = sample_regions(regions, 1, space, model.options.roi)
    assert {3, 50, 59, 0, 1, 2} <= set(chosen.tolist())
    assert len(chosen) == model.options.roi.sampled_regions
    assert len(set(chosen.tolist())) == len(chosen)


def test_an_image_without_regions_has_none_in_the_sample() -> None:
    labels = torch.tensor([0, SPACE.background, 1])
    regions = Regions(torch.zeros(3, 4), torch.tensor([0, 0, 2]), torch.zeros(3), torch.zeros(3), labels)
    assert sorted(sample_regions(regions, 4, SPACE, roi()).tolist()) == [0, 1, 2]
    nothing = regions[torch.zeros(0, dtype=torch.int64)]
    chosen = sample_regions(nothing, 4, SPACE, roi())
    assert chosen.shape == (0,) and chosen.dtype == torch.int64


def test_growth_keeps_old_rows_bit_for_bit() -> None:
    model = engine()
    weight, bias = model.cls_score.weight.clone(), model.cls_score.bias.clone()
    later = SPACE.at(2)
    model.grow(later)
    assert model.cls_score.weight.shape[0] == later.num_rows == 5
    for old, new in [(0, 0), (1, 1), (SPACE.unknown, later.unknown), (SPACE.background, later.background)]:
        assert torch.equal(model.cls_score.weight[new], weight[old])
        assert torch.equal(model.cls_score.bias[new], bias[old])
    training_step(model.train(), images((64, 64)), [target((8, 8, 40, 44), labels=(2,))])


def test_batched_detection_equals_one_image_at_a_time() -> None:
    model = engine(roi=RoiOptions(hidden_dim=24, score_threshold=0.0)).eval()
    detector = Detector(model, Ore(SPACE, model.feature_dim))
    pictures = images((64, 64), (64, 64), (64, 64))
    together = detector.detect(pictures)
    for picture, found in zip(pictures, together, strict=True):
        alone = detector.detect([picture])[0]
        assert len(alone) == len(found) > 0
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(alone.scores, found.scores, atol=1e-4, rtol=1e-4)
        assert bool((found.scores.diff() <= 0).all())
        assert bool((found.labels != SPACE.background).all())


def test_no_proposals_gives_no_detections() -> None:
    model = engine(rpn=RpnOptions(test_proposals=0)).eval()
    (found,) = Detector(model, Ore(SPACE, model.feature_dim)).detect(images((64, 64)))
    assert len(found) == 0 and set(found.extras) == {"energy"}


# -- layouts of the head, and what the reference code does otherwise --------------------------------------------------


@HEADS
@KINDS
@pytest.mark.parametrize("targets", [[ONE, EMPTY], [EMPTY, EMPTY]])
def test_every_head_trains(head: str, box_regression: str, targets: list[Target]) -> None:
    """With unknowns in the box loss too, images without annotated boxes give finite losses."""
    model = engine(head=head, roi=roi(box_regression=box_regression, unknown_box_loss="included")).train()
    ore = Ore(model.space, model.feature_dim, ClusteringOptions(start_step=0), UnknownLabelOptions(per_image=2))
    losses = Detector(model, ore).losses(images((64, 64), (48, 80)), targets, 0)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(
        bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters() if parameter.grad is not None
    )
    columns = model.space.background if box_regression == "per_class" else 1
    assert model.bbox_pred.weight.shape[0] == 4 * columns
    if head == "fixed":
        assert model.cls_score.weight.grad is not None and not model.cls_score.weight.grad[2].any()  # car
        assert bool(model.cls_score.weight.grad[[0, 1, 3, 4]].abs().sum(1).all())


@HEADS
@KINDS
def test_losses_equal_a_slow_loop(head: str, box_regression: str) -> None:
    """The losses of the reference code's options, region by region from what the engine returns."""
    changed = roi(box_regression=box_regression, unknown_box_loss="included", smooth_l1_beta=0.0)
    model = engine(head=head, roi=changed).train()
    space = model.space
    ore = Ore(space, model.feature_dim, unknown_labels=UnknownLabelOptions(per_image=3, among="sampled"))
    torch.manual_seed(0)
    losses, regions = training_step(model, images((64, 64)), [ONE], ore)
    assert regions.features is not None and regions.logits is not None
    assert {1, space.unknown, space.background} == set(regions.labels.tolist())
    deltas = model.bbox_pred(regions.features).detach().reshape(len(regions), -1, 4)
    rows = [*space.detected_rows, space.background]
    classification, box = 0.0, 0.0
    for index, label in enumerate(regions.labels.tolist()):
        given = regions.logits[index].detach()
        classification += float(torch.logsumexp(given[rows], 0) - given[label])
        if label != space.background:
            a, g = regions.boxes[index], ONE.boxes[0]
            size, wanted = a[2:] - a[:2], g[2:] - g[:2]
            move = 10 * ((g[2:] + g[:2]) / 2 - (a[2:] + a[:2]) / 2) / size
            own = deltas[index, label if box_regression == "per_class" else 0]
            box += float((own - torch.cat([move, 5 * torch.log(wanted / size)])).abs().sum())
    assert float(losses["classification"].detach()) == pytest.approx(classification / len(regions), rel=1e-5)
    assert float(losses["box"].detach()) == pytest.approx(box / len(regions), rel=1e-5)


def test_unknowns_are_labelled_among_all_proposals_or_among_the_sampled_ones() -> None:
    model = engine().train()
    proposed = model.propose(images((64, 64)))[0].boxes
    total = len(proposed[0]) + 1  # with the annotated box
    for among, wanted in (("all_proposals", total), ("sampled", model.options.roi.sampled_regions)):
        ore = Ore(SPACE, model.feature_dim, unknown_labels=UnknownLabelOptions(among=among))  # type: ignore[arg-type]
        with patch.object(ore, "relabel", wraps=ore.relabel) as relabel:
            _, regions = training_step(model, images((64, 64)), [ONE], ore)
        assert [len(call.args[0]) for call in relabel.call_args_list] == [wanted]
        assert len(regions) == model.options.roi.sampled_regions < total
    off = Ore(SPACE, model.feature_dim, unknown_labels=UnknownLabelOptions(enabled=False))
    _, regions = training_step(model, images((64, 64)), [ONE], off)
    assert not bool((regions.labels == SPACE.unknown).any())


@HEADS
@pytest.mark.parametrize(("share", "known", "unknown"), [("separate", 4, 4), ("shared", 0, 0)])
def test_shares_of_the_sample(head: str, share: str, known: int, unknown: int) -> None:
    """A quarter of 16 is 4: of known and of unknown regions each, or of both together."""
    model = engine(head=head, roi=roi(unknown_share=share))
    space = model.space
    labels = torch.full((80,), space.background)
    labels[:10], labels[10:20] = 1, space.unknown
    none = torch.zeros(80)
    regions = Regions(torch.zeros(80, 4), none.long(), none, none, labels)
    drawn: set[int] = set()
    for seed in range(20):
        torch.manual_seed(seed)
        chosen = sample_regions(regions, 1, space, model.options.roi)
        taken = labels[chosen]
        assert len(set(chosen.tolist())) == 16
        foreground = int((taken == 1).sum()), int((taken == space.unknown).sum())
        assert foreground == (known, unknown) if share == "separate" else sum(foreground) == 4
        drawn |= set(chosen.tolist())
    assert len(drawn) > 70
    few = regions[torch.tensor([0, 1, 15, 70])]  # less than its share: all
    assert sorted(sample_regions(few, 1, space, model.options.roi).tolist()) == [0, 1, 2, 3]


def test_annotated_boxes_are_regions_or_not() -> None:
    for append, wanted in ((True, 1), (False, 0)):
        model = engine(roi=roi(append_annotated=append, sampled_regions=10**6)).train()
        _, regions = training_step(model, images((64, 64)), [ONE])
        assert int((regions.boxes == ONE.boxes[0]).all(1).sum()) == wanted


@KINDS
def test_growth_of_a_fixed_head_moves_nothing(box_regression: str) -> None:
    model = engine(head="fixed", roi=roi(box_regression=box_regression)).train()
    ore = Ore(FIXED, model.feature_dim, ClusteringOptions(start_step=0))
    detector = Detector(model, ore)
    detector.losses(images((64, 64)), [ONE], 0)
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    generator = torch.get_rng_state()
    model.grow(FIXED.at(2))
    ore.grow(FIXED.at(2))
    assert torch.equal(torch.get_rng_state(), generator)
    after = detector.state_dict()
    torch.testing.assert_close(dict(after), before, rtol=0, atol=0, equal_nan=True)
    losses = detector.losses(images((64, 64)), [target((8, 8, 40, 44), labels=(2,))], 1)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    losses["classification"].backward()  # type: ignore[no-untyped-call]
    assert model.cls_score.weight.grad is not None and bool(model.cls_score.weight.grad[2].any())


def test_growth_keeps_the_deltas_of_each_class() -> None:
    model = engine(roi=roi(box_regression="per_class"))
    torch.nn.init.normal_(model.bbox_pred.bias)
    weight = model.bbox_pred.weight.detach().clone().reshape(3, 4, -1)
    bias = model.bbox_pred.bias.detach().clone().reshape(3, 4)
    model.grow(SPACE.at(2))
    assert model.bbox_pred.weight.shape == (16, model.feature_dim)
    for new, old in enumerate([0, 1, SPACE.unknown, SPACE.unknown]):  # car starts from unknown's
        assert torch.equal(model.bbox_pred.weight.reshape(4, 4, -1)[new], weight[old])
        assert torch.equal(model.bbox_pred.bias.reshape(4, 4)[new], bias[old])
    training_step(model.train(), images((64, 64)), [target((8, 8, 40, 44), labels=(2,))])


@KINDS
@pytest.mark.parametrize("mask_future", ["training", "always", "never"])
def test_a_class_that_no_task_has_taught_is_never_detected(mask_future: str, box_regression: str) -> None:
    """Its row has the largest logit everywhere; it takes probability from the others unless it is masked."""
    chosen = roi(score_threshold=0.0, mask_future=mask_future, box_regression=box_regression)
    model = engine(head="fixed", roi=chosen).eval()
    torch.nn.init.zeros_(model.cls_score.weight)
    with torch.no_grad():
        model.cls_score.bias.copy_(torch.tensor([1.0, 0.0, 5.0, 0.5, 0.0]))
    ore = Ore(FIXED, model.feature_dim)
    (found,) = Detector(model, ore).detect(images((64, 64)))
    assert len(found) > 0 and set(found.labels.tolist()) <= {0, 1, 3} and set(found.known_labels.tolist()) == {0}
    rows = [0, 1, 3, 4] if mask_future == "always" else [0, 1, 2, 3, 4]
    shares = model.cls_score.bias.detach()[rows].softmax(0)
    torch.testing.assert_close(found.scores[0], shares[0])


def test_future_classes_are_in_the_loss_only_where_they_are_not_masked() -> None:
    values = {}
    for mask_future in ("training", "always", "never"):
        model = engine(head="fixed", roi=roi(mask_future=mask_future)).train()
        torch.nn.init.zeros_(model.cls_score.weight)
        torch.manual_seed(0)
        losses, _ = training_step(model, images((64, 64)), [EMPTY])
        values[mask_future] = float(losses["classification"].detach())
    wanted = {"training": 4, "always": 4, "never": 5}
    assert values == pytest.approx({name: float(torch.tensor(rows).log()) for name, rows in wanted.items()})


def test_each_class_is_detected_with_its_own_box() -> None:
    """Agnostic deltas repeated for every class give the detections of a class-agnostic head."""
    chosen = roi(score_threshold=0.0, cross_nms_iou=1.0, detections_per_image=10**6)
    shared = engine(head="fixed", roi=chosen).eval()
    model = engine(head="fixed", roi=replace(chosen, box_regression="per_class")).eval()
    state = dict(shared.state_dict())
    state |= {f"bbox_pred.{part}": torch.cat([state[f"bbox_pred.{part}"]] * 4) for part in ("weight", "bias")}
    model.load_state_dict(state)
    ore = Ore(FIXED, model.feature_dim)
    (wanted,), (found,) = (Detector(each, ore).detect(images((64, 64))) for each in (shared, model))
    torch.testing.assert_close(found.boxes, wanted.boxes)
    assert torch.equal(found.labels, wanted.labels) and len(found) > 0
    with torch.no_grad():  # unknown's deltas alone move: its boxes do, the others do not
        model.bbox_pred.bias.reshape(4, 4)[FIXED.unknown] += torch.tensor([5.0, 0, 0, 0])
    (moved,) = Detector(model, ore).detect(images((64, 64)))
    known, still_known = FIXED.is_known(found.labels), FIXED.is_known(moved.labels)
    assert torch.equal(moved.boxes[still_known], found.boxes[known]) and bool(known.any())
    assert not {tuple(box) for box in moved.boxes[~still_known].tolist()} & {
        tuple(box) for box in found.boxes[~known].tolist()
    }


def reference_model() -> ModelOptions:
    """Faster R-CNN R50-C4 as configs/Base-RCNN-C4-OWOD.yaml and the defaults of the reference code say, but narrow."""
    return ModelOptions(
        arch=replace(TINY, stride_in_1x1=True, name="resnet50"),
        neck="c4",
        head="fixed",
        rpn=RpnOptions(
            anchor_sizes=[32, 64, 128, 256, 512],
            train_candidates=12000,
            train_proposals=2000,
            test_candidates=6000,
            test_proposals=1000,
            min_side_px=0,
            smooth_l1_beta=0,
        ),
        roi=RoiOptions(
            sampled_regions=512,
            positive_fraction=0.25,
            unknown_share="shared",
            unknown_box_loss="included",
            box_regression="per_class",
            smooth_l1_beta=0,
            sampling_ratio=0,
            aligned=True,
            min_side_px=0,
            nms_iou=0.4,
            cross_nms_iou=1.0,
            detections_per_image=50,
        ),
    )


def test_the_configuration_of_the_reference_code_can_be_said() -> None:
    torch.manual_seed(0)
    model = build_engine(FIXED, reference_model(), None).train()
    assert model.rpn.anchors.num_anchors_per_location() == [15]
    unknown = UnknownLabelOptions(among="sampled", foreground="logit_minus_one")
    ore = Ore(FIXED, model.feature_dim, ClusteringOptions(start_step=0), unknown)
    losses = Detector(model, ore).losses(images((128, 128)), [ONE], 0)
    assert all(bool(torch.isfinite(value)) for value in losses.values())
    assert model.bbox_pred.weight.shape == (4 * 4, model.feature_dim) and model.cls_score.weight.shape[0] == 5
    labels = torch.full((2100,), FIXED.background)
    labels[:300] = 1
    none = torch.zeros(2100)
    regions = Regions(torch.zeros(2100, 4), none.long(), none, none, labels)
    sampled = labels[sample_regions(regions, 1, FIXED, model.options.roi)]
    assert int((sampled == 1).sum()) == 128 and len(sampled) == 512
    (found,) = Detector(model, ore).eval().detect(images((128, 128)))
    assert len(found) <= 50


def test_a_head_of_another_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.head is 'growing' and the label space has the fixed layout"):
        build_engine(FIXED, options(), None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("unknown_share", "both"),
        ("unknown_box_loss", "on"),
        ("box_regression", "all"),
        ("mask_future", "test"),
        ("smooth_l1_beta", -1.0),
        ("min_side_px", float("nan")),
        ("sampling_ratio", -1),
    ],
)
def test_box_head_options_out_of_range(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^RoiOptions\.{field} is"):
        roi(**{field: value})
    with pytest.raises(ConfigError, match=r"^ModelOptions\.head is"):
        options(head="round")
    with pytest.raises(ConfigError, match=r"^RpnOptions\.smooth_l1_beta is"):
        RpnOptions(smooth_l1_beta=-1.0)


# -- numbers, frozen parts --------------------------------------------------------------------------------------------


def test_bf16_losses_are_close_to_fp32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        model = engine(precision=precision).train()
        torch.manual_seed(0)
        result, _ = training_step(model, images((64, 64)), [ONE])
        assert all(value.dtype == torch.float32 for value in result.values())
        losses.append(float(sum(result.values()).detach()))  # type: ignore[union-attr]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_bf16_is_for_convolutions_and_linear_layers_only(neck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes, scores, losses, distances and energies are float32, whatever the network computes in."""
    seen: dict[str, set[torch.dtype]] = {}

    def watch(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: object, **kwargs: object) -> object:
            tensors = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]
            seen.setdefault(name, set()).update(value.dtype for value in tensors if value.is_floating_point())
            assert not torch.is_autocast_enabled("cpu"), name
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for owner, names in (
        (box_ops, ("batched_nms", "box_iou", "clip_boxes_to_image")),
        (functional, ("smooth_l1_loss", "binary_cross_entropy_with_logits", "cross_entropy")),
        (clustering, ("minkowski_distances",)),
        (method, ("free_energy",)),
        (BoxCoder, ("decode_single", "encode_single")),
    ):
        for name in names:
            watch(owner, name)
    model = engine(neck=neck, precision="bf16")
    levels: list[Tensor] = []
    model.features.register_forward_hook(lambda _module, _inputs, output: levels.extend(output.values()))
    ore = Ore(SPACE, model.feature_dim, ClusteringOptions(start_step=0))
    losses = Detector(model, ore).train().losses(images((64, 64)), [ONE], 0)
    Detector(model, ore).eval().detect(images((64, 64)))
    assert {level.dtype for level in levels} == {torch.bfloat16}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert len(seen) == 10
    assert set.union(*seen.values()) == {torch.float32}


def test_frozen_stages_do_not_move() -> None:
    path_free = engine()
    body = path_free.features.body
    torch.manual_seed(0)
    frozen = OpenWorldRCNN(SPACE, ResNet(TINY), options(freeze_stages=2)).train()
    frozen.features.body.load_state_dict(body.state_dict())
    before = {key: value.clone() for key, value in frozen.features.body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1)
    losses, _ = training_step(frozen, images((64, 64)), [ONE])
    sum(losses.values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    after = frozen.features.body.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert not any(key.startswith(("conv1", "bn1", "layer1")) for key in moved)
    assert any(key.startswith("layer4") for key in moved)


# -- handover ---------------------------------------------------------------------------------------------------------


def written_backbone(path: Path, arch: ResNetOptions = TINY) -> Path:
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
    arch = ResNetOptions(name="resnet50", width=0.125)
    file = written_backbone(tmp_path, arch)
    from openworld.engines.weights import load_backbone
    from ssl_backbones.handover import load_backbone_file

    backbone = load_backbone_file(file, arch=arch)
    wrong = OpenWorldRCNN(SPACE, ResNet(replace(arch, stride_in_1x1=True)), options(arch=arch))
    with pytest.raises(HandoverError, match="C3"):
        load_backbone(wrong, backbone)


def test_a_network_of_bgr_in_255_is_turned_and_one_of_lab_is_refused(tmp_path: Path) -> None:
    from openworld.engines.weights import load_backbone
    from ssl_backbones.handover import load_backbone_file

    caffe: Preprocess = {"order": "BGR", "range": 255.0, "mean": [103.5, 116.3, 123.7], "std": [57.4, 57.1, 58.4]}
    backbone = load_backbone_file(written_backbone(tmp_path), preprocess=caffe)
    model = OpenWorldRCNN(SPACE, ResNet(TINY), options())
    assert max(load_backbone(model, backbone).values()) < 1e-4
    torch.testing.assert_close(model.pixel_mean.flatten() * 255, torch.tensor([123.7, 116.3, 103.5]))
    assert torch.equal(model.features.body.conv1.weight, backbone.state_dict["conv1.weight"].flip(1))
    with pytest.raises(HandoverError, match="L\\*a\\*b"):
        load_backbone(model, backbone._replace(preprocess={**caffe, "order": "LAB"}))


def test_layer_norm_is_refused() -> None:
    from openworld.engines.weights import load_backbone
    from ssl_backbones.handover import BackboneFile

    arch = replace(TINY, norm="layer")
    network = ResNet(arch)
    preprocess: Preprocess = {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    backbone = BackboneFile(arch, preprocess, network.state_dict(), "card", ())
    with pytest.raises(HandoverError, match="layer norm"):
        load_backbone(OpenWorldRCNN(SPACE, ResNet(TINY), options()), backbone)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        build_engine(SPACE, options(arch=ResNetOptions(name="resnet50", width=0.125)), written_backbone(tmp_path))


def test_frozen_norm_on_random_weights_is_refused() -> None:
    with pytest.raises(HandoverError, match="random weights"):
        engine(norm="frozen")
