"""Exponential moving average of the weights of a network that trains (Polyak and Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the floating buffers of all BatchNorm layers by name; the tensors are the model's own."""
    return {
        f"{place}.{name}" if place else name: buffer
        for place, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


class WeightAverage:
    """The average of the parameters that train and of BatchNorm's running statistics.

    Other buffers are not averaged: they are counts, constants, or the state of a method, which is not a weight. (That
    is why torch's ``AveragedModel`` does not fit: it averages all buffers or none, and copies the whole model.)

    The decay rises with the number n of earlier updates, min(decay, (1 + n) / (10 + n)), so that the average soon
    forgets the weights that it started from (``tf.train.ExponentialMovingAverage`` with ``num_updates``).

    Args:
        model: its current weights are the first average.
        decay: weight of the average so far, 0 to 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
        self.decay = decay
        self.updates = 0
        self._live = {**trained, **running_statistics(model)}
        self.tensors = {name: tensor.clone() for name, tensor in self._live.items()}
        """The average by the names of the model's state dict."""

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights of the model; call it after each step of the optimiser."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self.tensors.values()), list(self._live.values()), self.updates)
        self.updates += 1

    def load(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Restore the average of a checkpoint: :attr:`tensors` and the number of updates that led to it."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.updates = updates


@torch.no_grad()
def write_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into parameters and buffers of a model, in place, by the names of its state dict."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


@contextmanager
def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block, some parameters and buffers of a model have other values; their own are put back after it."""
    own = model.state_dict()
    kept = {name: own[name].clone() for name in tensors}
    write_tensors(model, tensors)
    try:
        yield
    finally:
        write_tensors(model, kept)
