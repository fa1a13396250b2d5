"""Features of undistorted images, and the untrained network with which every probe is compared.

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
"""Images from which the untrained network gets its batch-norm statistics, at most."""

Network = TypeVar("Network", bound=nn.Module)

ViewOf = Callable[[int], Tensor]
"""The view (3, S, S) float32, preprocessed, of the image at a position."""


def spread_evenly(count: int, at_most: int) -> list[int]:
    """Choose at most ``at_most`` of ``count`` positions, spread evenly from the first to near the last."""
    chosen = min(count, at_most)
    return [index * count // chosen for index in range(chosen)]


@torch.no_grad()
def features_of(
    network: Backbone, view: ViewOf, positions: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Compute (N, D) float32 features on the CPU in evaluation mode; leaves the network in training mode."""
    network.eval()
    features = [network(batch).float().cpu() for batch in _batches(view, positions, device)]
    network.train()
    return torch.cat(features) if features else torch.empty(0, network.dim)


@torch.no_grad()
def with_statistics(
    network: Network, view: ViewOf, positions: Sequence[int], device: torch.device | str = "cpu"
) -> Network:
    """Copy a network and give its batch norms the statistics of images; an untrained network has none."""
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # cumulative average
    for batch in _batches(view, positions, device):
        if len(batch) > 1 or len(positions) == 1:  # a single image may have one value per channel: no statistics
            network(batch)
    return network


def _batches(view: ViewOf, positions: Sequence[int], device: torch.device | str) -> Iterator[Tensor]:
    for start in range(0, len(positions), BATCH):
        yield torch.stack([view(position) for position in positions[start : start + BATCH]]).to(device)
