"""A training step and an inference of Faster R-CNN R50-FPN: this package beside torchvision's own, in the same run.

    python benchmarks/train_step.py [--sizes 320 480] [--threads 2] [--repeats 5] [--device cpu] [--json FILE]

Both have ResNet-50 with frozen batch norm and two frozen stages, a pyramid of four levels of 256 channels, a box head
of 1024 with box deltas for each class, 2,000 proposals per image in training and 1,000 at inference, 512 regions per
image in the losses, and the same weights: random ones, whose frozen statistics are those of one batch. (torchvision's
fifth level, which has a few cells, is taken off.) A step is forward, backward and SGD on images that lie ready.
If detectron2 is installed, its R50-FPN is timed too, at the same sizes, with its own weights.

In every round each variant runs once, so that a slow moment of the machine affects all; the figures are medians
over the rounds with the smallest and the largest. Before that the float32 losses of both are compared on the same
sampled regions, and the run fails if they differ by more than 1e-4. The share of the peak is the arithmetic of
torchvision's step (convolutions and matrix products, counted) over the time, beside a large matrix product's in the
same number format.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from openworld.detector import Detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions, UnknownLabelOptions
from openworld.structures import Regions, Target
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet

KNOWN = 20
LABELS = LabelSpace.of([[f"class {number}" for number in range(KNOWN)]], task=1)
ANCHORS = (32.0, 64.0, 128.0, 256.0)
OBJECTS = 7
Batch = tuple[list[Tensor], list[Target]]


# -- the models -------------------------------------------------------------------------------------------------------


def stock_model(side: int, regions: int) -> FasterRCNN:
    """torchvision's, as ``fasterrcnn_resnet50_fpn`` builds it for pretrained weights, without the fifth level."""
    torch.manual_seed(0)
    backbone = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), trainable_layers=3)
    backbone.fpn.extra_blocks = None
    anchors = AnchorGenerator(tuple((size,) for size in ANCHORS), ((0.5, 1.0, 2.0),) * len(ANCHORS))
    model = FasterRCNN(
        backbone,
        num_classes=LABELS.num_rows,
        min_size=side,
        max_size=side,
        rpn_anchor_generator=anchors,
        box_batch_size_per_image=regions,
    )
    model.rpn.min_size = 1.0  # ours; no proposal that matters is smaller
    return model


@torch.no_grad()
def set_frozen_statistics(model: FasterRCNN, images: list[Tensor]) -> None:
    """The statistics that batch norm would have: random weights behind frozen norms explode without them."""

    def measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))  # type: ignore[operator, union-attr]
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))  # type: ignore[operator, union-attr]

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    model.backbone(model.transform(images)[0].tensors)
    for hook in hooks:
        hook.remove()


def own_model(stock: FasterRCNN, regions: int, precision: str) -> OpenWorldRCNN:
    """This package's, with the weights of torchvision's. Its class 1 is our row 0, its background our last row."""
    options = ModelOptions(
        fpn_channels=256,
        norm="frozen",
        freeze_stages=2,
        precision=precision,  # type: ignore[arg-type]
        rpn=RpnOptions(
            anchor_sizes=list(ANCHORS),
            train_candidates=2000,
            train_proposals=2000,
            test_candidates=1000,
            test_proposals=1000,
        ),
        roi=RoiOptions(
            sampled_regions=regions,
            unknown_share="shared",
            box_regression="per_class",
            hidden_dim=1024,
            canonical_size_px=224,
            sampling_ratio=2,
            cross_nms_iou=1,
        ),
    )
    model = OpenWorldRCNN(LABELS, ResNet(ResNetOptions(name="resnet50", width=1.0, norm="frozen")), options)
    model.features.body.load_state_dict(stock.backbone.body.state_dict())
    model.features.fpn.load_state_dict(stock.backbone.fpn.state_dict())  # type: ignore[union-attr]
    model.features.head.load_state_dict(stock.roi_heads.box_head.state_dict())  # type: ignore[union-attr]
    model.rpn.head.load_state_dict(stock.rpn.head.state_dict())
    predictor = stock.roi_heads.box_predictor
    with torch.no_grad():
        model.cls_score.weight.copy_(predictor.cls_score.weight.roll(-1, 0))
        model.cls_score.bias.copy_(predictor.cls_score.bias.roll(-1, 0))
        model.bbox_pred.weight.copy_(predictor.bbox_pred.weight[4:])
        model.bbox_pred.bias.copy_(predictor.bbox_pred.bias[4:])
    return model.to(memory_format=torch.channels_last)


