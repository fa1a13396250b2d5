"""Optimiser and schedules of a pretraining, built from its options."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from openworld.runtime.optim import half_cosine, make_optimizer, multi_step, set_learning_rate, warmup_cosine
from ssl_backbones.options import PretrainOptions


def build_optimizer(groups: list[dict[str, Any]], options: PretrainOptions) -> Optimizer:
    """Build SGD, LARS or AdamW over a method's parameter groups."""
    return make_optimizer(options.optimizer, groups, lr=options.lr, momentum=options.sgd_momentum)


def set_learning_rates(optimizer: Optimizer, step: int, options: PretrainOptions) -> float:
    """Set each group's learning rate for step ``step`` (from 0); return the rate of the schedule.

    A group with ``constant_lr`` keeps ``options.lr`` throughout; ``lr_scale`` multiplies either.
    """
    if options.lr_milestones:
        lr = multi_step(step, milestones=options.lr_milestones, warmup=options.warmup, lr=options.lr)
    else:
        lr = warmup_cosine(step, steps=options.steps, warmup=options.warmup, lr=options.lr, final_lr=options.final_lr)
    set_learning_rate(optimizer, lr, peak=options.lr)
    return lr


def cosine_momentum(step: int, *, steps: int, base: float) -> float:
    """Return a teacher's momentum at step ``step`` (from 0): half a cosine from ``base`` to 1 (BYOL, section 3.3)."""
    return 1 - (1 - base) * half_cosine(step, max(1, steps))
