"""Predict-the-transform probe: what the features h know of a picture that the projection g(h) has forgotten.

SimCLR (Chen et al. 2020, section 4.2 and table 3): a small network is asked what was done to a picture, from h and
from g(h). Contrastive learning makes views alike, and its last layer drops what tells them apart.

Shapes: N images, T transformed pictures, D dimensions, S pixels per side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as T

from openworld.errors import ConfigError
from openworld.runtime.seeding import generator

Transform = Callable[[Tensor, torch.Generator], Tensor]
"""From a picture (3, S, S) float32 in [0, 1] to the same."""


def _same(picture: Tensor, _: torch.Generator) -> Tensor:
    return picture


def _turned(turns: int) -> Transform:
    return lambda picture, _: picture.rot90(turns, (1, 2))


def _gray(picture: Tensor, _: torch.Generator) -> Tensor:
    gray: Tensor = T.rgb_to_grayscale_image(picture, num_output_channels=3)
    return gray


def _sobel(picture: Tensor, _: torch.Generator) -> Tensor:
    """Strength of the edges: the size of the gradient of each channel, by Sobel's 3x3 filters, at most 1."""
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]) / 4
    filters = torch.stack([across, across.T])[:, None]
    padded = F.pad(picture[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, filters).square().sum(dim=1).sqrt().clamp(max=1)


def _noise(picture: Tensor, source: torch.Generator) -> Tensor:
    return (picture + 0.2 * torch.randn(picture.shape, generator=source)).clamp(0, 1)


TRANSFORMS: dict[str, tuple[Transform, ...]] = {
    "colour": (_same, _gray),
    "rotation": (_turned(0), _turned(1), _turned(2), _turned(3)),
    "corrupted": (_same, _noise),
    "sobel": (_same, _sobel),
}
"""By question the things that may have been done, the first one nothing. Corrupted: Gaussian noise of 0.2 (the paper
does not say which). Each is done to every picture, so chance is one over their number; in the paper 80 % of the
pictures of the first question keep their colour."""


@dataclass(frozen=True, kw_only=True)
class TransformOptions:
    """The network that guesses."""

    hidden: int = 256
    """Width of its hidden layer."""
    epochs: int = 60
    """Passes over the training pictures."""
    batch_size: int = 256
    """Pictures per step."""
    lr: float = 1e-3
    """Learning rate of Adam."""


class TransformRow(TypedDict):
    """Accuracies on pictures of held-out images."""

    h: float
    g: float | None


class TransformTable(TypedDict):
    """One question: the network, the same network before training, and chance."""

    trained: TransformRow
    untrained: TransformRow
    chance: float


def transformed(pictures_N3SS: Tensor, question: str, *, seed: int) -> tuple[Tensor, Tensor]:
    """Every picture under each of the transforms of a question.

    Args:
        pictures_N3SS: (N, 3, S, S) float32 in [0, 1], RGB.
        question: a key of :data:`TRANSFORMS`.
        seed: of the noise.

    Returns:
        (T, 3, S, S) in [0, 1] with T = N times their number, picture by picture; (T,) int64 which was done.

    Raises:
        ConfigError: an unknown question.
    """
    if question not in TRANSFORMS:
        raise ConfigError(f"question is {question!r}", remedy=f"choose one of {', '.join(TRANSFORMS)}")
    kinds = TRANSFORMS[question]
    source = generator(seed, "transform", question)
    made = [kind(picture, source) for picture in pictures_N3SS for kind in kinds]
    labels = torch.arange(len(kinds)).repeat(len(pictures_N3SS))
    return (torch.stack(made) if made else pictures_N3SS), labels


def transform_table(
    train: Mapping[str, Tensor],
    test: Mapping[str, Tensor],
    labels: tuple[Tensor, Tensor],
    *,
    seed: int,
    options: TransformOptions | None = None,
) -> TransformTable:
    """One question, asked of the features ``trained h``, ``trained g``, ``untrained h`` and ``untrained g``.

    Args:
        train, test: by these names (T, D) features of transformed pictures of different images; the ones of g may be
            left out.
        labels: (T,) of both, int64.
    """
    options = options or TransformOptions()

    def accuracy(name: str) -> float | None:
        if name not in train:
            return None
        return guess_accuracy((train[name], labels[0]), (test[name], labels[1]), options, seed=seed)

    def row(name: str) -> TransformRow:
        h = accuracy(f"{name} h")
        assert h is not None
        return {"h": h, "g": accuracy(f"{name} g")}

    return {
        "trained": row("trained"),
        "untrained": row("untrained"),
        "chance": 1 / (1 + int(labels[1].max())),
    }


def guess_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], options: TransformOptions, *, seed: int
) -> float:
    """Train a network with one hidden layer on standardised features, and test it.

    Args:
        train, test: (T, D) features and (T,) int64 labels; T >= 2 and >= 1.
    """
    features, labels = train
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    classes = 1 + int(labels.max())
    torch.manual_seed(seed)
    guesser = nn.Sequential(nn.Linear(features.shape[1], options.hidden), nn.ReLU(), nn.Linear(options.hidden, classes))
    optimizer = torch.optim.Adam(guesser.parameters(), lr=options.lr)
    source = generator(seed, "guesser")
    x = (features - mean) / deviation
    for _ in range(options.epochs):
        for rows in torch.randperm(len(x), generator=source).split(options.batch_size):
            loss = F.cross_entropy(guesser(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = guesser((test[0] - mean) / deviation).argmax(dim=1)
    return float((found == test[1]).double().mean())
