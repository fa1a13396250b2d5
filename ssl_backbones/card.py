"""Output of a pretraining: ``backbone.safetensors``, its head, and the card that describes both."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from openworld.errors import ConfigError
from openworld.runtime.checkpoint import newest_valid
from openworld.runtime.files import sha256_of, write_atomic, write_json
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.checkpoints import identity, must_agree
from ssl_backbones.handover.projector import PROJECTOR_FILE, write_projector
from ssl_backbones.image_files import ImageFiles
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES


@dataclass(frozen=True)
class PretrainResult:
    """``path`` of backbone.safetensors and the content of its card."""

    path: Path
    card: dict[str, Any]


def write_backbone(
    output: Path,
    options: PretrainOptions,
    seed: int,
    images: int,
    files: ImageFiles,
    network: Backbone,
    projector: nn.Module | None,
    measured: dict[str, Any],
) -> PretrainResult:
    """Write the weights (torchvision's key names), then the head in a second file, then the card.

    Args:
        images: number of images that it was trained on.
        files: the image files that were given, among which may be broken ones.
        projector: see :meth:`ssl_backbones.method.Method.projection`.
        measured: results of the probes and meters, as entries of the card.
    """
    path = output / "backbone.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write_atomic(path, safetensors.torch.save(tensors, {"format": "pt"}))
    sha256, head = sha256_of(path), None
    if projector is not None:
        write_projector(output / PROJECTOR_FILE, projector, backbone_sha256=sha256)
        head = {"file": PROJECTOR_FILE, "sha256": sha256_of(output / PROJECTOR_FILE)}
    card = {
        "method": options.method.name,
        "arch": dataclasses.asdict(options.arch),
        "data": {
            "images": images,
            "source": options.images or "the training images",
            "labels": "names of folders" if options.method.implementation().needs_labels else None,
        },
        "files": files.as_json(),
        "steps": options.steps,
        "seed": seed,
        "preprocess": RECIPES[options.views][0].preprocess(),
        "sha256": sha256,
        "projector": head,
        **measured,
        "options": dataclasses.asdict(options),
    }
    write_json(output / "card.json", card)
    return PretrainResult(path, card)


def finished(output: Path, options: PretrainOptions, seed: int, files: ImageFiles | None) -> PretrainResult | None:
    """Return the finished backbone in ``output``; None if there is none.

    Args:
        output: of the pretraining.
        options, seed: must be those that it was made with.
        files: the images that it must have been made of; None: they are gone, and are not compared.

    Raises:
        CheckpointError: the backbone was made with other options or of other images.
    """
    path = output / "backbone.safetensors"
    try:
        card = json.loads((output / "card.json").read_text())
        if card["sha256"] != sha256_of(path):
            return None
        there = {**card["options"], "seed": card["seed"]}
        images = card.get("files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    must_agree(there, {**identity(options), "seed": seed}, path)
    if files is not None:
        files.must_be(images, path)
    return PretrainResult(path, card)


def refuse_taken(output: Path) -> None:
    """Check that nothing would be lost if a pretraining began in a folder.

    A folder in which a start failed before its second checkpoint is free.

    Raises:
        ConfigError: it holds a backbone, a pretraining that has begun, or a run.
    """
    if (output / "config.yaml").exists() and (output / "data.json").exists():
        raise ConfigError("holds a run", where=str(output), remedy="choose another --output")
    begun = newest_valid(output / "checkpoints", [])
    if any((output / name).exists() for name in ("card.json", "backbone.safetensors")):
        what = "holds a backbone already"
    elif begun is not None and begun.position > (0,):
        what = f"holds a pretraining of {begun.position[0]} steps already"
    else:
        return
    remedy = "add --resume to go on with it, or choose another --output"
    raise ConfigError(what, where=str(output), remedy=remedy)
