"""Self-supervised pretraining: :func:`pretrain` does all of it, :func:`train` is the loop.

A finished ``output/`` holds ``backbone.safetensors`` (torchvision's key names), ``projector.safetensors`` (the head, if
the method has one) and ``card.json``; an unfinished one holds ``checkpoints/``. The loop is the same for one process
and for several started by ``torchrun``: they share each batch and average their gradients, and so take the same steps
as one process.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from openworld.errors import NumericsError
from openworld.runtime.distributed import is_first, mean_over_ranks, on_first
from openworld.runtime.files import write_json
from openworld.runtime.gradients import GradientAverage
from openworld.runtime.runlog import RunLog, progress_bar
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.card import PretrainResult, finished, refuse_taken, write_backbone
from ssl_backbones.image_files import ImageFiles
from ssl_backbones.images import eval_batches
from ssl_backbones.meters import watched
from ssl_backbones.method import Batch
from ssl_backbones.optim import set_learning_rates
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretraining import Pretraining, open_pretraining
from ssl_backbones.probes.labelled import LabelledCrops
from ssl_backbones.ranks import mean_numbers, share_buffers

NEIGHBOURS = 5
"""Number of nearest images per query in neighbours.json."""


def pretrain(
    options: PretrainOptions,
    image_paths: Sequence[Path],
    output: Path,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    resume: bool = False,
    log: RunLog | None = None,
    labelled_crops: LabelledCrops | None = None,
    neighbours_of: int = 0,
) -> PretrainResult:
    """Pretrain a backbone, without labels unless the method needs them: then they are the names of the folders.

    On the CPU and with the same number of processes, a killed and resumed run gives the same weights bit for bit.
    With ``resume``, a finished ``output`` of the same options, seed and images is returned as it is. Collective: every
    process calls it.

    Args:
        options: method, views, architecture and schedule.
        image_paths: images, in an order that is the same at every call; broken ones are left out with a warning.
        output: folder for the backbone.
        seed: of weights, order and views.
        device: where to train.
        resume: continue from the newest checkpoint in ``output``; otherwise nothing may have begun there.
        log: receives a ``step`` event every ``log_every`` steps, a ``probe`` event every ``probe_every``, and a
            ``collapse`` event when the features collapse.
        labelled_crops: for the probes of the card, if the options name no labelled folder; never trained on.
        neighbours_of: number of images whose nearest neighbours are written to ``neighbours.json``.

    Raises:
        DataError: fewer than two images are usable, crops are not images, or a method that needs labels has none.
        ConfigError: ``output`` holds a backbone, or a pretraining or run that has begun, and ``resume`` is not set; the
            method needs labels and ``images`` is not set; it does not take all the views; there are more
            clusters than images; or processes and micro-batches do not divide the batch.
        CheckpointError: ``output`` was made with other options or of other images, or holds only damaged checkpoints.
        NumericsError: the loss is not finite; the weights are those before the step.
    """
    output, device = Path(output), torch.device(device)
    if not resume:
        on_first(lambda: refuse_taken(output))
    files = on_first(lambda: ImageFiles.of(options, image_paths))
    done = on_first(lambda: finished(output, options, seed, files)) if resume else None
    if done is not None:
        if is_first():
            print(f"note: {done.path} is finished already", file=sys.stderr)
        return done
    run = open_pretraining(
        options,
        image_paths,
        output,
        files=files,
        seed=seed,
        device=device,
        resume=resume,
        log=log,
        labelled_crops=labelled_crops,
    )
    train(run)
    return on_first(lambda: write_results(run, neighbours_of))


def train(run: Pretraining) -> None:
    """Make the remaining steps of a pretraining.

    Raises:
        NumericsError: the loss is not finite; the weights are those before the step.
    """
    options, method, optimizer = run.options, run.method, run.optimizer
    console = None if is_first() else Console(quiet=True)
    title = f"pretrain {options.method.name}"
    if run.start == 0 and 0 < options.probe_every <= options.steps and run.probes:
        _log_probe(run, 0, run.probes.control)
    batches = run.batches()
    method.train()
    average = GradientAverage(method.parameters(), backwards=options.accumulate)
    with average, progress_bar(title, options.steps, done=run.start, console=console) as bar:
        for step in range(run.start, options.steps):
            if step % run.plan.steps_per_epoch == 0:
                begin_epoch(run, step // run.plan.steps_per_epoch)
            lr = set_learning_rates(optimizer, step, options)
            method.before_step(step, options.steps)
            optimizer.zero_grad()
            logged = (step + 1) % options.log_every == 0
            with watched(method.encoder, on=logged or step == 0) as features:
                loss, numbers = backward(run, batches)
            average.wait()
            value = mean_over_ranks(loss).item()
            check_finite(value, step, lr)
            method.after_backward(step, options.steps)
            optimizer.step()
            method.after_step(step, options.steps)
            bar.advance(loss=value)
            if logged or step == 0:
                measured = {**mean_numbers(numbers), **run.meter.measure(features)}
                log_step(run, step + 1, measured, logged=logged, loss=value, lr=lr)
            if run.probes and options.probe_every and (step + 1) % options.probe_every == 0:
                _log_probe(run, step + 1, method.backbone().to(run.device))
            if (step + 1) % options.checkpoint_every == 0:
                run.checkpoints.save(step + 1)


def begin_epoch(run: Pretraining, epoch: int) -> None:
    """Call the method's hook with the whole set, with the same state in all processes before and after."""
    share_buffers(run.method)
    run.method.before_epoch(
        epoch, lambda: eval_batches(run.pool, run.recipes[0], run.options.view_size, run.plan.batch_size)
    )
    share_buffers(run.method)


