"""Optimisers, and learning rates as functions of the step, so that a resumed run needs no state of a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al., 2017), by the rule of the code of BYOL, MoCo v3 and Barlow Twins.

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
        """Make one update."""
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
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
                velocity = self.state[weight]["velocity"]
                velocity.mul_(group["momentum"]).add_(gradient)
                weight.sub_(velocity, alpha=group["lr"])
        return value


def make_optimizer(
    name: Literal["sgd", "lars", "adamw"], groups: Sequence[dict[str, Any]], *, lr: float, momentum: float
) -> Optimizer:
    """Make an optimiser over parameter groups.

    Args:
        name: of the optimiser.
        groups: as for torch's optimisers, with their ``weight_decay``; LARS reads ``adapt`` too.
        lr: of the first step; see :func:`set_learning_rate`.
        momentum: of SGD and LARS, and AdamW's first beta.
    """
    if name == "lars":
        return LARS(groups, lr=lr, momentum=momentum)
    if name == "adamw":
        return torch.optim.AdamW(list(groups), lr=lr, betas=(momentum, 0.999), fused=True)
    return torch.optim.SGD(list(groups), lr=lr, momentum=momentum)


def set_learning_rate(optimizer: Optimizer, lr: float, *, peak: float) -> None:
    """Give every parameter group its learning rate.

    Args:
        lr: rate of the schedule; a group multiplies it by its ``lr_scale``, if it has one.
        peak: replaces ``lr`` for a group with ``constant_lr``.
    """
    for group in optimizer.param_groups:
        group["lr"] = group.get("lr_scale", 1.0) * (peak if group.get("constant_lr", False) else lr)


def half_cosine(done: float, total: float = 1) -> float:
    """Fall from 1 to 0 along half a cosine while ``done`` grows from 0 to ``total``."""
    return 0.5 * (1 + math.cos(math.pi * done / total))


def warmup_cosine(step: int, *, steps: int, warmup: int, lr: float, final_lr: float = 0.0) -> float:
    """Return the learning rate at ``step`` (from 0): linear warm-up to ``lr``, then half a cosine to ``final_lr``."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return final_lr + (lr - final_lr) * half_cosine(step - warmup, max(1, steps - warmup))


def multi_step(step: int, *, milestones: Sequence[float], warmup: int, lr: float) -> float:
    """Return the learning rate at ``step`` (from 0): linear warm-up to ``lr``, then a tenth from each milestone on."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.1 ** sum(step >= milestone for milestone in milestones)
