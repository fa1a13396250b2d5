"""Time that ORE adds to a training step, at the sizes of its paper, and time of the reference's form of the loss.

    python benchmarks/ore_overhead.py [--steps 7] [--threads 2] [--json FILE]

The plain step is this package's Faster R-CNN without ORE: ResNet-50 with frozen batch norm and two frozen stages, FPN
of 256 channels, a box head of 1024, two images of 320 x 320 pixels, 512 regions per image, forward, backward, SGD.
ORE's parts are labelling unknowns on the proposals of that step, remembering its 1024 regions, and the clustering loss
forward and backward, on features of 2048 numbers (after a ReLU) with a prototype for each of 82 rows. In every round
the plain step and all parts are timed once, so that a slow moment of the machine affects all of them.

The loss is timed in three situations: no other prototype within the margin, so that only a region's own one has a
gradient; every prototype within it; and the first task of four, in which 60 classes are absent and no other prototype
is within the margin. The peer, whose cost is that of the first in all three, compares with all 82 prototypes by
torch.cdist of order 10 and finds each pair's sign in Python. The run fails if its loss or gradient differs from ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions
from openworld.structures import Regions, Target
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet

LABELS = LabelSpace.of([[f"class {number}" for number in range(80)]], task=1)
DIM = 2048
SAMPLED = 512
IMAGES = 2
SIDE_PX = 320
FOREGROUND = (130, 258)
"""Foreground regions of two images: a common number, and the most that the sampling allows with one unknown each."""

SITUATIONS = ("none within", "all within", "60 absent")
TAUGHT = 20
"""Classes of the first task."""

MODES = {
    "paper": ClusteringOptions(start_step=0),
    "reference": ClusteringOptions(
        start_step=0, distance_order=10, margin=2, absent="zero", reduction="all", background_prototype=True
    ),
}


def plain_step() -> tuple[Callable[[], None], list[Regions]]:
    """Make a step of the detector without ORE; it stores the proposals that ORE would label in the list."""
    torch.manual_seed(0)
    options = ModelOptions(
        neck="fpn",
        fpn_channels=256,
        norm="frozen",
        freeze_stages=2,
        rpn=RpnOptions(anchor_sizes=[32.0, 64.0, 128.0, 256.0], train_candidates=2000, train_proposals=2000),
        roi=RoiOptions(sampled_regions=SAMPLED, hidden_dim=1024, canonical_size_px=224, sampling_ratio=2),
    )
    arch = ResNetOptions(name="resnet50", width=1.0, norm="frozen", zero_init_residual=True)
    engine = OpenWorldRCNN(LABELS, ResNet(arch), options).to(memory_format=torch.channels_last).train()
    trained = [parameter for parameter in engine.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)
    images = [torch.rand(3, SIDE_PX, SIDE_PX) for _ in range(IMAGES)]
    corners = torch.rand(IMAGES, 7, 2) * SIDE_PX / 2
    boxes = torch.cat([corners, corners + 40 + torch.rand(IMAGES, 7, 2) * SIDE_PX / 3], 2)
    targets = [Target(each, torch.arange(7), number) for number, each in enumerate(boxes)]
    proposed: list[Regions] = []

    def nothing_unknown(regions: Regions, sizes: Tensor) -> Tensor:
        proposed[:] = [regions]
        return regions.labels

    def step() -> None:
        losses, _ = engine.training_step(images, targets, nothing_unknown)
        optimizer.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        optimizer.step()
        if not bool(torch.isfinite(total)):
            raise SystemExit("the plain step has no finite loss")

    return step, proposed


def batch(foreground: int, situation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the sampled regions, their labels, and 82 prototypes; those of absent classes are zero."""
    generator = torch.Generator().manual_seed(foreground)
    # By their distances, about 2.5 and 25 (order 2) and about 0.4 and 4 (order 10); the margins are 10 and 2.
    scale = 0.1 if situation == "all within" else 1.0
    features = scale * torch.randn(IMAGES * SAMPLED, DIM, generator=generator).relu()
    prototypes = scale * torch.rand(LABELS.num_rows, DIM, generator=generator)
    labels = torch.full((len(features),), LABELS.background)
    labels[:foreground] = torch.randint(0, LABELS.background, (foreground,), generator=generator)
    if situation == "60 absent":
        labels[:foreground] %= TAUGHT
        prototypes[TAUGHT : LABELS.unknown] = 0
    return features, labels, prototypes


def ore_of(mode: str, prototypes: Tensor) -> Ore:
    """ORE with a full memory; the classes whose prototypes are zero are absent."""
    ore = Ore(LABELS, DIM, MODES[mode])
    rows = len(ore.prototypes.present)
    ore.prototypes.vectors.copy_(prototypes[:rows])
    ore.prototypes.present.copy_(prototypes[:rows].any(1))
    every = torch.arange(rows).repeat(ore.clustering.items_per_class)
    ore.remember(torch.randn(len(every), DIM).relu(), every)
    return ore


