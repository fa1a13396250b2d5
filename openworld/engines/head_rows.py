"""The rows of the two last layers when a head grows to the label space of a later task; shared by both engines."""

from __future__ import annotations

import torch
from torch import nn

from openworld.labels import LabelSpace


@torch.no_grad()
def grown_classifier(old: nn.Linear, before: LabelSpace, after: LabelSpace) -> nn.Linear:
    """Build the classification layer with the rows of a later task.

    New rows start near that of *unknown*, as which a new class was seen so far; old rows, unknown and background keep
    their weights.

    Args:
        old: (rows of ``before``, D).
        before, after: label spaces of one schedule.

    Raises:
        ConfigError: ``after`` does not continue ``before``.
    """
    kept = after.kept_rows(before)
    new = nn.Linear(old.in_features, after.num_rows, device=old.weight.device)
    new.weight.copy_(old.weight[before.unknown] + torch.randn_like(new.weight) * 0.01)
    new.bias.copy_(old.bias[before.unknown].expand_as(new.bias))
    for row, target in kept:
        new.weight[target] = old.weight[row]
        new.bias[target] = old.bias[row]
    return new


@torch.no_grad()
def grown_deltas(old: nn.Linear, before: LabelSpace, after: LabelSpace) -> nn.Linear:
    """Build the layer of box deltas per row before background, (4 · rows, D); new classes start from *unknown*.

    Args, raises: as :func:`grown_classifier`.
    """
    source = [before.unknown] * after.background
    for row, target in after.kept_rows(before):
        if target < after.background:
            source[target] = row
    new = nn.Linear(old.in_features, 4 * after.background, device=old.weight.device)
    new.weight.copy_(old.weight.reshape(-1, 4, old.in_features)[source].flatten(0, 1))
    new.bias.copy_(old.bias.reshape(-1, 4)[source].flatten())
    return new
