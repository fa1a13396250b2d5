"""The training loop of one optimisation phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openworld.config import PhaseOptions
from openworld.detector import Detector
from openworld.distillation.teacher import Teacher
from openworld.errors import NumericsError
from openworld.run.checkpoints import Progress, save_progress
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint
from openworld.runtime.gradients import GradientAverage
from openworld.runtime.optim import half_cosine, make_optimizer, multi_step, set_learning_rate
from openworld.runtime.runlog import RunLog, progress_bar
from openworld.runtime.seeding import set_rng_state
from openworld.structures import Target
from ssl_backbones.backbones.base import spared_by_decay


@dataclass(frozen=True)
class Phase:
    """Position of an optimisation phase in the schedule."""

    task: int
    stage: str
    options: PhaseOptions
    folder: Path
    """Checkpoints of the task."""
    known: tuple[str, ...]
    """Classes of the head."""
    first_step: int
    """Number of steps in earlier phases of the task."""
    teacher: Teacher | None = None
    """The detector of the task before, where it is distilled."""

    def after(self, step: int) -> Progress:
        """Return the progress of the task after ``step`` steps of the phase."""
        return Progress(self.task, self.stage, step, step >= self.options.steps, self.known)


def train_phase(
    detector: Detector,
    batches: Iterable[tuple[list[Tensor], list[Target]]],
    phase: Phase,
    log: RunLog,
    resume_from: Checkpoint | None,
) -> None:
    """Run an optimisation phase to its end, from its beginning or from one of its checkpoints.

    The weights, the optimiser, the generators and the log's length are written every ``checkpoint_every`` steps. A run
    that resumes from them continues bit for bit. The caller writes the checkpoint after the last step.

    With several processes the batches are this rank's share, and the gradients are averaged: every process makes the
    same step as one process with the whole batch. Only rank 0 writes.

    Args:
        detector: trained in place.
        batches: of the remaining steps; they start at the step of the checkpoint.
        phase: its options, and its position in the schedule.
        log: receives one ``step`` event per step, and the method's ``meters`` at each checkpoint and at the end.
        resume_from: checkpoint of this phase, or None to begin.

    Raises:
        NumericsError: a loss is not finite; the weights are those before the step.
    """
    options = phase.options
    optimizer = phase_optimizer(detector, options, backbone=detector.engine.backbone)
    start = 0 if resume_from is None else restore_progress(optimizer, resume_from)
    detector.train()
    title = f"task {phase.task} {phase.stage}"
    with GradientAverage(detector.parameters()) as average, progress_bar(title, options.steps, done=start) as bar:
        for step, (images, targets) in enumerate(batches, start):
            lr = learning_rate(options, step)
            set_learning_rate(optimizer, lr, peak=options.lr)
            replay = phase.stage == "replay"
            losses = detector.losses(images, targets, phase.first_step + step, replay=replay, teacher=phase.teacher)
            total = torch.stack(list(losses.values())).sum()
            read = on_host(distributed.mean_over_ranks(torch.stack([total, *losses.values()])))
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            average.wait()
            loss, *numbers = read()
            named = dict(zip(losses, numbers, strict=True))
            check_finite(loss, named, phase, step, targets)
            if options.clip_gradient:
                nn.utils.clip_grad_norm_(detector.parameters(), options.clip_gradient)
            optimizer.step()
            log.append("step", stage=phase.stage, task=phase.task, step=step + 1, loss=loss, losses=named, lr=lr)
            bar.advance(loss=loss, lr=lr)
            done = step + 1
            at_checkpoint = done % options.checkpoint_every == 0
            # A meter may wait for the GPU, so it is not read per step.
            if (at_checkpoint or done == options.steps) and (meters := detector.method.meters()):
                log.append("meters", stage=phase.stage, task=phase.task, step=done, **meters)
            if at_checkpoint and done < options.steps:
                save_progress(phase.folder, detector, phase.after(done), log, optimizer)


def restore_progress(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> int:
    """Restore the optimiser and the generators of a checkpoint; return the number of finished steps."""
    optimizer.load_state_dict(checkpoint.state["optimizer"])
    set_rng_state(checkpoint.state["rng"])
    return Progress.of(checkpoint).step


def on_host(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy values to the host.

    Returns:
        A function that returns the values. It waits for the copy, but not for work that the GPU was given after it.
    """
    if values.device.type != "cuda":
        return values.tolist
    copy = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return copy.tolist()

    return read


def phase_optimizer(
    model: nn.Module, options: PhaseOptions, backbone: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Make the optimiser of the parameters that train; one-dimensional ones (biases, norms) do not decay.

    Each group has an ``lr_scale``: ``options.backbone_lr_factor`` for the parameters of ``backbone``, otherwise 1.
    """
    apart = set(backbone.parameters()) if backbone is not None and options.backbone_lr_factor != 1 else set()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    spared = spared_by_decay(model)
    groups: list[dict[str, Any]] = []
    for lr_scale, own in ((1.0, False), (options.backbone_lr_factor, True)):
        part = [parameter for parameter in trained if (parameter in apart) == own]
        for decay, chosen in (
            (options.weight_decay, [parameter for parameter in part if parameter not in spared]),
            (0.0, [parameter for parameter in part if parameter in spared]),
        ):
            if chosen or not own:
                groups.append({"params": chosen, "weight_decay": decay, "lr_scale": lr_scale})
    return make_optimizer(options.optimizer, groups, lr=options.lr, momentum=0.9)


def learning_rate(options: PhaseOptions, step: int) -> float:
    """Return the learning rate at ``step`` (from 0): linear warm-up, then cosine, steps or constant."""
    peak, warmup = options.lr, options.warmup_steps
    if options.schedule == "cosine" and step >= warmup:
        done = (step - warmup) / max(options.steps - warmup, 1)
        return peak * (0.01 + 0.99 * half_cosine(done))
    milestones = [share * options.steps for share in options.milestones] if options.schedule == "steps" else []
    return multi_step(step, milestones=milestones, warmup=warmup, lr=peak)


def check_finite(total: float, losses: Mapping[str, float], phase: Phase, step: int, targets: Sequence[Target]) -> None:
    """Raise NumericsError if the total is not finite, before it reaches the weights."""
    if math.isfinite(total):
        return
    values = ", ".join(f"{name} {value:g}" for name, value in losses.items())
    images = ", ".join(str(target.image_id) for target in targets)
    raise NumericsError(
        f"the loss is not finite ({values}) on images {images}",
        where=f"task {phase.task}, {phase.stage}, step {step + 1}",
        remedy="lower the learning rate or set clip_gradient; the last checkpoint is intact",
    )
