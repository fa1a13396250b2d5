"""LARS by the rule of the authors' code, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ssl_backbones.options import PretrainOptions


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al. 2017) as in the code of BYOL, MoCo v3 and Barlow Twins.

    g' = g + wd w, then g' *= trust * ||w|| / ||g'|| where the group says ``adapt`` and both norms are positive,
    then v = momentum v + g' and w -= lr v.
    """

    def __init__(
        self, params: Any, *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 1e-3
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""
        value = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient: Tensor = weight.grad + group["weight_decay"] * weight
                if group["adapt"]:
                    size, slope = weight.norm(), gradient.norm()
                    rate = group["trust"] * size / slope
                    gradient = gradient * torch.where((size > 0) & (slope > 0), rate, torch.ones_like(rate))
                velocity = self.state[weight].setdefault("velocity", torch.zeros_like(weight))
                velocity.mul_(group["momentum"]).add_(gradient)
                weight.sub_(velocity, alpha=group["lr"])
        return value


def build_optimizer(groups: list[dict[str, Any]], options: PretrainOptions) -> Optimizer:
    """SGD or LARS over a method's parameter groups."""
    if options.optimizer == "lars":
        return LARS(groups, lr=options.lr, momentum=options.sgd_momentum)
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.sgd_momentum)


def warmup_cosine(step: int, *, steps: int, warmup: int, lr: float) -> float:
    """Learning rate of step ``step`` (from 0): linear to ``lr`` over ``warmup`` steps, then half a cosine to 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