def peer_loss(features: Tensor, labels: Tensor, prototypes: Tensor, background: int) -> Tensor:
    """Order 10 by cdist, the pairs' signs one by one in Python, then the hinge embedding loss of torch."""
    foreground = labels != background
    distances = torch.cdist(features[foreground], prototypes, p=10.0)
    signs = []
    for label in labels[foreground]:
        for row in range(len(prototypes)):
            if label == row:
                signs.append(1)
            else:
                signs.append(-1)
    targets = torch.tensor(signs).reshape(-1, len(prototypes))
    return 0.1 * functional.hinge_embedding_loss(distances, targets, margin=2.0)


def parts(proposed: list[Regions]) -> dict[str, Callable[[], Any]]:
    """Return the timed parts besides the plain step, by name."""
    found: dict[str, Callable[[], Any]] = {}
    labeller = Ore(LABELS, DIM)
    found["label_unknowns"] = lambda: labeller.label_unknowns(proposed[0])

    def loss(ore: Ore, features: Tensor, labels: Tensor) -> Callable[[], None]:
        def run() -> None:
            leaf = features.requires_grad_()
            leaf.grad = None
            ore.clustering_loss(leaf, labels, step=1).backward()  # type: ignore[no-untyped-call]

        return run

    def peer(features: Tensor, labels: Tensor, prototypes: Tensor) -> Callable[[], None]:
        def run() -> None:
            leaf = features.requires_grad_()
            leaf.grad = None
            peer_loss(leaf, labels, prototypes, LABELS.background).backward()  # type: ignore[no-untyped-call]

        return run

    for foreground in FOREGROUND:
        for situation in SITUATIONS:
            features, labels, prototypes = batch(foreground, situation)
            for mode in MODES:
                ore = ore_of(mode, prototypes)
                found[f"{mode}/loss/{foreground}/{situation}"] = loss(ore, features.clone(), labels)
                if situation == SITUATIONS[0]:
                    found[f"{mode}/remember/{foreground}"] = partial(ore.remember, features, labels)
            if situation == SITUATIONS[0]:
                found[f"peer/loss/{foreground}"] = peer(features.clone(), labels, prototypes)
            same(ore_of("reference", prototypes), features, labels, prototypes)
    return found


def same(ore: Ore, features: Tensor, labels: Tensor, prototypes: Tensor) -> None:
    """Stop unless ORE in the reference's form and the peer agree on loss and gradient."""
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    value, wanted = ore.clustering_loss(ours, labels, step=1), peer_loss(theirs, labels, prototypes, LABELS.background)
    torch.stack([value, wanted]).sum().backward()
    torch.testing.assert_close((value, ours.grad), (wanted, theirs.grad), rtol=1e-5, atol=1e-7)


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median_s": statistics.median(seconds), "min_s": min(seconds), "max_s": max(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7, help="rounds that are timed, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the arithmetic")
    parser.add_argument("--json", type=Path, default=None, help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    step, proposed = plain_step()
    step()
    work = {"plain step": step, **parts(proposed)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(options.steps + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)

    timed = {name: spread(values) for name, values in seconds.items()}
    plain = timed["plain step"]["median_s"]
    print(f"{options.threads} threads, {options.steps} rounds; torch {torch.__version__}; {os.cpu_count()} CPUs")
    print(f"{len(proposed[0])} proposals are labelled; {IMAGES} x {SAMPLED} regions, {DIM}-d, {LABELS.num_rows} rows\n")
    print(f"{'':34}{'median':>10}{'smallest':>11}{'largest':>11}   share of a plain step")
    for name, values in timed.items():
        numbers = f"{values['median_s']:10.4f}{values['min_s']:11.4f}{values['max_s']:11.4f}"
        print(f"{name:34}{numbers}   {values['median_s'] / plain:8.2%}")
    print("\nORE in all (label_unknowns + remember + loss), share of a plain step:")
    shares: dict[str, float] = {}
    for mode in MODES:
        for foreground in FOREGROUND:
            for situation in SITUATIONS:
                names = ("label_unknowns", f"{mode}/remember/{foreground}", f"{mode}/loss/{foreground}/{situation}")
                shares[f"{mode}/{foreground}/{situation}"] = sum(timed[name]["median_s"] for name in names) / plain
    for name, share in shares.items():
        print(f"{name:34}{share:8.2%}")
    if options.json:
        summary = {
            "threads": options.threads,
            "rounds": options.steps,
            "torch": torch.__version__,
            "seconds": timed,
            "ore_share_of_plain_step": shares,
        }
        options.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
