"""What contrastive learning leaves out: the feature-suppression experiments of Chen, Luo and Li (NeurIPS 2021).

Features compete: what is easiest to tell pictures apart by is learned, the rest may be suppressed. RandBits adds
channels of random bits that both views share; MultiDigits puts several digits into a picture. Each experiment trains
small networks of its own with NT-Xent, asks a linear probe for the digit, and asks the same network before training,
fed the same pictures: without that row, what the input alone makes hard looks like suppression.

Shapes: N pictures, B of a step, C channels, S pixels per side, K random bits.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from openworld.runtime.runlog import StepBar, progress_bar
from openworld.runtime.seeding import generator
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.heads import mlp
from ssl_backbones.losses import nt_xent
from ssl_backbones.probes.digits import CLASSES, draw_digits, draw_many
from ssl_backbones.probes.features import with_statistics
from ssl_backbones.probes.knn import majority_share
from ssl_backbones.probes.linear import fit_ridge, topk_accuracy


@dataclass(frozen=True, kw_only=True)
class SuppressionOptions:
    """One experiment. The defaults take a CPU core about twenty seconds for each network of RandBits; MultiDigits takes
    longer, its pictures have sixteen times the area."""

    temperatures: tuple[float, ...] = (0.05, 0.2)
    """Of NT-Xent, each trained by itself."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights, order and pictures, each trained by itself."""
    train_samples: int = 1500
    """Pictures that the networks and the linear probe learn from."""
    test_samples: int = 500
    """Pictures that the probe is tested on."""
    epochs: int = 20
    """Passes over the training pictures (paper, RandBits on MNIST: 10 over 60,000)."""
    batch_size: int = 128
    """Pictures per step (paper: 1000)."""
    lr: float = 1e-3
    """Learning rate of Adam, which falls linearly to 0."""
    digit_size: int = 28
    """Side of a digit in pixels."""
    canvas: int = 112
    """MultiDigits: side of a picture in pixels."""
    width: float = 0.25
    """MultiDigits: of the ResNet-18, 1 in the paper."""


class SuppressionRow(TypedDict):
    """Accuracies of the linear probe, mean over seeds; ``spread`` is the sample standard deviation, or None."""

    setting: int
    temperature: float
    trained: float
    trained_spread: float | None
    untrained: float
    untrained_spread: float | None
    chance: float


def rand_bits(bits: Sequence[int], options: SuppressionOptions) -> list[SuppressionRow]:
    """Digits with ``bits`` channels of random bits each, the same in both views of a picture.

    The network has three convolutions (32, 64, 64 channels, stride 2, with batch norm) and a layer of 128; the
    projector is 256-64. Views are crops of half the area or more; bits are not cropped.

    Args:
        bits: numbers of bits, each an experiment of its own.

    Raises:
        ConfigError: a negative number of bits.
    """
    if any(number < 0 for number in bits):
        raise ConfigError(f"bits are {list(bits)}", where="rand_bits", remedy="give numbers from 0")

    def pictures(setting: int, seed: int) -> tuple[Tensor, Tensor]:
        source = generator(seed, "digits")
        labels = torch.randint(CLASSES, (options.train_samples + options.test_samples,), generator=source)
        return _with_bits(draw_digits(labels, options.digit_size, source), setting, source), labels

    def network(setting: int) -> nn.Module:
        return _ConvNet(1 + setting, options.digit_size)

    with progress_bar("rand_bits", _networks(bits, options)) as bar:
        return [row for number in bits for row in _rows(number, pictures, None, network, options, bar)]


