"""Self-supervised pretraining: the visible loop.

``output/`` holds, when done, ``backbone.safetensors`` (torchvision's key names), ``projector.safetensors`` (the head,
of a method that has one) and ``card.json``; on the way there, ``checkpoints/``. The loop is the same for one process
and for several that ``torchrun`` starts: they share each batch, average their gradients, and so take the steps that
one process would.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from openworld.errors import ConfigError, NumericsError
from openworld.runtime.distributed import average_gradients, is_first, mean_over_ranks, on_first, rank, world_size
from openworld.runtime.files import write_json
from openworld.runtime.runlog import RunLog, progress_bar
from openworld.runtime.seeding import seed_everything
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.captions import captions_of
from ssl_backbones.card import PretrainResult, finished, write_backbone
from ssl_backbones.checkpoints import Checkpoints
from ssl_backbones.images import BatchPlan, ImagePool, eval_batches, labels_of, view_batches
from ssl_backbones.meters import CollapseMeter, watched
from ssl_backbones.methods import METHODS
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions
from ssl_backbones.probes.labelled import LabelledCrops, LabelledSet, classes_of, from_crops, from_folder, from_pool
from ssl_backbones.probes.table import Probes
from ssl_backbones.ranks import join_batch_norms, mean_numbers, share_buffers
from ssl_backbones.views import ViewRecipe, view_recipes

logger = logging.getLogger(__name__)

NEIGHBOURS = 5
"""Nearest images of each query in neighbours.json."""


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

    A killed run that is resumed gives, on the CPU and with as many processes as before, the same weights bit for bit.
    A finished ``output`` of the same options and seed is returned as it is. Collective: every process calls it.

    Args:
        image_paths: images, in an order that is the same at every call; broken ones are left out with a warning.
        output: folder for the backbone.
        resume: go on from the newest checkpoint in ``output``; otherwise what is there is replaced.
        log: gets one ``step`` event every ``log_every`` steps, a ``probe`` event every ``probe_every``, and a
            ``collapse`` event when the features collapse.
        labelled_crops: for the probes of the card, where the options name no labelled folder; never trained on.
        neighbours_of: for so many images the nearest neighbours are written to ``neighbours.json``.

    Raises:
        DataError: fewer than two usable images, crops that are no images, no labels for a method that needs them.
        ConfigError: a method that needs labels, without a folder of images of its own; more views than it takes; more
            clusters than images; a batch that processes and micro-batches do not divide.
        CheckpointError: ``output`` holds something made with other options, or only damaged checkpoints.
        NumericsError: the loss is not finite; the weights were not touched by it.
    """
    output, device = Path(output), torch.device(device)
    done = on_first(lambda: finished(output, options, seed, resume=resume))
    if done is not None:
        return done
    recipes, size = _recipes(options), options.view_size
    captions = captions_of(options, image_paths) if METHODS[options.method].needs_text else None
    image_paths = list(captions.by_image) if captions else image_paths
    labels = _labels(options, image_paths)
    pool = ImagePool(image_paths, side=2 * size, cache_megabytes=options.cache_megabytes, labels=labels)
    plan = BatchPlan(
        len(pool), options.batch_size, seed, accumulate=options.accumulate, rank=rank(), ranks=world_size()
    )
    seed_everything(seed, "pretrain")
    method = METHODS[options.method](options)
    method.allocate(len(pool))
    method = method.to(device)
    method = method.to(memory_format=torch.channels_last) if options.channels_last else method
    untrained = copy.deepcopy(method.backbone())
    if options.sync_batch_norm:
        join_batch_norms(method)
    optimizer = build_optimizer(method.param_groups(options.weight_decay), options)
    log, meter = log if is_first() else None, CollapseMeter(judging=not method.needs_labels)
    labelled = _labelled(options, pool, labelled_crops) if is_first() else None
    probes = Probes(untrained, labelled, pool, options, seed, device) if is_first() else None
    run = Checkpoints(output / "checkpoints", options, seed, len(pool), method, optimizer, meter, log)
    start = run.restore() if resume else run.clear()
    if probes and start == 0 and 0 < options.probe_every <= options.steps:
        _log_probe(log, probes, 0, probes.control)
    batches = iter(
        view_batches(
            pool,
            recipes,
            size,
            plan,
            start=start,
            stop=options.steps,
            workers=options.workers,
            local_size=options.local_view_size,
            captions=captions,
            frames=options.curl.frames,
            pin_memory=device.type == "cuda",
        )
    )
    method.train()
    console = None if is_first() else Console(quiet=True)
    with progress_bar(f"pretrain {options.method}", options.steps, done=start, console=console) as bar:
        for step in range(start, options.steps):
            if step % plan.steps_per_epoch == 0:
                share_buffers(method)
                method.before_epoch(
                    step // plan.steps_per_epoch, lambda: eval_batches(pool, recipes[0], size, plan.batch_size)
                )
                share_buffers(method)
            lr = set_learning_rates(optimizer, step, options)
            logged = (step + 1) % options.log_every == 0
            method.before_step(step, options.steps)
            optimizer.zero_grad()
            losses: list[Tensor] = []
            numbers: list[dict[str, float]] = []
            with watched(method.encoder, on=logged or step == 0) as features:
                for batch in (next(batches) for _ in range(options.accumulate)):
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                        loss, found = method.loss(batch.to(device, channels_last=options.channels_last))
                    (loss / options.accumulate).backward()
                    losses.append(loss.detach())
                    numbers.append(found)
            value = mean_over_ranks(torch.stack(losses).mean()).item()
            if not math.isfinite(value):
                raise _not_finite(value, step, lr)
            average_gradients(method.parameters())
            method.after_backward(step, options.steps)
            optimizer.step()
            method.after_step(step, options.steps)
            bar.advance(loss=value)
            if logged or step == 0:
                measured = {**mean_numbers(numbers), **meter.measure(features)}
                collapsed = meter.judge(step + 1, measured)
                if log and logged:
                    log.append("step", stage="pretrain", step=step + 1, loss=value, lr=lr, **measured)
                if log and collapsed:
                    log.append("collapse", stage="pretrain", step=step + 1, **meter.last)
            if probes and options.probe_every and (step + 1) % options.probe_every == 0:
                _log_probe(log, probes, step + 1, method.backbone().to(device))
            if (step + 1) % options.checkpoint_every == 0:
                run.save(step + 1)

    def finish() -> PretrainResult:
        assert probes is not None
        network = method.backbone().to(device)
        measured = {**probes.tables(network), "collapse": meter.summary()}
        if neighbours_of:
            queries = probes.neighbours(network, neighbours_of, NEIGHBOURS)
            write_json(output / "neighbours.json", {"queries": queries})
        result = write_backbone(output, options, seed, len(pool), network, method.projection(), measured)
        shutil.rmtree(output / "checkpoints", ignore_errors=True)
        return result

    return on_first(finish)


