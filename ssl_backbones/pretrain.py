"""Self-supervised pretraining: the visible loop, its checkpoints, and the backbone with its card.

``output/`` holds, when done, ``backbone.safetensors`` (torchvision's key names, no head) and ``card.json``; on the
way there, ``checkpoints/``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from openworld.errors import CheckpointError, ConfigError, DataError, NumericsError
from openworld.runtime.checkpoint import newest_valid, save_checkpoint
from openworld.runtime.files import sha256_of, write_atomic, write_json
from openworld.runtime.runlog import RunLog, progress_bar
from openworld.runtime.seeding import rng_state, seed_everything, set_rng_state
from ssl_backbones.images import BatchPlan, ImagePool, eval_batches, labels_of, view_batches
from ssl_backbones.method import Method
from ssl_backbones.methods import METHODS
from ssl_backbones.nets import ResNet
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions
from ssl_backbones.probes.knn import knn_accuracy, majority_share
from ssl_backbones.views import RECIPES, ViewRecipe, evaluation_view, view_recipes

logger = logging.getLogger(__name__)

LabelledCrops = tuple[Sequence[Tensor | np.ndarray[Any, Any]], Sequence[int | str]]
"""Crops of objects, (3, H, W) uint8 tensors or (H, W, 3) uint8 arrays, RGB, and the label of each."""

# What may change between a run and its resumption without changing the result.
_FREE = ("checkpoint_every", "log_every", "workers", "images")


@dataclass(frozen=True)
class PretrainResult:
    """``path`` of backbone.safetensors and the content of its card."""

    path: Path
    card: dict[str, Any]


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
) -> PretrainResult:
    """Pretrain a backbone, without labels unless the method needs them: then they are the names of the folders.

    A killed run that is resumed gives, on the CPU, the same weights bit for bit. A finished ``output`` of the same
    options and seed is returned as it is.

    Args:
        image_paths: images, in an order that is the same at every call; broken ones are left out with a warning.
        output: folder for the backbone.
        resume: go on from the newest checkpoint in ``output``; otherwise what is there is replaced.
        log: gets one ``step`` event every ``log_every`` steps.
        labelled_crops: for the kNN probe of the card; the labels are never trained on.

    Raises:
        DataError: fewer than two usable images, crops that are no images, no labels for a method that needs them.
        ConfigError: a method that needs labels, without a folder of images of its own; more views than it takes; more
            clusters than images.
        CheckpointError: ``output`` holds something made with other options, or only damaged checkpoints.
        NumericsError: the loss is not finite; the weights were not touched by it.
    """
    output, device = Path(output), torch.device(device)
    done = _finished(output, options, seed, resume)
    if done is not None:
        return done
    recipes, size = _recipes(options), options.view_size
    labels = _labels(options, image_paths) if METHODS[options.method].needs_labels else None
    pool = ImagePool(image_paths, side=2 * size, cache_megabytes=options.cache_megabytes, labels=labels)
    plan = BatchPlan(len(pool), options.batch_size, seed)
    seed_everything(seed, "pretrain")
    method = METHODS[options.method](options)
    method.allocate(len(pool))
    method = method.to(device)
    method = method.to(memory_format=torch.channels_last) if options.channels_last else method
    optimizer = build_optimizer(method.param_groups(options.weight_decay), options)
    probe = _Probe(labelled_crops, options, device) if labelled_crops and len(labelled_crops[0]) > 1 else None
    untrained = probe.accuracy(probe.with_statistics(method.backbone())) if probe else None
    run = _Run(output / "checkpoints", options, seed, len(pool), method, optimizer, log)
    start = run.restore() if resume else run.clear()
    batches = view_batches(
        pool,
        recipes,
        size,
        plan,
        start=start,
        stop=options.steps,
        workers=options.workers,
        local_size=options.local_view_size,
    )
    method.train()
    with progress_bar(f"pretrain {options.method}", options.steps, done=start) as bar:
        for step, batch in enumerate(batches, start):
            if step % plan.steps_per_epoch == 0:
                method.before_epoch(
                    step // plan.steps_per_epoch, lambda: eval_batches(pool, recipes[0], size, plan.batch_size)
                )
            lr = set_learning_rates(optimizer, step, options)
            method.before_step(step, options.steps)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                loss, numbers = method.loss(batch.to(device, channels_last=options.channels_last))
            value = loss.item()
            if not math.isfinite(value):
                raise _not_finite(value, step, lr)
            optimizer.zero_grad()
            loss.backward()
            method.after_backward(step, options.steps)
            optimizer.step()
            method.after_step(step, options.steps)
            bar.advance(loss=value)
            if log and (step + 1) % options.log_every == 0:
                log.append("step", stage="pretrain", step=step + 1, loss=value, lr=lr, **numbers)
            if (step + 1) % options.checkpoint_every == 0:
                run.save(step + 1)
    knn = None
    if probe:
        knn = probe.record(trained=probe.accuracy(method.backbone()), untrained=untrained)
    result = _write(output, options, seed, len(pool), method.backbone(), knn)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    return result


def _recipes(options: PretrainOptions) -> tuple[ViewRecipe, ...]:
    """The recipes of an image's views: two, and small ones for the methods that take them."""
    recipes = view_recipes(options.views, options.local_views)
    if len(recipes) > 2 and not METHODS[options.method].takes_small_views:
        raise ConfigError(
            f"views {options.views} makes {len(recipes)} views of an image, and {options.method} takes two",
            remedy="set local_views to 0, or choose other views",
        )
    return recipes


