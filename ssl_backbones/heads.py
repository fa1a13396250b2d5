"""Projection and prediction heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(
    dims: Sequence[int],
    *,
    hidden_norm: bool,
    last_norm: Literal["none", "affine", "scale", "plain"] = "none",
    bias: bool = True,
    last_bias: bool | None = None,
) -> nn.Sequential:
    """Make a projection or prediction head: Linear (, BatchNorm), ReLU, ..., Linear (, BatchNorm).

    Args:
        dims: widths from the input to the output, at least two.
        hidden_norm: batch norm before each ReLU.
        last_norm: batch norm on the output: none, with scale and shift, with scale only, or without parameters.
        bias: biases of the linear layers.
        last_bias: bias of the last linear layer, where it differs.
    """
    layers: list[nn.Module] = []
    for inside, outside in pairwise(dims[:-1]):
        layers.append(nn.Linear(inside, outside, bias=bias))
        if hidden_norm:
            layers.append(nn.BatchNorm1d(outside))
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(dims[-2], dims[-1], bias=bias if last_bias is None else last_bias))
    if last_norm != "none":
        norm = nn.BatchNorm1d(dims[-1], affine=last_norm != "plain")
        if last_norm == "scale":
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)
