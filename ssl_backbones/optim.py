"""LARS by the rule of the authors' code, and the schedules of learning rate and momentum: functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
                velocity = self.state[weight]["velocity"]
                velocity.mul_(group["momentum"]).add_(gradient)
                weight.sub_(velocity, alpha=group["lr"])
        return value


def build_optimizer(groups: list[dict[str, Any]], options: PretrainOptions) -> Optimizer:
    """SGD, LARS or AdamW over a method's parameter groups."""
    if options.optimizer == "lars":
        return LARS(groups, lr=options.lr, momentum=options.sgd_momentum)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr, betas=(options.sgd_momentum, 0.999))
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.sgd_momentum)


def set_learning_rates(optimizer: Optimizer, step: int, options: PretrainOptions) -> float:
    """Give each group its learning rate for step ``step`` (from 0); returns the one that the schedule says.

    A group with ``constant_lr`` keeps ``options.lr`` throughout; ``lr_scale`` multiplies either.
    """
    if options.lr_milestones:
        lr = multi_step(step, milestones=options.lr_milestones, warmup=options.warmup, lr=options.lr)
    else:
        lr = warmup_cosine(step, steps=options.steps, warmup=options.warmup, lr=options.lr, final_lr=options.final_lr)
    for group in optimizer.param_groups:
        group["lr"] = group.get("lr_scale", 1.0) * (options.lr if group.get("constant_lr", False) else lr)
    return lr


def warmup_cosine(step: int, *, steps: int, warmup: int, lr: float, final_lr: float = 0.0) -> float:
    """Linear to ``lr`` over ``warmup`` steps, then half a cosine to ``final_lr``."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def multi_step(step: int, *, milestones: Sequence[int], warmup: int, lr: float) -> float:
    """Linear to ``lr`` over ``warmup`` steps, then a tenth of it from each milestone on."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.1 ** sum(step >= milestone for milestone in milestones)


def cosine_momentum(step: int, *, steps: int, base: float) -> float:
    """Momentum of a teacher at step ``step`` (from 0): half a cosine from ``base`` to 1 (BYOL, section 3.3)."""
    return 1 - (1 - base) * (1 + math.cos(math.pi * step / max(1, steps))) / 2