def backward(run: Pretraining, batches: Iterator[Batch]) -> tuple[Tensor, list[dict[str, float]]]:
    """Add up the gradients of all micro-batches of one step.

    Returns:
        the mean of their losses, (), detached, and the method's numbers for the log of each.
    """
    options, losses, numbers = run.options, [], []
    for batch in islice(batches, options.accumulate):
        with torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
            loss, found = run.method.loss(batch.to(run.device, channels_last=options.channels_last))
        (loss / options.accumulate).backward()
        losses.append(loss.detach())
        numbers.append(found)
    return torch.stack(losses).mean(), numbers


def check_finite(loss: float, step: int, lr: float) -> None:
    """Raise NumericsError if a loss is not finite, before it reaches the weights."""
    if not math.isfinite(loss):
        raise NumericsError(
            f"the loss is {loss} at step {step + 1} with learning rate {lr:.3g}",
            where="pretraining",
            remedy="lower lr, lengthen warmup, or set precision to fp32; the last checkpoint is sound",
        )


def log_step(run: Pretraining, done: int, measured: dict[str, float], *, logged: bool, loss: float, lr: float) -> None:
    """Test the features for collapse, and write the ``step`` event and, once, a ``collapse`` event.

    Args:
        done: number of finished steps.
        measured: numbers of the method and of the collapse meter.
        logged: whether the step has an event; the first one may be measured only.
    """
    collapsed = run.meter.judge(done, measured)
    if run.log and logged:
        run.log.append("step", stage="pretrain", step=done, loss=loss, lr=lr, **measured)
    if run.log and collapsed:
        run.log.append("collapse", stage="pretrain", step=done, **run.meter.last)


def write_results(run: Pretraining, neighbours_of: int) -> PretrainResult:
    """Probe the trained network; write backbone, head and card; then remove the checkpoints. Only in rank 0."""
    assert run.probes is not None
    network = run.method.backbone().to(run.device)
    measured = {**run.probes.tables(network), "collapse": run.meter.summary()}
    if neighbours_of:
        queries = run.probes.neighbours(network, neighbours_of, NEIGHBOURS)
        write_json(run.output / "neighbours.json", {"queries": queries})
    images, projection = len(run.pool), run.method.projection()
    result = write_backbone(
        run.output, run.options, run.seed, images, run.checkpoints.files, network, projection, measured
    )
    shutil.rmtree(run.output / "checkpoints", ignore_errors=True)
    return result


def _log_probe(run: Pretraining, step: int, network: Backbone) -> None:
    """Write a ``probe`` event of the network after ``step`` steps; of the control after none."""
    accuracy = run.probes.online(network) if run.log and run.probes else None
    if run.log and accuracy is not None:
        run.log.append("probe", stage="pretrain", step=step, knn=accuracy)
