"""Helpers of all losses: full precision, and means that are 0 and not NaN for an empty batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors to run outside autocast, with half-precision arguments as fp32.

    A softmax over thousands of similarities divided by a small temperature needs the digits, and exp(1 / 0.05) does
    not fit into fp16. Tensors in lists and tuples are converted too; float64 stays float64.
    """

    @functools.wraps(function)
    def outside_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast(_device_type((*args, *kwargs.values())), enabled=False):
            return function(*map(_full, args), **{name: _full(value) for name, value in kwargs.items()})

    return outside_autocast


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of all elements; 0 with a gradient path if there are none."""
    return values.mean() if values.numel() else values.sum()


def cross_entropy_or_zero(logits_NC: Tensor, targets_N: Tensor) -> Tensor:
    """Mean of -log softmax(logits)[target] over N; 0 with a gradient path for no rows."""
    return F.cross_entropy(logits_NC, targets_N) if len(logits_NC) else logits_NC.sum()


def soft_cross_entropy(logits_NC: Tensor, targets_NC: Tensor) -> Tensor:
    """Mean over N of -sum_c targets log softmax(logits); 0 with a gradient path for no rows."""
    return mean_or_zero(-(targets_NC * F.log_softmax(logits_NC, dim=1)).sum(dim=1))


def _full(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.dtype == torch.float64 or not value.is_floating_point() else value.float()
    return type(value)(map(_full, value)) if isinstance(value, list | tuple) else value


def _device_type(values: Any) -> str:
    """Device type of the first tensor found."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
            return value[0].device.type
    return "cpu"
