"""Features of undistorted images, and the untrained network that every probe is read beside.

Shapes: N images, D dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_backbones.backbones.base import Backbone

BATCH = 64
"""Images per forward pass."""
STATISTICS = 2000
"""Most images whose activations give the untrained network its batch-norm statistics."""

Network = TypeVar("Network", bound=nn.Module)

ViewOf = Callable[[int], Tensor]
"""The view (3, S, S) float32, preprocessed, of the image at a position."""


def spread_evenly(count: int, at_most: int) -> list[int]:
    """Positions of ``at_most`` of ``count`` things, or of all, from the first to near the last."""
    chosen = min(count, at_most)
    return [index * count // chosen for index in range(chosen)]


@torch.no_grad()
def features_of(
    network: Backbone, view: ViewOf, positions: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """(N, D) float32 features on the CPU, by the network in evaluation mode, which it leaves in training mode."""
    network.eval()
    features = [network(batch).float().cpu() for batch in _batches(view, positions, device)]
    network.train()
    return torch.cat(features) if features else torch.empty(0, network.dim)


@torch.no_grad()
def with_statistics(
    network: Network, view: ViewOf, positions: Sequence[int], device: torch.device | str = "cpu"
) -> Network:
    """A copy whose batch norms have the statistics of these images: an untrained network has none."""
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative average
    for batch in _batches(view, positions, device):
        if len(batch) > 1 or len(positions) == 1:  # one image alone may be one value per channel: no statistics
            network(batch)
    return network


def _batches(view: ViewOf, positions: Sequence[int], device: torch.device | str) -> Iterator[Tensor]:
    for start in range(0, len(positions), BATCH):
        yield torch.stack([view(position) for position in positions[start : start + BATCH]]).to(device)
