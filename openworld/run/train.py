"""One optimisation phase: the visible loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openworld.config import PhaseOptions
from openworld.detector import Detector
from openworld.errors import NumericsError
from openworld.run.checkpoints import Progress, save_progress
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint
from openworld.runtime.profiling import Profile, scope, watched
from openworld.runtime.runlog import RunLog, progress_bar
from openworld.runtime.seeding import set_rng_state
from openworld.structures import Target
from ssl_backbones.backbones.base import spared_by_decay


@dataclass(frozen=True)
class Phase:
    """Where in the schedule an optimisation phase stands."""

    task: int
    stage: str
    options: PhaseOptions
    folder: Path
    """Checkpoints of the task."""
    known: tuple[str, ...]
    """Classes of the head."""
    first_step: int
    """Steps that the task has done in earlier phases."""

    def after(self, step: int) -> Progress:
        """How far the task is after ``step`` steps of the phase."""
        return Progress(self.task, self.stage, step, step >= self.options.steps, self.known)


def train_phase(
    detector: Detector,
    batches: Iterator[tuple[list[Tensor], list[Target]]],
    phase: Phase,
    log: RunLog,
    resume_from: Checkpoint | None,
    profile: Profile | None = None,
) -> None:
    """Train to the end of a phase, from its beginning or from a checkpoint of its own.

    The batches must start at the step of the checkpoint. Every ``checkpoint_every`` steps the weights, the optimiser,
    the generators and the log's length are written, from which a resumed run continues bit for bit. The caller writes
    the checkpoint after the last step.

    With several processes the batches are this one's share, and the gradients are averaged: every process makes the
    step that one process with the whole batch would make, and the first one writes.

    Raises:
        NumericsError: a loss is not finite; the weights are those before the step.
    """
    options = phase.options
    optimizer = make_optimizer(detector, options, backbone=detector.engine.backbone)
    start = 0
    if resume_from is not None:
        optimizer.load_state_dict(resume_from.state["optimizer"])
        set_rng_state(resume_from.state["rng"])
        start = Progress.of(resume_from).step
    detector.train()
    title = f"task {phase.task} {phase.stage}"
    parts = profile.watch(detector.engine.parts()) if profile is not None else nullcontext()
    with parts, progress_bar(title, options.steps, done=start) as bar:
        for step in watched(range(start, options.steps), profile):
            with scope("data"):
                images, targets = next(batches)
            lr = learning_rate(options, step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]
            losses = detector.losses(images, targets, phase.first_step + step, replay=phase.stage == "replay")
            total = torch.stack(list(losses.values())).sum()
            with distributed.purpose("losses, to log and to check"):
                read = on_host(distributed.mean_over_ranks(torch.stack([total, *losses.values()])))
            with scope("backward"):
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                distributed.average_gradients(detector.parameters())
            loss, *numbers = read()
            named = dict(zip(losses, numbers, strict=True))
            check_finite(loss, named, phase, step, targets)
            with scope("optimiser"):
                if options.clip_gradient:
                    nn.utils.clip_grad_norm_(detector.parameters(), options.clip_gradient)
                optimizer.step()
            with scope("logging"):
                log.append("step", stage=phase.stage, task=phase.task, step=step + 1, loss=loss, losses=named, lr=lr)
                bar.advance(loss=loss, lr=lr)
            done = step + 1
            if done % options.checkpoint_every == 0 and done < options.steps:
                with scope("checkpoint"):
                    save_progress(phase.folder, detector, phase.after(done), log, optimizer)


def on_host(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy values from a GPU; what is returned waits for them, but not for work that came after them."""
    if values.device.type != "cuda":
        return values.tolist
    copy = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return copy.tolist()

    return read


def make_optimizer(model: nn.Module, options: PhaseOptions, backbone: nn.Module | None = None) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that train; biases, norms and layer scales do not decay.

    Each group has an ``lr_factor``: ``options.backbone_lr_factor`` for the parameters of ``backbone``, else 1.
    """
    apart = set(backbone.parameters()) if backbone is not None and options.backbone_lr_factor != 1 else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = spared_by_decay(model)
    groups: list[dict[str, Any]] = []
    for lr_factor, own in ((1.0, False), (options.backbone_lr_factor, True)):
        part = [parameter for parameter in trained if (parameter in apart) == own]
        for decay, chosen in (
            (options.weight_decay, [parameter for parameter in part if parameter not in spared]),
            (0.0, [parameter for parameter in part if parameter in spared]),
        ):
            if chosen or not own:
                groups.append({"params": chosen, "weight_decay": decay, "lr_factor": lr_factor})
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    return torch.optim.SGD(groups, lr=options.lr, momentum=0.9)


def learning_rate(options: PhaseOptions, step: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then cosine, steps or constant."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.schedule == "constant":
        return options.lr
    if options.schedule == "cosine":
        share = (step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
        return options.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
    return options.lr * 0.1 ** sum(step >= milestone * options.steps for milestone in options.milestones)


def check_finite(total: float, losses: Mapping[str, float], phase: Phase, step: int, targets: Sequence[Target]) -> None:
    """Stop before a loss that is not finite reaches the weights."""
    if math.isfinite(total):
        return
    values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    images = ", ".join(str(target.image_id) for target in targets)
    raise NumericsError(
        f"the loss is not finite ({values}) on images {images}",
        where=f"task {phase.task}, {phase.stage}, step {step + 1}",
        remedy="lower the learning rate or set clip_gradient; the last checkpoint is intact",
    )