def make_batch(side: int, images: int, device: torch.device) -> Batch:
    """Smooth noise with objects anywhere."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(images, 3, side // 16, side // 16, generator=generator)
    pixels = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    corners = torch.rand(images, OBJECTS, 2, generator=generator) * side / 2
    sizes = side / 10 + torch.rand(images, OBJECTS, 2, generator=generator) * side / 3
    boxes = torch.cat([corners, corners + sizes], 2)
    labels = torch.randint(0, KNOWN, (images, OBJECTS), generator=generator)
    targets = [Target(boxes[number], labels[number], number).to(device) for number in range(images)]
    return [image.to(device) for image in pixels], targets


def stock_targets(targets: Sequence[Target]) -> list[dict[str, Tensor]]:
    return [{"boxes": target.boxes, "labels": target.labels + 1} for target in targets]


def nothing_unknown(regions: Regions, sizes: Tensor) -> Tensor:
    return regions.labels


# -- the same loss ----------------------------------------------------------------------------------------------------


def compare_losses(side: int, images: int, device: torch.device) -> dict[str, list[float]]:
    """Compute each float32 loss of both models: stock, ours. All proposals are sampled, so that no draw differs.

    Raises:
        SystemExit: the sums differ by more than 1e-4 of the loss.
    """
    stock = stock_model(side, regions=512).to(device).train()
    batch, targets = make_batch(side, images, device)
    set_frozen_statistics(stock, batch)
    for model_part, name in ((stock.rpn, "_pre_nms_top_n"), (stock.rpn, "_post_nms_top_n")):
        setattr(model_part, name, {"training": 400, "testing": 400})
    stock.roi_heads.fg_bg_sampler.positive_fraction = 1.0
    ours = sampling_all(own_model(stock, 512, "fp32")).to(device).train()
    for rpn in (stock.rpn, ours.rpn):  # the anchors are drawn alike
        rpn.register_forward_pre_hook(lambda *_: torch.manual_seed(2) and None)
    theirs = stock(batch, stock_targets(targets))
    found, _ = ours.training_step(batch, targets, nothing_unknown)
    names = {
        "loss_classifier": "classification",
        "loss_box_reg": "box",
        "loss_objectness": "objectness",
        "loss_rpn_box_reg": "rpn_box",
    }
    losses = {own: [float(theirs[name].detach()), float(found[own].detach())] for name, own in names.items()}
    return checked_losses(losses)


def sampling_all(model: OpenWorldRCNN) -> OpenWorldRCNN:
    """Reduce the number of proposals so that all of them are sampled, none by chance."""
    model.options.rpn.train_candidates = model.options.rpn.train_proposals = 400
    model.options.roi.positive_fraction = 1.0
    return model


def checked_losses(losses: dict[str, list[float]]) -> dict[str, list[float]]:
    """Pairs of losses with their sum.

    Raises:
        SystemExit: the sums differ by more than 1e-4 of the loss.
    """
    losses["sum"] = [sum(pair[0] for pair in losses.values()), sum(pair[1] for pair in losses.values())]
    difference = abs(losses["sum"][0] - losses["sum"][1]) / losses["sum"][0]
    if not difference <= 1e-4:
        raise SystemExit(f"the losses differ: {losses}")
    return losses


def print_losses(title: str, losses: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for name, (theirs, own) in losses.items():
        print(f"  {name:16}{theirs:.6f}  {own:.6f}  {abs(theirs - own) / max(abs(theirs), 1e-9):.1e}")


# -- what is timed ----------------------------------------------------------------------------------------------------


def optimiser_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)


def training(model: nn.Module, losses_of: Callable[[], dict[str, Tensor]]) -> Callable[[], Tensor]:
    """Forward, backward and SGD with a rate so small that the work does not change from round to round."""
    model.train()
    optimizer = optimiser_of(model)

    def step() -> Tensor:
        total = torch.stack(list(losses_of().values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return total.detach()

    return step


def training_of(model: Any, batch: list[Tensor], targets: list[Target], ore: bool) -> Callable[[], Tensor]:
    """A training step of an engine, with ORE or without."""
    if not ore:
        return training(model, lambda: model.training_step(batch, targets, nothing_unknown)[0])
    unknown = UnknownLabelOptions(per_image=1, max_iou=0.3)
    core = Ore(LABELS, model.feature_dim, ClusteringOptions(start_step=0), unknown).to(batch[0].device)
    detector = Detector(model, core)
    count = iter(range(10**9))
    return training(detector, lambda: detector.losses(batch, targets, next(count)))


def inference_of(model: Any, batch: list[Tensor]) -> Callable[[], Any]:
    """Detections of an engine, each of which is decided known or unknown."""
    decide = Ore(LABELS, model.feature_dim).to(batch[0].device).decide

    def detect() -> Any:
        model.eval()
        found = model.detect(batch, decide)
        model.train()
        return found

    return detect


def variants(side: int, options: argparse.Namespace, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the timed work by name: training steps, which return their loss, and inferences."""
    batch, targets = make_batch(side, options.batch, device)
    reference = stock_model(side, options.regions).to(device)
    set_frozen_statistics(reference, batch)
    train: dict[str, Any] = {}
    infer: dict[str, Any] = {}

    @contextmanager
    def precision(bf16: bool) -> Iterator[None]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            yield

    def add_stock(name: str, bf16: bool, memory_format: torch.memory_format) -> None:
        model = stock_model(side, options.regions).to(device)
        model.load_state_dict(reference.state_dict())
        model = model.to(memory_format=memory_format)
        goals = stock_targets(targets)

        def losses() -> dict[str, Tensor]:
            with precision(bf16):
                return model(batch, goals)

        @torch.no_grad()
        def detect() -> Any:
            model.eval()
            with precision(bf16):
                found = model(batch)
            model.train()
            return found

        train[name], infer[name] = training(model, losses), detect

    def add_own(name: str, precision_name: str, ore: bool) -> None:
        model = own_model(reference, options.regions, precision_name).to(device)
        train[name] = training_of(model, batch, targets, ore)
        if not ore:  # what decides known or unknown is in both
            infer[name] = inference_of(model, batch)

    add_stock("torchvision fp32", False, torch.contiguous_format)
    if options.all:
        add_stock("torchvision bf16", True, torch.contiguous_format)
        add_stock("torchvision bf16 channels_last", True, torch.channels_last)
    add_own("ours fp32", "fp32", False)
    add_own("ours bf16", "bf16", False)
    add_own("ours fp32 + ORE", "fp32", True)
    add_own("ours bf16 + ORE", "bf16", True)
    if importlib.util.find_spec("detectron2") is not None:
        step, detect = detectron2_variant(side, options, batch, targets, device)
        train["detectron2 fp32"], infer["detectron2 fp32"] = step, detect
    return train, infer


