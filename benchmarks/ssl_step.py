"""Pretraining steps of SimCLR, MoCo v2 and BYOL, and the making of their views, beside lightly's building blocks.

    python benchmarks/ssl_step.py [--methods simclr moco_v2 byol] [--batch 64] [--size 64] [--steps 5] [--repeats 5]
                                  [--threads 2] [--device cpu] [--json FILE]

A step is views in memory -> loss -> gradients -> optimiser -> teacher, with a ResNet-18 of full width, the same heads,
batch, threads and optimiser (SGD with momentum). The peer is put together as lightly's own examples put it: its losses,
heads and momentum update, and torchvision's ResNet in its usual memory layout. Ours are the package's methods as
pretrain() runs them, in its default layout (fp32: the like-for-like pair, whose ratio counts), in the peer's layout,
and in bf16. A second pair makes two views of JPEG files, decoded each time: lightly.transforms, and ours; ours
also from the cache of decoded images, which is what pretrain() uses where a set fits into memory.

All variants take turns in every round, so that a slow moment of the machine affects all of them; figures are medians of
the rounds with the smallest and the largest, and ratios are medians of the rounds' own ratios. Before anything is
timed, the peer's and our loss on the same projections are compared, and the run fails if they differ.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from openworld.runtime.seeding import generator
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.images import ImagePool, read_image
from ssl_backbones.losses import byol_regression, info_nce, nt_xent
from ssl_backbones.method import Batch
from ssl_backbones.methods.byol_options import BYOLOptions
from ssl_backbones.methods.moco_options import MoCoV2Options
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.simclr_options import SimCLROptions
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import sample_view, view_recipes

QUEUE = 4096
TEMPERATURE = 0.2
MOMENTUM = 0.99
LR = 0.01
SOURCE_SIDE = 256
"""Side of the JPEG files in pixels."""


# -- the peer ----------------------------------------------------------------------------------------------------------


class Peer(nn.Module):
    """Networks and step of one method from lightly's parts, as in lightly's examples."""

    def __init__(self, method: str) -> None:
        super().__init__()
        import torchvision
        from lightly.loss import NegativeCosineSimilarity, NTXentLoss
        from lightly.models.modules import (
            BYOLPredictionHead,
            BYOLProjectionHead,
            MoCoProjectionHead,
            SimCLRProjectionHead,
        )
        from lightly.models.utils import deactivate_requires_grad

        self.method = method
        self.backbone = nn.Sequential(*list(torchvision.models.resnet18().children())[:-1])
        if method == "simclr":
            self.head: nn.Module = SimCLRProjectionHead(512, 512, 128)
            self.criterion: Any = NTXentLoss(temperature=TEMPERATURE)
        elif method == "moco_v2":
            self.head = MoCoProjectionHead(512, 512, 128)
            self.criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(QUEUE, 128))
        else:
            self.head = BYOLProjectionHead(512, 1024, 256)
            self.predictor = BYOLPredictionHead(256, 1024, 256)
            self.criterion = NegativeCosineSimilarity()
        if method != "simclr":
            self.slow_backbone, self.slow_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
            deactivate_requires_grad(self.slow_backbone)
            deactivate_requires_grad(self.slow_head)

    def fast(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.backbone(x).flatten(start_dim=1))
        return z

    def slow(self, x: Tensor) -> Tensor:
        z: Tensor = self.slow_head(self.slow_backbone(x).flatten(start_dim=1))
        return z.detach()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        from lightly.models.utils import update_momentum

        if self.method == "simclr":
            loss: Tensor = self.criterion(self.fast(x0), self.fast(x1))
            return loss
        update_momentum(self.backbone, self.slow_backbone, m=MOMENTUM)
        update_momentum(self.head, self.slow_head, m=MOMENTUM)
        if self.method == "moco_v2":
            loss = self.criterion(self.fast(x0), self.slow(x1))
            return loss
        p0, z0 = self.predictor(self.fast(x0)), self.slow(x0)
        p1, z1 = self.predictor(self.fast(x1)), self.slow(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))  # type: ignore[no-any-return]


def peer_step(method: str, views: list[Tensor], device: torch.device) -> Callable[[], float]:
    torch.manual_seed(0)
    model = Peer(method).to(device).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=LR, momentum=0.9, weight_decay=1e-4
    )

    def step() -> float:
        loss = model.loss(*(view.to(device) for view in views))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


# -- ours --------------------------------------------------------------------------------------------------------------


METHODS: dict[str, MethodOptions] = {
    "simclr": SimCLROptions(temperature=TEMPERATURE, projection_dim=128),
    "moco_v2": MoCoV2Options(temperature=TEMPERATURE, projection_dim=128, queue_size=QUEUE, teacher_momentum=MOMENTUM),
    "byol": BYOLOptions(projection_dim=256, hidden_dim=1024, teacher_momentum=MOMENTUM),
}


def options_of(method: str, size: int, **more: Any) -> PretrainOptions:
    return PretrainOptions(
        method=METHODS[method],
        views=method,  # type: ignore[arg-type]
        arch=ResNetOptions(name="resnet18", width=1.0),
        view_size=size,
        steps=10**6,
        warmup=0,
        lr=LR,
        **more,
    )


def our_step(
    method: str, views: list[Tensor], device: torch.device, size: int, *, precision: str, channels_last: bool
) -> Callable[[], float]:
    """The body of pretrain()'s loop, without log and checkpoints."""
    torch.manual_seed(0)
    options = options_of(method, size, precision=precision, channels_last=channels_last)
    model = options.method.implementation()(options)
    model.allocate(len(views[0]))
    model = model.to(device).train()
    model = model.to(memory_format=torch.channels_last) if channels_last else model
    optimizer = build_optimizer(model.param_groups(options.weight_decay), options)
    batch, done = Batch(views, torch.arange(len(views[0]))), 0

    def step() -> float:
        nonlocal done
        set_learning_rates(optimizer, done, options)
        model.before_step(done, options.steps)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = model.loss(batch.to(device, channels_last=channels_last))
        loss.backward()
        value = loss.item()
        model.after_backward(done, options.steps)
        optimizer.step()
        model.after_step(done, options.steps)
        done += 1
        return value

    return step


