"""An open pretraining: images, method, optimiser and checkpoints, with everything else that its steps need."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer

from openworld.errors import ConfigError
from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.distributed import is_first, rank, world_size
from openworld.runtime.image_depth import warn_of_depth
from openworld.runtime.images import WHITE_LEVEL
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import seed_everything
from ssl_backbones.captions import Captions, captions_of
from ssl_backbones.checkpoints import Checkpoints
from ssl_backbones.image_files import ImageFiles, warn_of_few_images
from ssl_backbones.images import BatchPlan, ImagePool, labels_of, view_batches
from ssl_backbones.meters import CollapseMeter
from ssl_backbones.method import Batch, Method
from ssl_backbones.methods.options import CaptionOptions
from ssl_backbones.optim import build_optimizer
from ssl_backbones.options import PretrainOptions
from ssl_backbones.probes.labelled import LabelledCrops, LabelledSet, classes_of, from_crops, from_folder, from_pool
from ssl_backbones.probes.table import Probes
from ssl_backbones.views import ViewRecipe, view_recipes


@dataclass(kw_only=True)
class Pretraining:
    """An open pretraining, with everything that its steps need."""

    options: PretrainOptions
    output: Path
    seed: int
    device: torch.device
    pool: ImagePool
    plan: BatchPlan
    recipes: tuple[ViewRecipe, ...]
    captions: Captions | None
    method: Method
    optimizer: Optimizer
    meter: CollapseMeter
    probes: Probes | None
    """Of rank 0; None in the others."""
    log: RunLog | None
    """Of rank 0, if there is one."""
    checkpoints: Checkpoints
    start: int
    """Number of steps before this start."""

    def batches(self) -> Iterator[Batch]:
        """Return an iterator over the remaining micro-batches; see :func:`ssl_backbones.images.view_batches`."""
        options = self.options
        loader = view_batches(
            self.pool,
            self.recipes,
            options.view_size,
            self.plan,
            start=self.start,
            stop=options.steps,
            workers=options.workers,
            local_size=options.local_view_size,
            captions=self.captions,
            frames=self.method.frames,
            pin_memory=self.device.type == "cuda",
        )
        return iter(loader)


def open_pretraining(
    options: PretrainOptions,
    image_paths: Sequence[Path],
    output: Path,
    *,
    files: ImageFiles,
    seed: int,
    device: torch.device,
    resume: bool,
    log: RunLog | None,
    labelled_crops: LabelledCrops | None,
) -> Pretraining:
    """Read the images, build the method and its optimiser, and restore the newest checkpoint or write the first one.

    Args and errors as :func:`ssl_backbones.pretrain.pretrain`; ``files`` is the identity of the images.
    """
    recipes = _recipes(options)
    captions = captions_of(options, image_paths) if isinstance(options.method, CaptionOptions) else None
    image_paths = list(captions.by_image) if captions else image_paths
    labels = _labels(options, image_paths)
    side, white_level = 2 * options.view_size, options.white_level or WHITE_LEVEL
    if is_first():
        warn_of_depth(image_paths, white_level, "pretraining")
    pool = ImagePool(
        image_paths, side=side, cache_megabytes=options.cache_megabytes, labels=labels, white_level=white_level
    )
    plan = BatchPlan(
        len(pool), options.batch_size, seed, accumulate=options.accumulate, rank=rank(), ranks=world_size()
    )
    if is_first():
        warn_of_few_images(options, len(pool))
    seed_everything(seed, "pretrain")
    method = options.method.implementation()(options)
    method.allocate(len(pool))
    method = method.to(device)
    method = method.to(memory_format=torch.channels_last) if options.channels_last else method
    untrained = copy.deepcopy(method.backbone())
    if options.sync_batch_norm:
        synchronise_batch_norm(method)
    optimizer = build_optimizer(method.param_groups(options.weight_decay), options)
    meter = CollapseMeter(judging=not method.needs_labels)
    log = log if is_first() else None
    labelled = _labelled(options, pool, labelled_crops) if is_first() else None
    probes = Probes(untrained, labelled, pool, options, seed, device) if is_first() else None
    checkpoints = Checkpoints(output / "checkpoints", options, seed, len(pool), files, method, optimizer, meter, log)
    start = checkpoints.restore() if resume else checkpoints.clear()
    return Pretraining(
        options=options,
        output=output,
        seed=seed,
        device=device,
        pool=pool,
        plan=plan,
        recipes=recipes,
        captions=captions,
        method=method,
        optimizer=optimizer,
        meter=meter,
        probes=probes,
        log=log,
        checkpoints=checkpoints,
        start=start,
    )


def _recipes(options: PretrainOptions) -> tuple[ViewRecipe, ...]:
    """Return the view recipes per image: two, and small ones for the methods that take them."""
    recipes = view_recipes(options.views, options.local_views)
    if any(recipe.local for recipe in recipes) and not options.method.implementation().takes_small_views:
        raise ConfigError(
            f"views {options.views} makes {len(recipes)} views per image, and {options.method.name} takes two",
            remedy="set local_views to 0, or choose other views",
        )
    return recipes


def _labels(options: PretrainOptions, image_paths: Sequence[Path]) -> list[int] | None:
    """Return labels of the images, the names of their folders, for methods that need them and for the probes.

    Only a folder that the options name has labels. Those of a detector's training set would give away later classes.
    """
    if options.method.implementation().needs_labels:
        if options.images is None:
            raise ConfigError(
                f"{options.method.name} learns from labels, and the images that a detector trains on come without",
                remedy="name a folder with one folder of images per class (images), or choose another method",
            )
        return labels_of(image_paths)
    if options.images is None or options.labelled is not None:
        return None
    return None if classes_of(Path(options.images), image_paths) is None else labels_of(image_paths)


def _labelled(options: PretrainOptions, pool: ImagePool, crops: LabelledCrops | None) -> LabelledSet | None:
    """Return the images for the probes: the folder that the options name, or the crops, or the labelled images."""
    if options.labelled is not None:
        side = 2 * options.view_size
        return from_folder(
            Path(options.labelled),
            side=side,
            cache_megabytes=options.cache_megabytes,
            white_level=options.white_level or WHITE_LEVEL,
        )
    if crops is not None:
        return from_crops(crops)
    if pool.labels is None or options.method.implementation().needs_labels:
        return None
    return from_pool(pool, str(options.images))