def detectron2_variant(
    side: int, options: argparse.Namespace, batch: list[Tensor], targets: Sequence[Target], device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    """detectron2's R50-FPN as its zoo has it, with random weights."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = get_cfg()
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000, 2000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST, cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000, 1000
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = options.regions
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = KNOWN + 1
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 2, 7
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, module in model.named_modules():  # the residual branches start at zero, or random weights explode
        if name.endswith("conv3.norm"):
            module.weight.zero_()
    inputs = []
    for image, target in zip(batch, targets, strict=True):
        objects = Instances((side, side), gt_boxes=Boxes(target.boxes), gt_classes=target.labels)
        inputs.append({"image": image * 255, "instances": objects, "height": side, "width": side})

    def losses() -> dict[str, Tensor]:
        with EventStorage():
            found: dict[str, Tensor] = model(inputs)
        return found

    @torch.no_grad()
    def detect() -> Any:
        model.eval()
        found = model(inputs)
        model.train()
        return found

    return training(model, losses), detect


# -- timing -----------------------------------------------------------------------------------------------------------


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: dict[str, Callable[[], Any]], rounds: int, inner: int, device: torch.device) -> dict[str, Any]:
    """Time one call of each in seconds, over rounds in which each runs once; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for name, run in work.items():
            wait_for(device)
            started = time.perf_counter()
            for _ in range(inner):
                result = run()
            wait_for(device)
            if number:
                seconds[name].append((time.perf_counter() - started) / inner)
            if isinstance(result, Tensor):
                losses[name] = float(result)
                if not losses[name] < float("inf"):
                    raise SystemExit(f"{name}: the loss is {losses[name]}")
    summary: dict[str, Any] = {}
    for name, values in seconds.items():
        summary[name] = {"median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}
        if name in losses:
            summary[name]["loss"] = losses[name]
    return summary


def peak_flops(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Return the operations per second of a large matrix product, the best of several runs."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        wait_for(device)
        started = time.perf_counter()
        left @ right
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def counted_flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def table(title: str, seconds: dict[str, Any], images: int, flops: dict[str, int], peaks: dict[str, float]) -> None:
    """Print, and add to ``seconds``, what follows from the times; ``flops`` by variant."""
    first = seconds["torchvision fp32"]["median_s"]
    print(f"\n{title}")
    print(f"{'':34}{'median s':>10}{'smallest':>10}{'largest':>10}{'images/s':>10}{'x':>7}{'GFLOP':>8}{'of peak':>9}")
    for name, values in seconds.items():
        median, peak = values["median_s"], peaks["bf16" if "bf16" in name else "fp32"]
        values["images_per_s"], values["speedup"] = images / median, first / median
        values["flops"], values["share_of_peak"] = flops[name], flops[name] / median / peak
        print(
            f"{name:34}{median:10.4f}{values['min_s']:10.4f}{values['max_s']:10.4f}{images / median:10.2f}"
            f"{first / median:7.2f}{flops[name] / 1e9:8.0f}{values['share_of_peak']:9.1%}"
        )


class Bench:
    """The command line, the machine, and what is measured on it."""

    def __init__(self, description: str | None) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--sizes", type=int, nargs="+", default=[320, 480], help="sides of the images, pixels")
        parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the arithmetic on a CPU")
        parser.add_argument("--repeats", type=int, default=5, help="rounds that are timed, after one that is not")
        parser.add_argument("--inner", type=int, default=0, help="calls per timing; 0 means 1 on a CPU and 20 on a GPU")
        parser.add_argument("--batch", type=int, default=2, help="images")
        parser.add_argument("--regions", type=int, default=512, help="sampled regions per image")
        parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
        parser.add_argument("--json", type=Path, default=None, help="file for the numbers")
        self.parser = parser

    def start(self) -> argparse.Namespace:
        """Parse the command line, and measure what the machine can do."""
        self.options = options = self.parser.parse_args()
        torch.set_num_threads(options.threads)
        self.device = device = torch.device(options.device)
        on_gpu = device.type == "cuda"
        self.inner = options.inner or (20 if on_gpu else 1)
        where = torch.cuda.get_device_name(device) if on_gpu else f"{options.threads} of {os.cpu_count()} CPUs"
        print(f"{where}; torch {torch.__version__}, torchvision {torchvision.__version__}")
        self.peaks = {"fp32": peak_flops(device, torch.float32), "bf16": peak_flops(device, torch.bfloat16)}
        rates = ", ".join(f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in self.peaks.items())
        print(f"a large matrix product: {rates}")
        self.result: dict[str, Any] = {"where": where, "torch": torch.__version__, "peak_flops": self.peaks}
        self.result |= {"sizes": {}, "batch": options.batch, "regions": options.regions, "rounds": options.repeats}
        return options

    def measure(self, side: int, train: dict[str, Any], infer: dict[str, Any], **more: Any) -> None:
        """Time and print; ``train`` has a variant "… + ORE" beside one without."""
        images, rounds = self.options.batch, self.options.repeats
        seconds: dict[str, dict[str, Any]] = {}
        for title, work in (("training step", train), ("inference", infer)):
            flops = {name: counted_flops(run) for name, run in work.items()}
            seconds[title] = timed(work, rounds, self.inner, self.device)
            table(f"{side} px, {title} of {images} images", seconds[title], images, flops, self.peaks)
        steps = seconds["training step"]
        ore = {
            name.removesuffix(" + ORE"): values["median_s"] / steps[name.removesuffix(" + ORE")]["median_s"] - 1
            for name, values in steps.items()
            if name.endswith(" + ORE")
        }
        print("\nORE adds " + ", ".join(f"{share:.1%} to {name}" for name, share in ore.items()))
        self.result["sizes"][side] = {**more, "train": steps, "inference": seconds["inference"], "ore_adds": ore}

    def write(self) -> None:
        """Write the numbers to the file of --json, if given."""
        if self.options.json:
            self.options.json.write_text(json.dumps(self.result, indent=1) + "\n")


def main() -> None:
    bench = Bench(__doc__)
    bench.parser.add_argument("--all", action="store_true", help="torchvision in bf16 too")
    options = bench.start()
    for side in options.sizes:
        losses = compare_losses(side, options.batch, bench.device)
        print_losses(f"{side} px, the same sampled regions: loss of torchvision and ours", losses)
        bench.measure(side, *variants(side, options, bench.device), losses=losses)
    bench.write()


if __name__ == "__main__":
    main()