def multi_digits(numbers: Sequence[int], options: SuppressionOptions) -> list[SuppressionRow]:
    """Pictures with several digits to learn from, and the linear probe on pictures with one (paper, section 4.2).

    Args:
        numbers: of digits in a picture, each an experiment of its own; they lie in different cells.

    Raises:
        ConfigError: a number below 1, or more digits than the canvas has cells for.
    """
    room = (options.canvas // options.digit_size) ** 2
    if any(not 1 <= number <= room for number in numbers):
        raise ConfigError(f"digits are {list(numbers)}", where="multi_digits", remedy=f"give numbers from 1 to {room}")

    def pictures(setting: int, seed: int) -> tuple[Tensor, Tensor]:
        source = generator(seed, "digits", setting)
        labels = torch.randint(CLASSES, (options.train_samples, setting), generator=source)
        return draw_many(labels, options.canvas, options.digit_size, source), labels[:, 0]

    def single(seed: int) -> tuple[Tensor, Tensor]:
        source = generator(seed, "single digits")
        labels = torch.randint(CLASSES, (options.train_samples + options.test_samples, 1), generator=source)
        return draw_many(labels, options.canvas, options.digit_size, source), labels[:, 0]

    def network(setting: int) -> nn.Module:
        net = ResNetOptions(name="resnet18", width=options.width).build()
        return nn.Sequential(_Colour(), net)

    with progress_bar("multi_digits", _networks(numbers, options)) as bar:
        return [row for number in numbers for row in _rows(number, pictures, single, network, options, bar)]


Labelled = tuple[Tensor, Tensor]
"""Pictures (N, C, S, S) and the digit of each (N,)."""


def _networks(settings: Sequence[int], options: SuppressionOptions) -> int:
    return len(settings) * len(options.seeds) * len(options.temperatures)


def _rows(
    setting: int,
    pictures: Callable[[int, int], Labelled],
    single: Callable[[int], Labelled] | None,
    network: Callable[[int], nn.Module],
    options: SuppressionOptions,
    bar: StepBar,
) -> list[SuppressionRow]:
    """All temperatures of one setting. ``single`` makes other pictures for the probe than the network learns from."""
    found: dict[float, list[tuple[float, float, float]]] = {temperature: [] for temperature in options.temperatures}
    for seed in options.seeds:
        images, labels = pictures(setting, seed)
        asked, asked_labels = single(seed) if single else (images, labels)
        torch.manual_seed(seed)
        start = network(setting)
        control = with_statistics(start, asked.__getitem__, range(options.train_samples))
        untrained = _accuracy(control, asked, asked_labels, options)
        chance = majority_share(asked_labels[options.train_samples :])
        for temperature in options.temperatures:
            trained = pretrain_small(
                copy.deepcopy(start), images[: options.train_samples], temperature, options, seed=seed
            )
            accuracy = _accuracy(trained, asked, asked_labels, options)
            found[temperature].append((accuracy, untrained, chance))
            bar.advance(accuracy=accuracy)
    return [_row(setting, temperature, values) for temperature, values in found.items()]


def _row(setting: int, temperature: float, values: list[tuple[float, float, float]]) -> SuppressionRow:
    trained, untrained, chance = (list(column) for column in zip(*values, strict=True))
    return {
        "setting": setting,
        "temperature": temperature,
        "trained": statistics.fmean(trained),
        "trained_spread": statistics.stdev(trained) if len(trained) > 1 else None,
        "untrained": statistics.fmean(untrained),
        "untrained_spread": statistics.stdev(untrained) if len(untrained) > 1 else None,
        "chance": statistics.fmean(chance),
    }


def pretrain_small(
    network: nn.Module, images: Tensor, temperature: float, options: SuppressionOptions, *, seed: int
) -> nn.Module:
    """Train a network with NT-Xent on crops of pictures (paper, appendix: Adam, rate falling linearly to 0).

    Args:
        network: (B, C, S, S) → (B, D); trained in place, with a projector 256-64 of its own.
        images: (N, C, S, S) float32. Channels after the first are constant in a picture, and no crop changes them.
        temperature: of the loss.

    Returns:
        The network, in training mode.
    """
    source = generator(seed, "views")
    with torch.no_grad():
        dim = network.train()(images[:2]).shape[1]
    projector = mlp([dim, 256, 64], hidden_norm=True)
    optimizer = torch.optim.Adam([*network.parameters(), *projector.parameters()], lr=options.lr)
    batch = min(options.batch_size, len(images))
    steps = options.epochs * (len(images) // batch)
    for step in range(steps):
        if step % (len(images) // batch) == 0:
            order = torch.randperm(len(images), generator=source)
        chosen = images[order[:batch]]
        order = order.roll(-batch)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 - step / steps)
        z1, z2 = (projector(network(random_crops(chosen, source))) for _ in range(2))
        loss = nt_xent(z1, z2, temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


def random_crops(images: Tensor, generator: torch.Generator, smallest: float = 0.5) -> Tensor:
    """A square crop of each picture, of ``smallest`` to all of its area, brought back to its size.

    Channels that are constant in a picture stay as they are.
    """
    side = torch.rand(len(images), generator=generator).mul(1 - smallest).add(smallest).sqrt()
    shift = (2 * torch.rand(len(images), 2, generator=generator) - 1) * (1 - side)[:, None]
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = shift
    shape = [len(images), 1, *images.shape[2:]]
    grid = F.affine_grid(theta, shape, align_corners=False)
    picture = F.grid_sample(images[:, :1], grid, align_corners=False, padding_mode="border")
    return torch.cat([picture, images[:, 1:]], dim=1)


def _with_bits(pictures: Tensor, bits: int, source: torch.Generator) -> Tensor:
    """(N, 1, S, S) → (N, 1 + K, S, S): K constant channels of 0 or 1, drawn for each picture."""
    drawn = torch.randint(2, (len(pictures), bits, 1, 1), generator=source).float()
    return torch.cat([pictures, drawn.expand(-1, -1, *pictures.shape[2:])], dim=1)


class _ConvNet(nn.Module):
    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inside, outside in ((channels, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outside)]
            layers.append(nn.ReLU(inplace=True))
            side = math.ceil(side / 2)
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * side * side, 128))

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk(images)
        return features


class _Colour(nn.Module):
    """One channel to three."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor, options: SuppressionOptions) -> float:
    """Of the linear probe in closed form, on whole pictures."""
    network.eval()
    features = torch.cat([network(part) for part in images.split(options.batch_size)])
    train = options.train_samples
    classifier = fit_ridge(features[:train], labels[:train], CLASSES)
    return topk_accuracy(classifier.logits(features[train:]), labels[train:], 1)
