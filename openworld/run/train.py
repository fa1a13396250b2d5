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
from openworld.data.loader import TrainBatch
from openworld.detector import Detector
from openworld.distillation.teacher import Teacher
from openworld.errors import NumericsError
from openworld.run.checkpoints import Progress, save_progress
from openworld.run.validation import Best, Validation
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint
from openworld.runtime.gradients import GradientAverage
from openworld.runtime.optim import half_cosine, make_optimizer, multi_step, set_learning_rate
from openworld.runtime.runlog import RunLog, progress_bar
from openworld.runtime.seeding import set_rng_state
from openworld.runtime.weight_average import WeightAverage, write_tensors
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
        return Progress(self.task, self.stage, step, step >= self.options.num_steps, self.known)


def train_phase(
    detector: Detector,
    batches: Iterable[Sequence[TrainBatch]],
    phase: Phase,
    log: RunLog,
    resume_from: Checkpoint | None,
    validation: Validation | None = None,
) -> None:
    """Run an optimisation phase to its end, from its beginning or from one of its checkpoints.

    The weights, the optimiser, the average of the weights, the best validation, the generators and the log's length are
    written every ``checkpoint_every`` steps. A run that resumes from them continues bit for bit. The caller writes the
    checkpoint after the last step. The detector then has the weights of the best validation, or else their average, or
    else those of the last step, as the options say.

    With several processes the batches are this rank's share, and the gradients are averaged: every process makes the
    same step as one process with the whole batch. Only rank 0 writes.

    Args:
        detector: trained in place.
        batches: of the remaining steps, each in its parts; they start at the step of the checkpoint.
        phase: its options, with the length in steps, and its position in the schedule.
        log: receives one ``step`` event per step, a ``validation`` event per validation, and the method's ``meters`` at
            each checkpoint and at the end.
        resume_from: checkpoint of this phase, or None to begin.
        validation: held-out images, for ``validate_every``.

    Raises:
        NumericsError: a loss is not finite; the weights are those before the step.
    """
    options = phase.options
    optimizer = phase_optimizer(detector, options, backbone=detector.engine.backbone)
    average = WeightAverage(detector, options.ema_decay) if options.ema_decay else None
    start, best = (0, None) if resume_from is None else restore_progress(optimizer, average, resume_from)
    detector.train()
    title = f"task {phase.task} {phase.stage}"
    gradients = GradientAverage(detector.parameters(), backwards=options.accumulate)
    with gradients, progress_bar(title, options.num_steps, done=start) as bar:
        for step, parts in enumerate(batches, start):
            lr = learning_rate(options, step)
            set_learning_rate(optimizer, lr, peak=options.lr)
            optimizer.zero_grad(set_to_none=True)
            replay, teacher = phase.stage == "replay", phase.teacher
            names, read = backward(detector, parts, phase.first_step + step, replay=replay, teacher=teacher)
            gradients.wait()
            loss, *numbers = read()
            named = dict(zip(names, numbers, strict=True))
            check_finite(loss, named, phase, step, [target for _, targets in parts for target in targets])
            if options.clip_gradient:
                nn.utils.clip_grad_norm_(detector.parameters(), options.clip_gradient)
            optimizer.step()
            if average is not None:
                average.update()
            log.append("step", stage=phase.stage, task=phase.task, step=step + 1, loss=loss, losses=named, lr=lr)
            bar.advance(loss=loss, lr=lr)
            done = step + 1
            at_checkpoint, at_end = done % options.checkpoint_every == 0, done == options.num_steps
            if validation is not None and (at_end or done % options.validate_every == 0):
                ap50, best = validation.best_of(detector, average.tensors if average else {}, done, best)
                is_best = best.step == done
                log.append("validation", stage=phase.stage, task=phase.task, step=done, ap50=ap50, best=is_best)
            # A meter may wait for the GPU, so it is not read per step.
            if (at_checkpoint or at_end) and (meters := detector.method.meters()):
                log.append("meters", stage=phase.stage, task=phase.task, step=done, **meters)
            if at_checkpoint and not at_end:
                going_on = state_of(optimizer, average, best)
                save_progress(phase.folder, detector, phase.after(done), log, going_on)
    if best is not None and options.keep_best:
        write_tensors(detector, best.tensors)
    elif average is not None:
        write_tensors(detector, average.tensors)


def backward(
    detector: Detector, parts: Sequence[TrainBatch], step: int, *, replay: bool, teacher: Teacher | None = None
) -> tuple[list[str], Callable[[], list[float]]]:
    """Add up the gradients of the parts of a step's batch, each divided by their number.

    Args:
        detector, step, replay, teacher: see :meth:`openworld.detector.Detector.losses`.
        parts: images and targets of each part.

    Returns:
        the names of the losses, and a function that returns the total and each loss, means over the parts and the
        processes; see :func:`on_host`.
    """
    found: list[Tensor] = []
    for images, targets in parts:
        losses = detector.losses(images, targets, step, replay=replay, teacher=teacher)
        total = torch.stack(list(losses.values())).sum()
        found.append(torch.stack([total, *losses.values()]).detach())
        if len(found) == len(parts):
            read = on_host(distributed.mean_over_ranks(torch.stack(found).mean(dim=0)))
        (total / len(parts)).backward()
    return list(losses), read


def state_of(optimizer: torch.optim.Optimizer, average: WeightAverage | None, best: Best | None) -> dict[str, Any]:
    """Return what a phase goes on with beside the weights and the generators, for a checkpoint."""
    state: dict[str, Any] = {"optimizer": optimizer.state_dict()}
    if average is not None:
        state["average"] = average.tensors
    if best is not None:
        state["best"] = best.as_state()
    return state


def restore_progress(
    optimizer: torch.optim.Optimizer, average: WeightAverage | None, checkpoint: Checkpoint
) -> tuple[int, Best | None]:
    """Restore the state of a checkpoint; return the number of finished steps, and the best validation so far."""
    state, step = checkpoint.state, Progress.of(checkpoint).step
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load(state["average"], step)
    set_rng_state(state["rng"])
    return step, Best(**state["best"]) if "best" in state else None


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
    peak, warmup, steps = options.lr, options.warmup_steps, options.num_steps
    if options.schedule == "cosine" and step >= warmup:
        done = (step - warmup) / max(steps - warmup, 1)
        return peak * (0.01 + 0.99 * half_cosine(done))
    milestones = [share * steps for share in options.milestones] if options.schedule == "steps" else []
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