def _labels(options: PretrainOptions, image_paths: Sequence[Path]) -> list[int]:
    """The names of the folders, of a set that was named for it: a detector's training set gives away later classes."""
    if options.images is None:
        raise ConfigError(
            f"{options.method} learns from labels, and the images that a detector trains on come without",
            remedy="name a folder with one folder of images a class (images), or choose another method",
        )
    return labels_of(image_paths)


class _Run:
    """Checkpoints of one pretraining: everything that the next step depends on."""

    def __init__(
        self,
        folder: Path,
        options: PretrainOptions,
        seed: int,
        images: int,
        method: Method,
        optimizer: Optimizer,
        log: RunLog | None,
    ) -> None:
        self.folder, self.method, self.optimizer, self.log = folder, method, optimizer, log
        self.identity = {**_identity(options), "seed": seed, "number of images": images}

    def save(self, step: int) -> None:
        state = {
            "identity": json.dumps(self.identity),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng_state(),
            "log_offset": self.log.offset if self.log else None,
        }
        tensors = self.method.state_dict()
        save_checkpoint(self.folder, f"pretrain-{step:07d}", position=step, tensors=tensors, state=state)

    def restore(self) -> int:
        """Take up the newest checkpoint; returns the steps done. Without one, begin."""
        found = newest_valid(self.folder)
        if found is None:
            return self.clear()
        there = {**_identity(PretrainOptions()), **json.loads(found.state["identity"])}
        _must_agree(there, self.identity, found.path)
        self.method.load_state_dict(found.tensors)
        self.optimizer.load_state_dict(found.state["optimizer"])
        set_rng_state(found.state["rng"])
        if self.log and found.state["log_offset"] is not None:
            self.log.truncate(found.state["log_offset"])
        return found.position

    def clear(self) -> int:
        """Begin: nothing old in the way, and a checkpoint at step 0, so that the log has a place to go back to."""
        for old in ("card.json", "backbone.safetensors"):
            (self.folder.parent / old).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.save(0)
        return 0