def _recipes(options: PretrainOptions) -> tuple[ViewRecipe, ...]:
    """The recipes of an image's views: two, and small ones for the methods that take them."""
    recipes = view_recipes(options.views, options.local_views)
    if any(recipe.local for recipe in recipes) and not METHODS[options.method].takes_small_views:
        raise ConfigError(
            f"views {options.views} makes {len(recipes)} views of an image, and {options.method} takes two",
            remedy="set local_views to 0, or choose other views",
        )
    return recipes


def _labels(options: PretrainOptions, image_paths: Sequence[Path]) -> list[int] | None:
    """The names of the folders, of a set that was named for it: a detector's training set gives away later classes.

    Where the method does not need them, they are for the probes alone, or None.
    """
    if METHODS[options.method].needs_labels:
        if options.images is None:
            raise ConfigError(
                f"{options.method} learns from labels, and the images that a detector trains on come without",
                remedy="name a folder with one folder of images a class (images), or choose another method",
            )
        return labels_of(image_paths)
    if options.images is None or options.labelled is not None:
        return None
    return None if classes_of(Path(options.images), image_paths) is None else labels_of(image_paths)


def _labelled(options: PretrainOptions, pool: ImagePool, crops: LabelledCrops | None) -> LabelledSet | None:
    """What the probes classify: the folder that the options name, or the crops, or the classes of the images."""
    if options.labelled is not None:
        side = 2 * options.view_size
        return from_folder(Path(options.labelled), side=side, cache_megabytes=options.cache_megabytes)
    if crops is not None:
        return from_crops(crops)
    if pool.labels is None or METHODS[options.method].needs_labels:
        return None
    return from_pool(pool, str(options.images))


def _log_probe(log: RunLog | None, probes: Probes, step: int, network: Backbone) -> None:
    """One ``probe`` event, of the network after ``step`` steps; of the control after none."""
    accuracy = probes.online(network) if log else None
    if log and accuracy is not None:
        log.append("probe", stage="pretrain", step=step, knn=accuracy)


def _not_finite(value: float, step: int, lr: float) -> NumericsError:
    return NumericsError(
        f"the loss is {value} at step {step + 1} with learning rate {lr:.3g}",
        where="pretraining",
        remedy="lower lr, lengthen warmup, or set precision to fp32; the last checkpoint is sound",
    )
