"""Semi-supervised probe: the whole network fine-tuned on a small part of the labels (in the papers 1 % and 10 %).

Shapes: N images, B images per step, C classes.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode

from openworld.errors import ConfigError
from openworld.runtime.optim import warmup_cosine
from openworld.runtime.seeding import generator
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.options import Preprocess
from ssl_backbones.probes.features import features_of
from ssl_backbones.probes.frozen import held_out
from ssl_backbones.probes.knn import majority_share
from ssl_backbones.probes.labelled import LabelledSet
from ssl_backbones.probes.linear import LinearRow, topk_accuracy
from ssl_backbones.views import ViewRecipe, evaluation_view, sample_view


@dataclass(frozen=True, kw_only=True)
class SemiProtocol:
    """How a network is fine-tuned. The defaults are SwAV's for 1 % (appendix A.4, eval_semisup.py and its README)."""

    share: float = 0.01
    """Part of each class's labels."""
    lr: float = 0.02
    """Learning rate of the trunk at ``batch_size``. With fewer images than that, both rates are scaled down
    linearly (our choice: the papers have no such sets)."""
    head_lr: float = 5.0
    """Learning rate of the classifier."""
    batch_size: int = 256
    """Images per step."""
    epochs: int = 20
    """Passes over the images."""
    milestones: tuple[int, ...] | None = (12, 16)
    """Epochs from which both rates are multiplied by ``gamma``; None: half a cosine to 0 over all steps."""
    gamma: float = 0.2
    weight_decay: float = 0.0
    nesterov: bool = False
    """Nesterov's momentum; both are 0.9."""


PROTOCOLS: dict[str, SemiProtocol] = {
    "swav_1": SemiProtocol(),
    "swav_10": SemiProtocol(share=0.1, lr=0.01, head_lr=0.2),
    "barlow_twins_1": SemiProtocol(lr=0.005, head_lr=0.5, milestones=None),
    "simclr_1": SemiProtocol(lr=0.8, head_lr=0.8, batch_size=4096, epochs=60, milestones=None, nesterov=True),
    "simclr_10": SemiProtocol(
        share=0.1, lr=0.8, head_lr=0.8, batch_size=4096, epochs=30, milestones=None, nesterov=True
    ),
}
"""By paper and per cent of the labels.

SwAV: appendix A.4 and eval_semisup.py. Barlow Twins: the command in the README (1 % alone; until June 2021 it had 0.002
for the trunk) and evaluate.py, where the cosine moves once per epoch, and not once per step as here. SimCLR: appendix
B.5, and the cosine of the authors' model_util.py. They start the classifier from random numbers, see
:func:`fine_tune`."""


class SemiTable(TypedDict):
    """Accuracies after fine-tuning: from the pretrained weights, and from random ones of the same network."""

    trained: LinearRow
    untrained: LinearRow
    chance: float
    labels: int
    test_samples: int


def class_balanced_subset(labels_N: Tensor, share: float, seed: int) -> list[int]:
    """Choose ``share`` of the samples of each class, at least one; the same positions for the same seed.

    A larger share of the same seed contains the smaller one.

    Raises:
        ConfigError: ``share`` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}", where="semi-supervised probe", remedy="give a part above 0, at most 1")
    chosen: list[int] = []
    for label in labels_N.unique().tolist():
        rows = torch.where(labels_N == label)[0]
        order = torch.randperm(len(rows), generator=generator(seed, "subset", label))
        chosen += rows[order[: max(1, round(share * len(rows)))]].tolist()
    return sorted(chosen)


def semi_supervised_table(
    network: Backbone,
    data: LabelledSet,
    preprocess: Preprocess,
    *,
    size: int,
    protocol: SemiProtocol,
    seed: int,
    device: torch.device | str = "cpu",
) -> SemiTable:
    """Fine-tune the network, and one of random weights, on a part of the labels, and test both on the held-out images.

    Args:
        network: pretrained; it is not changed.
        preprocess: of the network, for RGB in [0, 1].
        size: side of the images in pixels.

    Raises:
        DataError: no image is held out.
        ConfigError: see :func:`class_balanced_subset`.
    """
    data = held_out(data)
    subset = class_balanced_subset(data.labels[data.train], protocol.share, seed)
    positions = [data.train[row] for row in subset]
    torch.manual_seed(seed)
    untrained = network.options.build()

    def row(start: Backbone) -> LinearRow:
        tuned, head = fine_tune(
            start, data, positions, preprocess, size=size, protocol=protocol, seed=seed, device=device
        )
        features = features_of(tuned, lambda at: evaluation_view(data.image(at), size, preprocess), data.test, device)
        logits, labels = head.cpu()(features), data.labels[data.test]
        return {"top1": topk_accuracy(logits, labels, 1), "top5": topk_accuracy(logits, labels, 5)}

    return {
        "trained": row(network),
        "untrained": row(untrained),
        "chance": majority_share(data.labels[data.test]),
        "labels": len(positions),
        "test_samples": len(data.test),
    }


def fine_tune(
    network: Backbone,
    data: LabelledSet,
    positions: list[int],
    preprocess: Preprocess,
    *,
    size: int,
    protocol: SemiProtocol,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Backbone, nn.Linear]:
    """Train a copy of the network and a new classifier on some images, cropped and flipped at random.

    The classifier starts at zero (our choice; the authors start from small random numbers). Batch norms are in training
    mode.

    Args:
        positions: of the images in ``data``, at least one.

    Returns:
        The fine-tuned network and the classifier (D → C) on its features.
    """
    network = copy.deepcopy(network).to(device).train()
    head = nn.Linear(network.dim, 1 + int(data.labels.max())).to(device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    batch = min(protocol.batch_size, len(positions))
    scale = batch / protocol.batch_size
    rates = (protocol.lr * scale, protocol.head_lr * scale)
    optimizer = torch.optim.SGD(
        [{"params": network.parameters()}, {"params": head.parameters()}],
        lr=rates[0],
        momentum=0.9,
        weight_decay=protocol.weight_decay,
        nesterov=protocol.nesterov,
    )
    recipe = _crop_and_flip(preprocess)
    steps_per_epoch = math.ceil(len(positions) / batch)
    for epoch in range(protocol.epochs):
        order = torch.randperm(len(positions), generator=generator(seed, "fine-tune", epoch))
        for number, rows in enumerate(order.split(batch)):
            if len(rows) == 1 and len(positions) > 1:
                continue  # a single image has no batch statistics
            step = epoch * steps_per_epoch + number
            factor = _factor(protocol, epoch, step, protocol.epochs * steps_per_epoch)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            chosen = [positions[row] for row in rows.tolist()]
            views = torch.stack(
                [sample_view(data.image(at), recipe, size, generator(seed, "fine-tune", epoch, at)) for at in chosen]
            )
            loss = F.cross_entropy(head(network(views.to(device))), data.labels[chosen].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network, head


def _factor(protocol: SemiProtocol, epoch: int, step: int, steps: int) -> float:
    if protocol.milestones is None:
        return warmup_cosine(step, steps=steps, warmup=0, lr=1.0)
    return protocol.gamma ** sum(epoch >= milestone for milestone in protocol.milestones)


def _crop_and_flip(preprocess: Preprocess) -> ViewRecipe:
    """Views of all published protocols, with the preprocessing of the pretraining."""
    mean, std = preprocess["mean"], preprocess["std"]
    return ViewRecipe(
        scale=(0.08, 1.0),
        jitter=(0.0, 0.0, 0.0, 0.0),
        interpolation=InterpolationMode.BILINEAR,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        jitter_p=0.0,
        gray_p=0.0,
        blur_p=0.0,
    )