# -- views -------------------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int) -> list[Path]:
    """Smooth random JPEG files."""
    random, paths = np.random.default_rng(0), []
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        small.resize((SOURCE_SIDE, SOURCE_SIDE), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def view_makers(method: str, paths: list[Path], size: int) -> dict[str, Callable[[], Any]]:
    """Two views of every file, by variant."""
    from lightly.transforms import BYOLTransform, MoCoV2Transform, SimCLRTransform
    from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform

    if method == "byol":
        transform: Any = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
    else:
        transform = {"simclr": SimCLRTransform, "moco_v2": MoCoV2Transform}[method](input_size=size)
    recipes = view_recipes(method)
    pool = ImagePool(paths, side=2 * size, cache_megabytes=10**4)

    def lightly() -> Any:
        made = []
        for path in paths:
            with Image.open(path) as opened:
                made.append(transform(opened.convert("RGB")))
        return [torch.stack(group) for group in zip(*made, strict=True)]

    def ours(image_of: Callable[[int], Tensor]) -> Any:
        made = []
        for position in range(len(paths)):
            source, image = generator(0, "view", position), image_of(position)
            made.append([sample_view(image, recipe, size, source) for recipe in recipes])
        return [torch.stack(group) for group in zip(*made, strict=True)]

    return {
        "lightly": lightly,
        "ours": lambda: ours(lambda position: read_image(paths[position], 2 * size)),
        "ours, cached": lambda: ours(pool.__getitem__),
    }


# -- measuring ---------------------------------------------------------------------------------------------------------


def in_turn(
    variants: dict[str, Callable[[], Any]], images: int, steps: int, repeats: int, sync: Callable[[], None]
) -> dict[str, list[float]]:
    """Return the images per second of each variant in each round, after one round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, step in variants.items():
            sync()
            started = time.perf_counter()
            for _ in range(steps):
                step()
            sync()
            if turn:
                rates[name].append(images * steps / (time.perf_counter() - started))
    return rates


def summary(rates: dict[str, list[float]], peer: str) -> dict[str, Any]:
    """Medians, ends, and the median of the rounds' ratios to the peer."""
    table = {}
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values, rates[peer], strict=True)]
        table[name] = {
            "images_per_second": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "ratio": statistics.median(ratios),
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
        }
    return table


def check_losses() -> None:
    """Check that the peer's loss and this package's loss agree on the same projections."""
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss

    x, y, queue = (torch.randn(16, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(16, 32))
    criterion.memory_bank.bank = nn.functional.normalize(queue, dim=1)
    criterion.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    half = NegativeCosineSimilarity()
    pairs = {
        "simclr": (nt_xent(x, y, TEMPERATURE), NTXentLoss(temperature=TEMPERATURE)(x, y)),
        "moco_v2": (info_nce(x, y, nn.functional.normalize(queue, dim=1), TEMPERATURE), criterion(x, y)),
        "byol": (byol_regression(x, y), 2 + 2 * half(x, y)),
    }
    for name, (ours, theirs) in pairs.items():
        if not math.isclose(float(ours), float(theirs), rel_tol=1e-5):
            raise SystemExit(f"{name}: loss {float(ours)} here, {float(theirs)} by lightly")


def show(title: str, table: dict[str, Any]) -> None:
    print(title)
    for name, row in table.items():
        print(
            f"  {name:<22} {row['images_per_second']:8.1f} images/s ({row['least']:.1f} to {row['most']:.1f})   "
            f"{row['ratio']:.2f} x ({row['ratio_least']:.2f} to {row['ratio_most']:.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--size", type=int, default=64, help="side of a view in pixels")
    parser.add_argument("--steps", type=int, default=5, help="timed together in a round")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", type=str, default="cpu")
    parser.add_argument("--json", type=str, default=None, help="file for the numbers")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    check_losses()
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    source = torch.Generator().manual_seed(0)
    views = [torch.randn(asked.batch, 3, asked.size, asked.size, generator=source) for _ in range(2)]
    found: dict[str, Any] = {"settings": vars(asked), "torch": torch.__version__, "steps": {}, "views": {}}
    for method in asked.methods:
        variants = {
            "lightly": peer_step(method, views, device),
            "ours": our_step(method, views, device, asked.size, precision="fp32", channels_last=True),
            "ours, contiguous": our_step(method, views, device, asked.size, precision="fp32", channels_last=False),
            "ours, bf16": our_step(method, views, device, asked.size, precision="bf16", channels_last=True),
        }
        table = summary(in_turn(variants, asked.batch, asked.steps, asked.repeats, sync), "lightly")
        found["steps"][method] = table
        show(f"{method}: {asked.batch} images per step, two views of {asked.size} pixels, {device}", table)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), min(asked.batch, 64))
        for method in asked.methods:
            makers = view_makers(method, paths, asked.size)
            table = summary(in_turn(makers, len(paths), 1, asked.repeats, lambda: None), "lightly")
            found["views"][method] = table
            show(
                f"{method}: two views of {asked.size} pixels of JPEG files of {SOURCE_SIDE} pixels, one process", table
            )
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