class _Probe:
    """kNN over labelled crops, leave-one-out, on features before the projector."""

    def __init__(self, crops: LabelledCrops, options: PretrainOptions, device: torch.device) -> None:
        images, labels = crops
        if len(images) != len(labels):
            raise DataError(
                f"{len(images)} crops but {len(labels)} labels", where="kNN probe", remedy="give one label a crop"
            )
        preprocess = RECIPES[options.views][0].preprocess()
        views = [evaluation_view(_as_tensor(image), options.view_size, preprocess) for image in images]
        self.views, self.options, self.device = torch.stack(views), options, device
        names = sorted({str(label) for label in labels})
        self.labels = torch.tensor([names.index(str(label)) for label in labels])

    def accuracy(self, network: ResNet) -> float:
        """Accuracy of the network in evaluation mode."""
        features = self._features(network.eval())
        network.train()
        return knn_accuracy(features, self.labels, k=self.options.knn_k, temperature=self.options.knn_temperature)

    def with_statistics(self, network: ResNet) -> ResNet:
        """A copy whose batch norms have the crops' statistics: an untrained network has none of its own."""
        network = copy.deepcopy(network).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # cumulative average
        self._features(network)
        return network

    def record(self, *, trained: float, untrained: float | None) -> dict[str, Any]:
        chance, k = majority_share(self.labels), min(self.options.knn_k, len(self.labels) - 1)
        return {"trained": trained, "untrained": untrained, "chance": chance, "k": k, "samples": len(self.labels)}

    @torch.no_grad()
    def _features(self, network: ResNet) -> Tensor:
        return torch.cat([network(part.to(self.device)).float().cpu() for part in self.views.split(64)])


def _as_tensor(image: Tensor | np.ndarray[Any, Any]) -> Tensor:
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise DataError(
            f"a crop is {tensor.dtype} of shape {tuple(tensor.shape)}",
            where="kNN probe",
            remedy="give (3, H, W) uint8 tensors or (H, W, 3) uint8 arrays with at least one pixel",
        )
    return tensor


def _write(
    output: Path, options: PretrainOptions, seed: int, images: int, network: ResNet, knn: dict[str, Any] | None
) -> PretrainResult:
    """Weights first, then the card that vouches for them."""
    path = output / "backbone.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write_atomic(path, safetensors.torch.save(tensors, {"format": "pt"}))
    card = {
        "method": options.method,
        "arch": dataclasses.asdict(options.arch),
        "data": {
            "images": images,
            "source": options.images or "the training images",
            "labels": "names of folders" if METHODS[options.method].needs_labels else None,
        },
        "steps": options.steps,
        "seed": seed,
        "preprocess": RECIPES[options.views][0].preprocess(),
        "sha256": sha256_of(path),
        "knn": knn,
        "options": dataclasses.asdict(options),
    }
    write_json(output / "card.json", card)
    return PretrainResult(path, card)


def _finished(output: Path, options: PretrainOptions, seed: int, resume: bool) -> PretrainResult | None:
    """The backbone that is already there, whole and made as asked for; None where there is none."""
    path = output / "backbone.safetensors"
    try:
        card = json.loads((output / "card.json").read_text())
        if card["sha256"] != sha256_of(path):
            return None
        there = {**_identity(PretrainOptions()), **card["options"], "seed": card["seed"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    wanted = {**_identity(options), "seed": seed}
    if not resume and any(there.get(key) != value for key, value in wanted.items()):
        return None
    _must_agree(there, wanted, path)
    logger.info("%s is finished already", path)
    return PretrainResult(path, card)


def _identity(options: PretrainOptions) -> dict[str, Any]:
    """The options that the weights depend on."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key not in _FREE}


def _must_agree(there: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    for key, value in wanted.items():
        if there.get(key) != value:
            raise CheckpointError(
                f"was made with {key} {there.get(key)!r}, now it is {value!r}",
                where=str(path),
                remedy="choose another output folder, or start afresh without resuming",
            )


def _not_finite(value: float, step: int, lr: float) -> NumericsError:
    return NumericsError(
        f"the loss is {value} at step {step + 1} with learning rate {lr:.3g}",
        where="pretraining",
        remedy="lower lr, lengthen warmup, or set precision to fp32; the last checkpoint is sound",
    )
